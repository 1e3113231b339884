"""The page about the real language model, and its picture."""

from pathlib import Path

from anchor_lab.analysis.intervals import wilson
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import digits, number, percent, render, spaced
from anchor_lab.experiments.smollm2 import figure, measure


def page(results: dict, path: Path) -> str:
    """The numbers as Markdown."""
    found = values(results)
    return render("smollm2/page.md.j2", picture=f"{path.stem}.png", **found)


def values(results: dict) -> dict:
    """What the template is filled with."""
    rows, settings = results["rows"], results["settings"]
    by_length, times = figure.data_lengths(rows), figure.data_times(rows)
    return {
        "settings": settings,
        "date": results["runs"][-1]["date"],
        "heads": [
            [
                spaced(n),
                f"{theta:g}",
                x["heads"],
                percent(x["density"]),
                percent(x["least"]),
                digits(x["recall"], 3),
                digits(x["recall_p10"], 3),
            ]
            for (n, theta), x in by_length.items()
        ],
        "times": [
            [
                spaced(n),
                *(number(x[way]) for way in ("cudnn", "sdpa", *measure_ways())),
                *(f"{x['cudnn'] / x[way]:.2f}" for way in measure_ways()),
            ]
            for n, x in times.items()
        ],
        "ways": list(measure.WAYS),
        "tails": measure_ways(),
        "answers": [
            [spaced(n), count, *(shown(found, count) for found in by_way)]
            for n, count, by_way in answers(rows)
        ],
    }


def measure_ways() -> list[str]:
    """The ways that are the method's, by their tail."""
    return [way for way, tail in measure.WAYS.items() if tail is not None]


def answers(rows: list[dict]) -> list[tuple[int, int, list[int]]]:
    """(length, prompts, found by each way) of each length; prompts that all ways had count."""
    found: dict[int, dict[int, dict[str, bool]]] = {}
    for row in rows:
        if row["part"] == "answers":
            of_length = found.setdefault(row["length"], {})
            of_length.setdefault(row["prompt"], {})[row["way"]] = row["found"]
    table = []
    for length, prompts in sorted(found.items()):
        whole = [ways for ways in prompts.values() if ways.keys() == measure.WAYS.keys()]
        if whole:
            right = [sum(ways[way] for ways in whole) for way in measure.WAYS]
            table.append((length, len(whole), right))
    return table


def shown(found: int, count: int) -> str:
    """Answers found, with their interval in percent."""
    low, high = wilson(found / count, count)
    return f"{found} ({100 * low:.0f}–{100 * high:.0f} %)"


EXPERIMENT = Experiment(
    name="smollm2",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="smollm2/smollm2.json",
    draw=figure.draw,
    options=measure.options,
)
