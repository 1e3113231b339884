"""The page about rows that are asked by themselves: loss, pairs, time and answers of each way."""

from pathlib import Path

from anchor_lab.experiments.answers.counts import ENOUGH, Counts, count, shown, together
from anchor_lab.experiments.equal_time import figure, measure
from anchor_lab.experiments.equal_time.ways import DENSE, RECALL, WAYS
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import digits, percent, render, signed, spaced


def page(results: dict, path: Path) -> str:
    """The numbers as Markdown."""
    return render("equal_time/page.md.j2", picture=f"{path.stem}.png", **values(results))


def values(results: dict) -> dict:
    """What the template is filled with."""
    rows = results["rows"]
    tables, texts = [], []
    for n in figure.data_lengths(rows):
        lines = figure.data_lines(rows, n)
        saved = {line.way: figure.data_saved(line, lines) for line in lines}
        texts = list(lines[0].losses) if lines else texts
        tables.append(
            {
                "length": spaced(n),
                "lines": [_line(line, saved[line.way]) for line in lines],
                "better": [
                    line.way
                    for line in lines
                    if not line.published and saved[line.way] and saved[line.way][1] > 0
                ],
            }
        )
    answers, telling = data_answers(rows)
    asked = {row["length"] for row in rows if row["part"] == measure.ANSWERS}
    return {
        "settings": results["settings"],
        "dates": list(dict.fromkeys(run["date"] for run in results["runs"])),
        "kernels": kernels_of_times(results),
        "recall": RECALL,
        "texts": texts,
        "tables": tables,
        "answers": answers,
        "telling": telling,
        "asked": " and ".join(spaced(n) for n in sorted(asked)),
    }


def kernels_of_times(results: dict) -> list[str]:
    """Versions of the kernels that were timed; more than one while a new one is measured."""
    timed = [row["run"] for row in results["rows"] if row["part"] == measure.TIMES]
    return list(dict.fromkeys(results["runs"][run]["kernels"] for run in timed))


def _line(line: figure.Line, saved: tuple[float, float, float] | None) -> list[str]:
    low, high = line.interval
    dash = line.published or saved is None
    return [
        line.way,
        f"{signed(line.lost)} ({signed(low)} to {signed(high)})",
        digits(line.density, 3),
        digits(line.ms, 3),
        percent(line.of_dense),
        "–" if dash else f"{signed(saved[0])} ({signed(saved[1])} to {signed(saved[2])})",
    ]


def data_found(rows: list[dict]) -> tuple[dict[str, Counts], list[str]]:
    """By way what is found of all telling tasks together; and those tasks."""
    tasks: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        if row["part"] == measure.ANSWERS:
            tasks.setdefault(row["text"], {})[row["way"]] = row["found"]
    tasks = {
        task: ways
        for task, ways in tasks.items()
        if sum(ways.get(DENSE.name, [])) >= ENOUGH * len(ways.get(DENSE.name, [0]))
    }
    found = {}
    for way in WAYS[1:]:
        asked = [ways for ways in tasks.values() if way.name in ways]
        if asked and len(asked) == len(tasks):
            found[way.name] = together([count(ways[DENSE.name], ways[way.name]) for ways in asked])
    return found, list(tasks)


def data_answers(rows: list[dict]) -> tuple[list[list[str]], list[str]]:
    """`data_found` as rows: way, found densely and so, lost, won."""
    by_way, tasks = data_found(rows)
    table = []
    for way, one in by_way.items():
        counts = (shown(found, one.prompts) for found in (one.dense, one.ours))
        table.append([way, *counts, str(one.lost), str(one.won)])
    return table, tasks


EXPERIMENT = Experiment(
    name="equal_time",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="equal_time/equal_time.json",
    draw=figure.draw,
    options=measure.options,
)
