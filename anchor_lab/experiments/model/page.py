"""The model card: what the log of the training and the evaluation say."""

import json
from pathlib import Path
from statistics import mean, median_high

from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.model import measure
from anchor_lab.experiments.model.heads import RETRIEVES
from anchor_lab.experiments.page import digits, listed, render

PROBES = ("bits_per_byte", "recall_pairs", "copies", "needle_digits", "key_value_digits")


def page(results: dict, _path: Path) -> str:
    """The card as Markdown."""
    settings, runs, rows = results["settings"], results["runs"], results["rows"]
    log, resumed = read_log(Path(settings["log"]))
    parts = {part: measure.part_of(rows, part) for part in measure.PARTS}
    longest = settings["lengths"][-1]
    heads = [row for row in parts["heads"] if row["length"] == longest]
    (text,), (beyond,) = parts["text"], parts["beyond"]
    return render(
        "model/page.md.j2",
        **settings,
        longest=longest,
        start=next(entry for entry in log if entry.get("event") == "start"),
        end=[entry for entry in log if "tokens" in entry][-1],
        resumed=resumed,
        stages=stages(log),
        probes=PROBES,
        curves=curves(log),
        run=runs[text["run"]],
        text=text,
        induction={row["length"]: digits(row["share"], 3) for row in parts["induction"]},
        needles=accuracy(parts["needles"]),
        controls=accuracy(parts["controls"]),
        heads=of_heads(heads),
        depths=[f"depth {depth}" for depth in parts["anchor"][0]["by_depth"]],
        anchor=[
            [cell["task"], cell["length"], _percent(cell["dense_accuracy"])]
            + [_percent(share) for share in (cell["accuracy"], *cell["by_depth"].values())]
            for cell in parts["anchor"]
        ],
        case=parts["causes"][0],
        causes=[
            [cell["sparse"], _percent(cell["accuracy"]), digits(cell["density"], 2)]
            for cell in parts["causes"]
        ],
        beyond=beyond,
        beyond_device=runs[beyond["run"]]["device"],
    )


def read_log(path: Path) -> tuple[list[dict], int]:
    """Entries that led to the final weights, and how often the run was resumed.

    A run that is resumed goes back to its last checkpoint. What the log holds of the time after
    that checkpoint belongs to steps that were lost, and is left out.
    """
    kept: list[dict] = []
    resumed = 0
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry.get("event") == "resumed":
            resumed += 1
            kept = [old for old in kept if old.get("step", 0) <= entry["step"]]
            kept = [old for old in kept if old["clock"] <= entry["clock"]]
        kept.append(entry)
    return kept, resumed


def stages(log: list[dict]) -> list[list]:
    """Lengths, time, tokens, speed and last losses of each stage."""
    rows = []
    steps = [entry for entry in log if "shape" in entry]
    for stage in sorted({entry["stage"] for entry in steps}):
        own = [entry for entry in steps if entry["stage"] == stage]
        first, last = own[0], own[-1]
        speeds = [entry["tokens_per_second"] for entry in own]
        rows.append(
            [
                stage,
                listed([str(n) for n in sorted({entry["shape"][1] - 1 for entry in own})]),
                f"{first['clock']:.0f}-{last['clock']:.0f}",
                f"{(last['tokens'] - first['tokens']) / 1e6:.0f} M",
                f"{median_high(speeds) / 1e6:.2f} M",
                last["text"],
                last["answer"],
            ]
        )
    return rows


def curves(log: list[dict]) -> list[list]:
    """The probes, in order of time; a probe that was not made yet is empty."""
    return [
        [digits(entry["clock"], 0), entry["stage"], entry["length"]]
        + [entry.get(name, "") for name in PROBES]
        for entry in log
        if entry.get("event") == "probe"
    ]


def accuracy(cells: list[dict]) -> dict[str, list]:
    """Shares right with their intervals, percent: a row for each task, a column a length."""
    lengths = sorted({cell["length"] for cell in cells})
    found = {(cell["task"], cell["length"]): _interval(cell) for cell in cells}
    tasks = dict.fromkeys(cell["task"] for cell in cells)
    return {
        "header": ["task", *lengths],
        "rows": [[task, *(found.get((task, n), "") for n in lengths)] for task in tasks],
    }


def of_heads(rows: list[dict]) -> dict:
    """What the heads do, counted."""
    retrieval = [row for row in rows if row["needle"] >= RETRIEVES]
    names = ("max_anchor", "recall@12", "density@12")
    return {
        "count": len(rows),
        "sinks": sum(row["sink"] > 0.3 for row in rows),
        "strongest": max(rows, key=lambda row: row["sink"]),
        "retrieval": [
            f"layer {row['layer']} head {row['head']} ({row['needle']:.2f})" for row in retrieval
        ],
        **{name.split("@")[0]: mean(row[name] for row in rows) for name in names},
    }


def _percent(share: float, decimals: int = 0) -> str:
    return f"{100 * share:.{decimals}f}"


def _interval(cell: dict) -> str:
    share, low, high = (_percent(x, 1) for x in (cell["accuracy"], *cell["interval"]))
    return f"{share} ({low}-{high})"


EXPERIMENT = Experiment(
    name="model",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="model/evaluation.json",
    options=measure.options,
    page_file=Path("anchor_models/model/README.md"),
)
