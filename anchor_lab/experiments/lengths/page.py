"""The page about lengths: what heads keep and lose, what the model reads, how long it takes."""

from pathlib import Path
from statistics import median

from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.lengths import figure, measure, prefills
from anchor_lab.experiments.page import digits, number, percent, render, spaced

THETA = prefills.THETA


def page(results: dict, path: Path) -> str:
    """The numbers as Markdown."""
    return render("lengths/page.md.j2", picture=f"{path.stem}.png", **values(results))


def values(results: dict) -> dict:
    """What the template is filled with."""
    rows, settings = results["rows"], results["settings"]
    found = figure.data_heads(rows, settings["thetas"])
    texts = figure.data_texts(rows, settings["thetas"], THETA)
    reads, times = figure.data_reads(rows), figure.data_times(rows)
    return {
        "settings": settings,
        "dates": list(dict.fromkeys(run["date"] for run in results["runs"])),
        "theta": f"{THETA:g}",
        "blocks": measure.BLOCKS,
        "gain": gain(found),
        "heads": [_heads(n, x, theta) for n, x in found.items() for theta in x["thetas"]],
        "common": next(iter(found.values()))["texts"] if found else [],
        "texts": [
            [spaced(n), text, *_four(x)]
            for n, by_text in texts.items()
            for text, x in by_text.items()
        ],
        "eighths": [f"{part}/8" for part in range(1, measure.EIGHTHS + 1)],
        "reads": [
            [spaced(n), text, way, *(digits(x, 2) for x in row[way])]
            for n, by_text in reads.items()
            for text, row in by_text.items()
            for way in ("whole", "pieces")
            if row[way] is not None
        ],
        "beyond": [
            n for n, x in reads.items() if any(y["pieces"] is not None for y in x.values())
        ],
        "worse": [
            f"{text} of {spaced(n)} tokens"
            for n, texts in figure.data_worse(rows).items()
            for text in texts
        ],
        "times": [_times(n, ways) for n, ways in times.items()],
        "ways": list(prefills.WAYS),
        "in_attention": [f"in attention, {way.partition(',')[0]}" for way in prefills.WAYS],
        "backends": backends(times),
        "layers": layers(times),
        "gaps": [
            [spaced(row["length"]), row["way"], row["message"].replace("|", "\\|")]
            for row in rows
            if row["part"] == "times" and row["status"] != "ok"
        ],
    }


def _heads(n: int, x: dict, theta: float | None) -> list[str]:
    one = x["thetas"][theta]
    return [
        spaced(n),
        "no stripes" if theta is None else f"{theta:g}",
        percent(one["density"]),
        percent(one["density_most"]),
        *(digits(one[name], 3) for name in ("recall", "recall_p10", "recall_least")),
        *(digits(one[name], 3) for name in ("error", "error_most")),
    ]


def _four(x: dict) -> list[str]:
    return [percent(x["density"]), *(digits(x[name], 3) for name in figure.MEASURES[1:])]


def gain(found: dict[int, dict]) -> dict | None:
    """Pairs kept and recall at the shortest and the longest length, at the published θ."""
    if len(found) < 2:
        return None
    short, long = min(found), max(found)
    low, high = (found[n]["thetas"][THETA] for n in (short, long))
    return {
        "short": spaced(short),
        "long": spaced(long),
        "kept": [percent(x["density"]) for x in (low, high)],
        "recall": [digits(x["recall"], 3) for x in (low, high)],
        "less": low["density"] > high["density"],
    }


def _times(n: int, ways: dict[str, dict]) -> list[str]:
    ms = {way: x["whole_ms"]["median"] for way, x in ways.items()}
    dense = [ms[way] for way in (prefills.SDPA, prefills.CUDNN) if way in ms]
    ratio = min(dense) / ms[prefills.OURS] if dense and prefills.OURS in ms else None
    return [
        spaced(n),
        *(number(ms[way]) if way in ms else "–" for way in prefills.WAYS),
        digits(ratio, 2),
        *(percent(ways[way]["share"]) if way in ways else "–" for way in prefills.WAYS),
    ]


def backends(times: dict[int, dict[str, dict]]) -> list[str]:
    """What PyTorch chose: "NAME (lengths)"."""
    found: dict[str, list[str]] = {}
    for n, ways in times.items():
        if prefills.SDPA in ways:
            found.setdefault(ways[prefills.SDPA]["backend"], []).append(spaced(n))
    return [f"{name} ({', '.join(lengths)})" for name, lengths in found.items()]


def layers(times: dict[int, dict[str, dict]]) -> list[list[str]]:
    """Length, way, and of its layers' attention the least, the median and the most, ms."""
    table = []
    for n, ways in times.items():
        for way, row in ways.items():
            of_layers = row["layers_ms"]
            told = (min(of_layers), median(of_layers), max(of_layers))
            table.append([spaced(n), way, *(number(x) for x in told)])
    return table


EXPERIMENT = Experiment(
    name="lengths",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="lengths/lengths.json",
    draw=figure.draw,
    options=measure.options,
)
