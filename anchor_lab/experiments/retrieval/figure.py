"""Figures of the answers that methods find: who still answers, and which questions are lost."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from anchor_lab.analysis.intervals import wilson
from anchor_lab.drawing.style import ACCENT, INK, MAGNITUDE, STRIPE
from anchor_lab.experiments.retrieval.measure import DENSE, answerable_tasks

MARKS = ((STRIPE, "o"), (INK, "s"), (ACCENT, "D"))  # few pairs, a row's own density, many pairs


class Found(NamedTuple):
    """Answers of one row at one density, mean over tasks.

    Attributes:
        share: of the answers, that were found.
        low, high: ends of its 95 % Wilson interval for as many trials as there were prompts:
            answers of one prompt are not independent.
        kept: density; None for dense attention.
        by_task: share of the answers of each task.
    """

    share: float
    low: float
    high: float
    kept: float | None
    by_task: dict[str, float]


Answers = dict[str, dict[float | None, Found]]  # of each row by the density that it was set to


def data_answers(rows: Sequence[dict]) -> dict[int, Answers]:
    """Answers found, mean over the tasks that dense attention can do.

    Args:
        rows: of the results, each with "length", "row", "task", "density" (None where a row has
            its own), "right", "asked", "prompts", "kept".

    Returns:
        Of each length, in ascending order, and each row by density what it found. Rows that lack
        one of the tasks are left out.
    """
    answers: dict[int, Answers] = {}
    for length in sorted({row["length"] for row in rows}):
        can, grouped = answerable_tasks(rows, length), defaultdict(list)
        for row in rows:
            if row["length"] == length and row["task"] in can:
                grouped[row["row"], row["density"]].append(row)
        answers[length] = defaultdict(dict)
        for (name, density), found in grouped.items():
            if len(found) == len(can):
                by_task = {row["task"]: row["right"] / row["asked"] for row in found}
                share = sum(by_task.values()) / len(can)
                interval = wilson(share, sum(row["prompts"] for row in found))
                kept = None if name == DENSE else sum(row["kept"] for row in found) / len(can)
                answers[length][name][density] = Found(share, *interval, kept, by_task)
    return answers


def densities(*answers: Answers) -> list[float]:
    """All that rows were set to."""
    return sorted(
        {density for rows in answers for row in rows.values() for density in row} - {None}
    )


def draw_answers(data: Answers, ax) -> None:
    """Who still answers?"""
    import pandas as pd
    import seaborn as sns

    few, *many = densities(data)
    named = {few: f"{few:.0%} of the pairs", None: "density of its own"}
    named |= {density: f"{density:.0%} of the pairs" for density in many}
    # What seaborn is to show as an estimate with its interval are three numbers: their median is
    # the share, and they reach from one end of its interval to the other.
    points = [
        {"row": name, "density": named[density], "answers": value}
        for name, row in data.items()
        for density, found in row.items()
        for value in (found.share, found.low, found.high)
    ]
    colours, markers = zip(*MARKS[: len(named)], strict=True)
    sns.pointplot(
        pd.DataFrame(points),
        x="answers",
        y="row",
        hue="density",
        hue_order=list(named.values()),
        palette=list(colours),
        markers=list(markers),
        dodge=0.4,
        estimator="median",
        errorbar=("pi", 100),
        linestyle="none",
        markersize=4,
        err_kws={"linewidth": 1.4, "alpha": 0.6},
        ax=ax,
    )
    legend = {"ncols": len(named), "title": None, "handletextpad": 0, "columnspacing": 1}
    sns.move_legend(ax, "lower left", bbox_to_anchor=(-0.02, 1), **legend)
    ax.set(xlim=(-0.03, 1.03), xlabel="answers found, mean over tasks", ylabel=None)
    ax.grid(axis="y", color="#E5E5E5", lw=0.6)
    ax.set_axisbelow(True)


def data_tasks(answers: Answers, density: float) -> dict[str, dict[str, float]]:
    """Answers found by task.

    Args:
        answers: of one length.
        density: that the rows were set to; rows with a density of their own show that.

    Returns:
        Of each row the share of each task; none of a row that was not set to this density.
    """
    found = {name: row.get(density, row.get(None)) for name, row in answers.items()}
    return {name: one.by_task if one else {} for name, one in found.items()}


def draw_tasks(data: dict[str, dict[str, float]], ax) -> None:
    """Which questions are lost?"""
    import pandas as pd
    import seaborn as sns

    percent = 100 * pd.DataFrame(data).T
    look = {"cmap": MAGNITUDE, "vmin": 0, "vmax": 100, "cbar": False, "yticklabels": False}
    sns.heatmap(percent, annot=True, fmt=".0f", annot_kws={"size": 7}, ax=ax, **look)
    ax.set_xticklabels(percent, rotation=30, ha="right", rotation_mode="anchor")
    ax.set_xlabel("answers found, percent")
