"""The comparison of all methods as a page and a figure."""

from functools import partial
from pathlib import Path

from anchor_lab.experiments import store
from anchor_lab.experiments.compare import runs
from anchor_lab.experiments.compare.equal import BUDGETS, at_equal, budget_for, mean_curves
from anchor_lab.experiments.compare.figure import NAMES, comparison_figure
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import render

LEVEL, RECALL = 0.5, 0.95
TEXTS = {"document": "made-up prose", "retrieval": "prose with three numbers and a question"}
PLANTED = "planted"


def values(results: dict) -> dict:
    """What the page says: settings, and each method at equal budgets and at equal recall."""
    settings = results["settings"]
    curves = {text: curves_of(results, text) for text in settings}
    needed = {
        text: {budget: budget_for(found, budget, RECALL) for budget in BUDGETS}
        for text, found in curves.items()
    }
    ahead = {
        text: {budget: at_equal(curves[text], budget, LEVEL) for budget in BUDGETS}
        for text in TEXTS
    }
    return {
        "level": LEVEL,
        "recall": RECALL,
        "quick": settings["document"]["length"] < runs.LENGTH,
        "about": settings["document"],
        "heads": curves["document"]["heads"].iloc[0],
        "in_words": ahead["document"]["total_cost"].dropna().to_dict(),
        "budgets": [NAMES[budget] for budget in BUDGETS],
        "texts": [
            {
                "what": what,
                "length": settings[text]["length"],
                "ahead": _by_method(ahead[text], "density"),
                "needed": _by_method(needed[text], "density"),
            }
            for text, what in TEXTS.items()
        ],
        "planted": {
            **settings[PLANTED],
            "heads": curves[PLANTED]["heads"].iloc[0],
            "needed": _by_method(needed[PLANTED], "total_cost"),
        },
    }


def page(results: dict, path: Path) -> str:
    """The results as Markdown."""
    return render("compare/page.md.j2", name=path.stem, **values(results))


def curves_of(results: dict, text: str):
    """`mean_curves` of one input."""
    import pandas as pd

    return mean_curves(pd.DataFrame(row for row in results["rows"] if row["text"] == text))


def draw(results: dict):
    """All methods on the prose."""
    curves, about = curves_of(results, "document"), results["settings"]["document"]
    note = (
        f"Bundled model, {TEXTS['document']}, N = {about['length']}, groups of "
        f"{about['group_size']}; {curves['heads'].iloc[0]} heads."
    )
    return comparison_figure(curves, LEVEL, note)


def _by_method(columns: dict, order: str) -> dict[str, list[float]]:
    """Each method's value in every column, in the order of one of them."""
    return {name: [found[name] for found in columns.values()] for name in columns[order].index}


EXPERIMENT = Experiment(
    name="compare",
    about=runs.__doc__,
    measure=runs.measure,
    page=page,
    draw=draw,
    file="compare/compare.csv.gz",
    read=partial(store.read, text=runs.TEXT_COLUMNS),
)
