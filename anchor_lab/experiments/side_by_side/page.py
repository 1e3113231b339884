"""The page on which all kernels stand side by side."""

from collections.abc import Sequence
from pathlib import Path

from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import digits, number, percent, render, spaced
from anchor_lab.experiments.side_by_side import figure, measure
from anchor_lab.experiments.side_by_side.executors import BLOCKS
from anchor_lab.experiments.side_by_side.ladders import KNOBS, OURS
from anchor_lab.experiments.side_by_side.made_for import PART
from anchor_lab.experiments.side_by_side.timing import fastest

WITHOUT_TAIL = "tail 0"  # the way of ours that its recall, loss and pairs are of
NAMES = {
    "SpargeAttention": "SpargeAttn's selection",
    "AnchorBlocks": "AnchorAttention by blocks",
    "BlockTopK": "*oracle: blocks by mass, a number*",
    "BlockTopCdf": "*oracle: blocks by mass, a share*",
    measure.DENSE: "dense",
    measure.SAME_BLOCKS: "the same blocks",
}


def page(results: dict, path: Path) -> str:
    """The numbers as Markdown."""
    return render("side_by_side/page.md.j2", picture=f"{path.stem}.png", **values(results))


def values(results: dict) -> dict:
    """What the template is filled with."""
    rows, runs = results["rows"], results["runs"]
    return {
        "settings": results["settings"],
        "date": runs[-1]["date"],
        "packages": packages(runs),
        "planted": planted(rows),
        "made_for": input_tables(rows),
        "recalls": equal_recall(rows),
        "losses": equal_loss(rows),
        "measured_losses": measured_losses(rows),
        "executed": executed(rows),
        "left_out": [name for name in BLOCKS if name not in {row.get("way") for row in rows}],
        "gaps": gaps(rows),
    }


def packages(runs: Sequence[dict]) -> dict[str, str]:
    """Versions of the packages that are not this project's, of the last run that had each."""
    found: dict[str, str] = {}
    for run in runs:
        found |= {
            name: version
            for name, version in run["packages"].items()
            if version != "absent" or name not in found
        }
    return found


def planted(rows: Sequence[dict]) -> list[dict]:
    """For each shape: lengths, and by way what its calls took and how wrong they were."""
    of_part = [row for row in rows if row["part"] == "planted"]
    tables = []
    for heads in dict.fromkeys(map(figure.heads_of, of_part)):
        own = [row for row in of_part if figure.heads_of(row) == heads]
        lengths = sorted({row["n"] for row in own})
        ways: dict[tuple[str, str], dict[int, dict]] = {}
        for row in own:
            ways.setdefault((row["method"], row["way"]), {})[row["n"]] = row
        found = [(call(*way), [cells.get(n) for n in lengths]) for way, cells in ways.items()]
        tables.append(
            {
                "heads": "{} / {} heads of {}".format(*heads),
                "lengths": [f"N = {spaced(n)}" for n in lengths],
                "times": [[name, *map(milliseconds, cells)] for name, cells in found],
                "densities": [
                    [name, *(shown(x, "density", percent) for x in cells)] for name, cells in found
                ],
                "errors": [
                    [name, *(shown(x, "error", "{:.2g}".format) for x in cells)]
                    for name, cells in found
                ],
            }
        )
    return tables


def input_tables(rows: Sequence[dict]) -> list[dict]:
    """For each input and length: a line for each call, by blocks with the fastest to run them."""
    tables = []
    of_part = [row for row in rows if row["part"] == PART]
    for source, n in dict.fromkeys((row["source"], row["n"]) for row in of_part):
        here = [row for row in of_part if (row["source"], row["n"]) == (source, n)]
        found = []
        for method, alpha in dict.fromkeys((row["method"], row.get("setting")) for row in here):
            best = fastest([r for r in here if (r["method"], r.get("setting")) == (method, alpha)])
            if best is None:
                continue
            scored = best.get("scored")
            found.append(
                [
                    NAMES.get(method, method) if alpha is None else f"{method}, α = {alpha:g}",
                    "its own kernels" if method == OURS else best["way"],
                    percent(best["density"]),
                    "–" if scored is None else percent(scored),
                    milliseconds(best),
                    f"{best['error']:.2g}",
                ]
            )
        tables.append({"title": f"{source[0].upper()}{source[1:]}, {spaced(n)} tokens",
                       "lines": found})  # fmt: skip
    return tables


def call(method: str, way: str) -> str:
    """What a call is named in a table."""
    if method == OURS:
        return f"**{OURS}, {way}**"
    return f"{way}, {NAMES.get(method, method)}"


def milliseconds(row: dict | None) -> str:
    """Median and range of a row; its status where it has none, a dash where there is no row."""
    if row is None or row["status"] != "ok":
        return "–" if row is None else row["status"]
    ms = row["ms"]
    return f"{number(ms['median'])} [{number(ms['p10'])}–{number(ms['p90'])}]"


def shown(row: dict | None, field: str, how) -> str:
    """A field of a row that was measured; a dash elsewhere."""
    return how(row[field]) if row is not None and row["status"] == "ok" else "–"


def equal_recall(rows: Sequence[dict]) -> list[dict]:
    """For each source and recall: a line a method, with the fastest way to run it."""
    tables = []
    own = [row for row in rows if row["part"] == "recall" and row.get("goal")]
    for source, n, goal in dict.fromkeys((r["source"], r["n"], r["goal"]) for r in own):
        here = [r for r in own if (r["source"], r["n"], r["goal"]) == (source, n, goal)]
        title = f"{source}, {spaced(n)} tokens, {goal}"
        tables.append({"title": title, "lines": [*dense(rows, "recall", source), *lines(here)]})
    return tables


def dense(rows: Sequence[dict], part: str, source: str) -> list[list]:
    """The fastest dense attention on these activations."""
    return lines(
        [
            row
            for row in rows
            if (row["part"], row.get("source"), row.get("method")) == (part, source, measure.DENSE)
        ]
    )


def lines(rows: Sequence[dict]) -> list[list]:
    """Method, knob, recall, pairs, pairs scored, who ran it fastest, ms, error; two for ours.

    Ours was chosen, its recall and pairs measured, without a tail: of the line with one a dash.
    """
    table = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        for best in own if method == OURS else [fastest(own) or own[0]]:
            name = call(method, best["way"]) if method == OURS else NAMES.get(method, method)
            knob = f"{KNOBS[method]} {best['knob']:g}" if "knob" in best else ""
            chosen = method != OURS or best["way"] == WITHOUT_TAIL
            table.append(
                [
                    name,
                    knob,
                    digits(best.get("recall") if chosen else None, 3),
                    percent(best["density"]) if chosen and "density" in best else "–",
                    percent(best["scored"]) if "scored" in best else "",
                    "its own kernels" if method == OURS else ran(best),
                    milliseconds(best),
                    shown(best, "error", "{:.2g}".format),
                ]
            )
    return table


def ran(row: dict) -> str:
    """Who ran a row."""
    return row["way"] if row["status"] == "ok" else "nobody"


def equal_loss(rows: Sequence[dict]) -> list[dict]:
    """For each goal: a line a method, means over the layers that all of its calls ran on."""
    own = [row for row in rows if row["part"] == "equal_loss"]
    lost = {
        (row["method"], row["setting"]): row
        for row in rows
        if row["part"] == "loss" and row["status"] == "ok"
    }
    layers = list(dict.fromkeys(row["source"] for row in own if row.get("method")))
    tables = []
    for goal in dict.fromkeys(row["goal"] for row in own if row.get("goal")):
        found = []
        for method in dict.fromkeys(r["method"] for r in own if r.get("goal") == goal):
            of_method = [r for r in own if (r.get("goal"), r["method"]) == (goal, method)]
            ways = dict.fromkeys(r["way"] for r in of_method) if method == OURS else [None]
            found += [mean_line(of_method, method, way, layers, lost) for way in ways]
        tables.append({"title": goal, "lines": [mean_dense(own, layers), *found]})
    return tables


def mean_line(rows, method: str, way: str | None, layers: Sequence[str], lost: dict) -> list:
    """Method, knob, loss, pairs, who ran it, mean ms of the fastest way in each layer.

    Loss and pairs of ours were measured without a tail: of the line with one a dash.
    """
    rows = [row for row in rows if way in (None, row["way"])]
    best = [fastest([row for row in rows if row["source"] == layer]) for layer in layers]
    name = call(method, way) if way else NAMES.get(method, method)
    if not rows or None in best:
        status = rows[0]["status"] if rows else "–"
        return [name, "", "–", "–", "nobody", status]
    setting = best[0]["knob"]
    row, chosen = lost[method, setting], way in (None, WITHOUT_TAIL)
    who = ", ".join(dict.fromkeys(x["way"] for x in best))
    return [
        name,
        f"{KNOBS[method]} {setting:g}",
        f"{row['loss']:.4f}" if chosen else "–",
        percent(sum(x["density"] for x in best) / len(best)) if chosen else "–",
        "its own kernels" if way else who,
        number(sum(x["ms"]["median"] for x in best) / len(best)),
    ]


def mean_dense(rows, layers: Sequence[str]) -> list:
    """The fastest dense attention in each layer."""
    own = [row for row in rows if row.get("method") == measure.DENSE]
    best = [fastest([row for row in own if row["source"] == layer]) for layer in layers]
    if None in best or not best:
        return ["dense", "", "0", "100 %", "nobody", "–"]
    who = ", ".join(dict.fromkeys(x["way"] for x in best))
    mean = sum(x["ms"]["median"] for x in best) / len(best)
    return ["dense", "", "0", "100 %", who, number(mean)]


def measured_losses(rows: Sequence[dict]) -> list[list]:
    """Method, setting, nats above dense attention's, pairs kept; as they were looked for."""
    return [
        [NAMES.get(row["method"], row["method"]), f"{row['setting']:g}", f"{row['loss']:+.4f}",
         percent(row["kept"])]
        for row in rows
        if row["part"] == "loss" and row["status"] == "ok" and row["setting"] is not None
    ]  # fmt: skip


def executed(rows: Sequence[dict]) -> list[str]:
    """The block-sparse kernels that ran at all, in the order in which they are tried."""
    there = {row["way"] for row in rows if row["status"] == "ok" and "wrong" in row}
    return [way for way in BLOCKS if way in there]


def gaps(rows: Sequence[dict]) -> list[list]:
    """Way, parts, what it was to run, how many rows, and the message, by what failed."""
    measured = {row["part"] for row in rows if row["status"] == "ok" and row.get("method")}
    found: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        # A model that was not there, and later was, is no gap.
        if row["status"] not in ("ok", "out of reach") and (
            row.get("way") or row["part"] not in measured
        ):
            found.setdefault((row.get("way") or "the model", row["message"]), []).append(row)
    return [
        [
            way,
            ", ".join(dict.fromkeys(row["part"] for row in own)),
            ", ".join(dict.fromkeys(NAMES.get(m, m) for row in own if (m := row.get("method")))),
            len(own),
            message.replace("|", "\\|"),
        ]
        for (way, message), own in found.items()
    ]


EXPERIMENT = Experiment(
    name="side_by_side",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="side_by_side/side_by_side.json",
    draw=figure.draw,
    options=measure.options,
)
