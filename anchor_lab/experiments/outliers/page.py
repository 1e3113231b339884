"""The page about outlier rows: what each variant loses, spends, and saves beside the method."""

from pathlib import Path

from anchor_lab.experiments.answers.counts import ENOUGH, count, shown, together
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.outliers import figure, measure
from anchor_lab.experiments.page import digits, percent, render, signed, spaced


def page(results: dict, path: Path) -> str:
    """The numbers as Markdown."""
    return render("outliers/page.md.j2", picture=f"{path.stem}.png", **values(results))


def values(results: dict) -> dict:
    """What the template is filled with."""
    rows = results["rows"]
    tables = []
    for n in figure.data_lengths(rows):
        lines = figure.data_lines(rows, n)
        saved = {line.variant: figure.data_saved(line, lines) for line in lines}
        tables.append(
            {
                "length": spaced(n),
                "texts": list(lines[0].losses) if lines else [],
                "lines": [_line(line, saved[line.variant]) for line in lines],
                "by_text": [
                    [line.variant, *(signed(_mean(runs)) for runs in line.losses.values())]
                    for line in lines
                ],
                "better": [
                    line.variant
                    for line in lines
                    if line.part != figure.PAPER
                    and (found := saved[line.variant]) is not None
                    and found[1] > 0
                ],
            }
        )
    return {
        "settings": results["settings"],
        "dates": list(dict.fromkeys(run["date"] for run in results["runs"])),
        "tables": tables,
        "calibrated": data_calibrated(rows),
        "answers": data_answers(rows),
        "few": data_few(rows),
    }


def _line(line: figure.Line, saved: tuple[float, float, float] | None) -> list[str]:
    low, high = line.interval
    paper = line.part == figure.PAPER
    return [
        line.part,
        line.variant,
        f"{signed(line.lost)} ({signed(low)} to {signed(high)})",
        digits(line.density, 3),
        digits(line.recall, 4),
        percent(line.cost),
        "–"
        if paper or saved is None
        else f"{signed(saved[0])} ({signed(saved[1])} to {signed(saved[2])})",
    ]


def data_calibrated(rows: list[dict]) -> list[list[str]]:
    """Length, variant, and the least, mean and largest θ of a head."""
    found = []
    for row in rows:
        if row["part"] == measure.THETAS:
            thetas = [theta for layer in row["thetas"] for theta in layer]
            ends = (min(thetas), _mean(thetas), max(thetas))
            found.append([spaced(row["length"]), row["variant"], *(digits(x, 1) for x in ends)])
    return found


def _answers(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """By task and way."""
    found: dict[str, dict[str, dict]] = {}
    for row in rows:
        if row["part"] == measure.ANSWERS:
            found.setdefault(row["text"], {})[row["variant"]] = row
    return {task: ways for task, ways in found.items() if measure.DENSE in ways}


def _telling(ways: dict[str, dict]) -> bool:
    dense = ways[measure.DENSE]["found"]
    return sum(dense) >= ENOUGH * len(dense)


def data_few(rows: list[dict]) -> list[str]:
    """The tasks that dense attention itself seldom answers."""
    return [task for task, ways in _answers(rows).items() if not _telling(ways)]


def data_answers(rows: list[dict]) -> list[list[str]]:
    """Way, pairs kept, found densely and in this way, lost, won: all telling tasks together."""
    tasks = {task: ways for task, ways in _answers(rows).items() if _telling(ways)}
    names = dict.fromkeys(name for ways in tasks.values() for name in ways)
    table = []
    for name in names:
        asked = [ways for ways in tasks.values() if name in ways]
        if name == measure.DENSE or len(asked) < len(tasks):
            continue
        one = together(
            [count(ways[measure.DENSE]["found"], ways[name]["found"]) for ways in asked]
        )
        table.append(
            [
                name,
                digits(_mean([ways[name]["density"] for ways in asked]), 3),
                *(shown(found, one.prompts) for found in (one.dense, one.ours)),
                str(one.lost),
                str(one.won),
            ]
        )
    return table


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


EXPERIMENT = Experiment(
    name="outliers",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="outliers/outliers.json",
    draw=figure.draw,
    options=measure.options,
)
