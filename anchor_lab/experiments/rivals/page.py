"""The page about rivals: what a recall costs each method, at each length."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from anchor_lab.experiments import store
from anchor_lab.experiments.compare.equal import BUDGETS
from anchor_lab.experiments.compare.figure import NAMES, ORACLES, OURS, VARIANTS
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import digits, percent, render, spaced
from anchor_lab.experiments.rivals import figure, measure

LEVELS = (0.35, 0.5)  # of the pairs, at which recall is read off


def page(results: dict, path: Path) -> str:
    """The numbers as Markdown."""
    return render("rivals/page.md.j2", picture=f"{path.stem}.png", **values(results))


def values(results: dict) -> dict:
    """What the template is filled with."""
    rows = results["rows"]
    return {
        "settings": results["settings"],
        "recalls": [f"{recall:g}" for recall in figure.RECALLS],
        "levels": [f"{level:g}" for level in LEVELS],
        "budgets": [NAMES[budget] for budget in BUDGETS],
        "lengths": [of_length(rows, n) for n in figure.data_lengths(rows)],
    }


def of_length(rows: list[dict], n: int) -> dict:
    """Everything about one length."""
    curves = figure.data_curves(rows, n)
    needed = {budget: figure.data_needed(curves, budget) for budget in BUDGETS}
    own = [row for row in rows if row["length"] == n]
    texts = list(dict.fromkeys(row["text"] for row in own))
    reached = [figure.data_reached(curves, "density", level) for level in LEVELS]
    by_text = {
        text: figure.data_needed(figure.data_curves(rows, n, text), "density") for text in texts
    }
    reach = published(name for name, x in needed["density"].items() if x[0] == x[0])
    return {
        "n": spaced(n),
        "cells": int(curves["cells"].max()),
        "layers": len({row["layer"] for row in own}),
        "texts": texts,
        "place": reach.index(OURS) + 1 if OURS in reach else None,
        "of": len(reach),
        "ahead": reach[: reach.index(OURS)] if OURS in reach else reach,
        "ends": [
            f"{name} ({digits(end, 3)})"
            for name, (end, _) in figure.data_ends(curves).items()
            if end < figure.RECALLS[-1]
        ],
        "needed": [
            [name, kind_of(name), *(digits(x, 3) for b in BUDGETS for x in needed[b][name])]
            for name in needed["density"]
        ],
        "reached": [
            [name, *(digits(x, 3) for one in reached for x in one[name])] for name in reached[0]
        ],
        "by_text": [
            [name, *(digits(x, 3) for text in texts for x in by_text[text].get(name, ()))]
            for name in needed["density"]
        ],
        "ours": [
            [row["configuration"], percent(row["density"]), percent(row["total_cost"]),
             *(digits(row[x], 3) for x in ("recall_mean", "recall_p10", "recall_least")),
             digits(row["output_error"], 3)]
            for _, row in curves[curves["method"] == OURS].iterrows()
        ],
    }  # fmt: skip


def kind_of(method: str) -> str:
    """What stands behind a method: somebody's publication, a variant of ours, nothing but all
    scores."""
    if method in ORACLES:
        return "oracle"
    if method in VARIANTS or method == "SALEFloat":
        return "variant"
    return "dense" if method == "Dense" else "published"


def published(names: Iterable[str]) -> list[str]:
    """The methods among them that somebody published, in their order."""
    return [name for name in names if kind_of(name) == "published"]


EXPERIMENT = Experiment(
    name="rivals",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="rivals/rivals.csv.gz",
    draw=figure.draw,
    options=measure.options,
    read=partial(store.read, text=measure.TEXT_COLUMNS),
)
