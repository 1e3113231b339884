"""The page about RULER: each task's score with its interval, and what is lost and won."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from anchor_lab.analysis.intervals import wilson
from anchor_lab.experiments.benchmark import measure
from anchor_lab.experiments.benchmark.harness import TASKS
from anchor_lab.experiments.benchmark.measure import GROUP, WAYS, answerable, rows_of
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import render, spaced

OTHERS = tuple(way for way in WAYS if way != "dense")
NONE = "–"


@dataclass(frozen=True)
class Scores:
    """Of the same prompts, in the same order, what was found in one way and with dense attention.

    Attributes:
        dense, ours: a score in [0, 1] for each prompt; at least one.
    """

    dense: Sequence[float]
    ours: Sequence[float]

    @property
    def lost(self) -> int:
        """Prompts of which dense attention found more."""
        return sum(a > b for a, b in zip(self.dense, self.ours, strict=True))

    @property
    def won(self) -> int:
        """Prompts of which the other found more."""
        return sum(a < b for a, b in zip(self.dense, self.ours, strict=True))


def page(results: dict, _path: Path) -> str:
    """The numbers as Markdown."""
    return render("benchmark/page.md.j2", **values(results))


def in_short(results: dict) -> str:
    """What the page says, for docs/how-to/run_benchmarks.md."""
    rows = results["rows"]
    lines = []
    for n in sorted({row["length"] for row in rows}):
        for task, ways in data_scores(rows, n).items():
            lines.append([spaced(n), task, *_line(ways)])
    few = [
        f"{task} ({spaced(n)} tokens)"
        for n in sorted({row["length"] for row in rows})
        for task in data_few(rows, n)
    ]
    return render("benchmark/in_short.md.j2", **values(results), lines=lines, few=few)


def values(results: dict) -> dict:
    """What the template is filled with."""
    rows, runs = results["rows"], results["runs"]
    lengths = sorted({row["length"] for row in rows})
    return {
        "settings": results["settings"],
        "dates": list(dict.fromkeys(run["date"] for run in runs)),
        "commands": list(dict.fromkeys(run["command"] for run in runs)),
        "kernels": list(dict.fromkeys(run["kernels"] for run in runs if "kernels" in run)),
        "group": spaced(GROUP),
        "columns": [word for way in OTHERS for word in (way, "lost / won")],
        "lengths": [
            {
                "length": spaced(n),
                "telling": _telling(rows, n),
                "few": _few(rows, n),
                "seconds": data_seconds(rows, n),
                "unasked": [task for task in TASKS if task not in _tasks(rows, n)],
            }
            for n in lengths
        ],
    }


def data_scores(rows: list[dict], length: int) -> dict[str, dict[str, Scores]]:
    """By task and way, of tasks that dense attention answers often enough, asked in that way.

    A run that was stopped has asked some prompts in one way alone: only those that a way shares
    with dense attention count for it.
    """
    found = {}
    for task in _tasks(rows, length):
        dense = rows_of(rows, length, task, "dense")
        if not answerable(dense.values()):
            continue
        found[task] = {"dense": _pairs(dense, dense)}
        for way in OTHERS:
            if ours := rows_of(rows, length, task, way):
                found[task][way] = _pairs(dense, ours)
    return found


def data_few(rows: list[dict], length: int) -> dict[str, list[float]]:
    """Scores of dense attention by task, where they are too low for a loss to show."""
    dense = {task: rows_of(rows, length, task, "dense") for task in _tasks(rows, length)}
    return {
        task: [row["score"] for row in found.values()]
        for task, found in dense.items()
        if found and not answerable(found.values())
    }


def data_seconds(rows: list[dict], length: int) -> dict[str, float]:
    """Median time of a prompt and its answer by way, of prompts that were asked in every way."""
    by_prompt: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        if row["length"] == length:
            by_prompt.setdefault((row["task"], row["prompt"]), {})[row["way"]] = row["seconds"]
    whole = [found for found in by_prompt.values() if found.keys() == WAYS.keys()]
    return {way: median(found[way] for found in whole) for way in WAYS} if whole else {}


def together(found: Iterable[Scores]) -> Scores:
    """All prompts of several."""
    found = list(found)
    return Scores([x for one in found for x in one.dense], [x for one in found for x in one.ours])


def shown(scores: Sequence[float]) -> str:
    """The mean score in percent, with its 95 % Wilson interval and the number of prompts."""
    low, high = wilson(fmean(scores), len(scores))
    mean = f"{100 * fmean(scores):.0f} %"
    return f"{mean} of {len(scores)} ({100 * low:.0f}–{100 * high:.0f} %)"


def _telling(rows: list[dict], length: int) -> list[list[str]]:
    found = data_scores(rows, length)
    lines = []
    for task, ways in found.items():
        tokens = [row["tokens"] for row in rows_of(rows, length, task, "dense").values()]
        most = max(way.tail for way in WAYS.values())
        left = max(0, median(tokens) - GROUP - most)
        lines.append([task, spaced(median(tokens)), spaced(left), *_line(ways)])
    if len(found) > 1:
        ways = {
            way: together(ways[way] for ways in found.values() if way in ways)
            for way in WAYS
            if any(way in ways for ways in found.values())
        }
        lines.append(["*together*", "", "", *_line(ways)])
    return lines


def _line(ways: dict[str, Scores]) -> list[str]:
    cells = [shown(ways["dense"].dense)]
    for way in OTHERS:
        one = ways.get(way)
        cells += [shown(one.ours), f"{one.lost} / {one.won}"] if one else [NONE, NONE]
    return cells


def _few(rows: list[dict], length: int) -> list[str]:
    return [f"{task}: {shown(scores)}" for task, scores in data_few(rows, length).items()]


def _tasks(rows: list[dict], length: int) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows if row["length"] == length))


def _pairs(dense: dict[int, dict], ours: dict[int, dict]) -> Scores:
    shared = sorted(dense.keys() & ours.keys())
    return Scores([dense[at]["score"] for at in shared], [ours[at]["score"] for at in shared])


EXPERIMENT = Experiment(
    name="benchmark",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="benchmark/benchmark.json",
    options=measure.options,
)
