"""The page about where AnchorAttention pays, and what a model expects of it."""

from pathlib import Path

import torch

from anchor_lab.experiments.crossover import figure, fit, measure, share
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import digits, number, percent, render, spaced
from anchor_models.integration import cost


def page(results: dict, path: Path) -> str:
    """The numbers as Markdown."""
    return render("crossover/page.md.j2", picture=f"{path.stem}.png", **values(results))


def values(results: dict) -> dict:
    """What the template is filled with."""
    rows, settings = results["rows"], results["settings"]
    calls = [row for row in rows if row["part"] == "calls"]
    whole = {row["part"] for row in rows} >= set(fit.NEEDED)
    found = fit.fit(rows, settings, fit.kept_law()) if whole else None
    return {
        "settings": settings,
        "date": results["runs"][-1]["date"],
        "crossings": crossings(rows),
        "missing": missing(rows),
        "prefills": prefills(rows),
        "spread": any("over_sdpa" in row for row in rows),
        "random_layers": next((x["layers"] for x in rows if x.get("model") == "random"), None),
        "fit": found,
        "coefficients": coefficients(found) if found else [],
        "rest": [number(found["layer_device_ms"][name]) for name in cost.LAYER_WORK]
        if found
        else [],
        "errors": errors(calls, found) if found else [],
        "kept": [
            [f"{float(theta):g}", percent(law["share"]), spaced(law["tokens"]), law["exponent"]]
            for theta, law in (found["kept"] if found else {}).items()
        ],
        "margin": percent(found["margin"]) if found else "",
    }


def missing(rows: list[dict]) -> str:
    """In words: what of a whole run the rows lack; empty for one that came to its end."""
    shapes: dict[str, set] = {}
    for row in rows:
        if row["part"] == "calls":
            shapes.setdefault(row["way"], set()).add(figure.heads_of(row))
    unmeasured = sorted(shapes.get("dense", set()) - shapes.get("anchor", set()))
    lacking = [f"AnchorAttention with {q} / {kv} heads of {d}" for q, kv, d in unmeasured]
    parts = {row["part"] for row in rows}
    words = {"host": "what the host needs", "layer": "dense prefills", "prefill": "whole prefills"}
    return ", ".join(lacking + [text for part, text in words.items() if part not in parts])


def crossings(rows: list[dict]) -> list[list]:
    """Heads, share kept, tail: the shortest length from which on ours was faster on the device."""
    calls = [row for row in rows if row["part"] == "calls"]
    shapes = dict.fromkeys(map(figure.heads_of, calls))
    tails = sorted({row["tail"] for row in calls if row["tail"] is not None})
    table = []
    for heads in shapes:
        for tail in tails:
            dense, ours = figure.data_calls(rows, heads, tail)
            for kept, times in ours.items():
                both = [n for n in times if n in dense]
                faster = [n for n in both if all(times[m] < dense[m] for m in both if m >= n)]
                table.append(
                    [
                        f"{heads[0]} / {heads[1]} of {heads[2]}",
                        percent(kept),
                        tail,
                        spaced(min(faster)) if faster else "–",
                    ]
                )
    return table


def prefills(rows: list[dict]) -> list[list]:
    """A row for each model and length that was prefilled by all ways."""
    dense = share.data_dense(rows)
    table = []
    for model, by_length in figure.data_prefills(rows).items():
        for n, ways in by_length.items():
            if ways.keys() != measure.WAYS.keys():
                continue
            ms = {way: row["ms"]["median"] for way, row in ways.items()}
            table.append(
                [
                    model,
                    spaced(n),
                    *(number(ms[way]) for way in measure.WAYS),
                    percent(at["share"]) if (at := dense.get(model, {}).get(n)) else "–",
                    *(ratio(ways, way) for way in ("auto", "always")),
                    ways["auto"]["sparse_layers"],
                ]
            )
    return table


def ratio(ways: dict[str, dict], way: str) -> str:
    """Of a way's time to sdpa's, with its spread where turns tell it."""
    middle = f"{figure.over_sdpa(ways, way):.3f}"
    if "over_sdpa" not in ways[way]:
        return middle
    spread = (f"{ways[way]['over_sdpa'][end]:.2f}" for end in ("p10", "p90"))
    return f"{middle} [{'–'.join(spread)}]"


def coefficients(found: dict) -> list[list]:
    """A row for each way: ms of the host, and of each kind of work."""
    table = []
    for way in ("anchor", "dense", "masked"):
        if way in found:
            device = found[way]["device_ms"]
            shown = [number(device[name]) if name in device else "" for name in cost.ANCHOR_WORK]
            table.append([way, number(found[way]["host_ms"]), *shown])
    return table


def errors(calls: list[dict], found: dict) -> list[list]:
    """By way, of the lengths that were fitted and of those held out: relative errors."""
    table = []
    for way in ("anchor", "dense", "masked"):
        for held in (False, True):
            wrong = [
                abs(fit.predicted(row, found) / row["ms"]["median"] - 1)
                for row in calls
                if row["way"] == way and fit.held_out(row) == held
            ]
            if wrong:
                middle, high = (
                    torch.tensor(wrong).double().quantile(torch.tensor([0.5, 0.9]).double())
                )
                whose = "held out" if held else "fitted"
                shown = [f"{digits(100 * float(x), 1)} %" for x in (middle, high, max(wrong))]
                table.append([way, whose, len(wrong), *shown])
    return table


EXPERIMENT = Experiment(
    name="crossover",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="crossover/crossover.json",
    draw=figure.draw,
    options=measure.options,
    needs_cuda=True,
)
