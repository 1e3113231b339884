"""The page about losses: at equal pairs and at equal work, by text and by token."""

from math import isnan
from pathlib import Path

from anchor_lab.experiments import store
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.lengths.figure import data_worse
from anchor_lab.experiments.losses import figure, measure
from anchor_lab.experiments.losses.figure import Lost
from anchor_lab.experiments.losses.finished import finished_rows, unfinished
from anchor_lab.experiments.losses.tokens import CLASSES
from anchor_lab.experiments.page import digits, percent, render, signed, spaced
from anchor_lab.experiments.rivals.page import kind_of, published

BUDGETS = {"density": "pairs kept", "total_cost": "total cost"}


def page(results: dict, path: Path) -> str:
    """The numbers as Markdown."""
    lengths = store.read_beside(path, {"lengths": "lengths/lengths.json"}).get("lengths")
    return render("losses/page.md.j2", picture=f"{path.stem}.png", **values(results, lengths))


def values(results: dict, lengths: dict | None = None) -> dict:
    """What the template is filled with.

    Args:
        results: of this experiment.
        lengths: of `python -m anchor_lab lengths`, which tells whether texts of such a length are
            read at all; None where there are none.
    """
    rows, settings = finished_rows(results["rows"]), results["settings"]
    texts = list(settings["texts"])
    ours = sorted((x for x in rows if x["method"] == OURS), key=lambda x: x["density"])
    alone = {row["method"] for row in rows} <= {measure.DENSE, OURS}
    goals = [
        theta
        for theta in measure.GOALS
        if not alone and figure.data_level(rows, "density", theta) is not None
    ]
    return {
        "settings": settings,
        "begun": unfinished(results["rows"]),
        "dates": list(dict.fromkeys(run["date"] for run in results["runs"])),
        "tokens": spaced(settings["tokens"]),
        "stretched": stretched(settings),
        "worse": unread(settings, lengths),
        "texts": texts,
        "read": figure.in_words(texts),
        "dense": dense(rows, texts),
        "worst": percent(measure.WORST),
        "classes": list(CLASSES),
        "eighths": [f"{at}/{measure.EIGHTHS}" for at in range(1, measure.EIGHTHS + 1)],
        "ours": [
            [row["configuration"], percent(row["density"]), percent(row["total_cost"]),
             *lost_in(figure.data_lost(row), texts)]
            for row in ours
        ],
        "levels": [of_level(rows, theta, budget, texts) for theta in goals for budget in BUDGETS],
        "tokens_lost": [
            {
                "theta": f"{theta:g}",
                "lines": by_token(rows, theta),
                "eighths": by_eighth(rows, theta, settings["tokens"]),
            }
            for theta in goals
        ],
    }  # fmt: skip


def stretched(settings: dict) -> str | None:
    """Positions that the model was trained on, where the texts are longer; else None."""
    trained = settings.get("positions")
    return spaced(trained) if trained is not None and trained < settings["tokens"] else None


def unread(settings: dict, lengths: dict | None) -> list[str]:
    """Of the texts of losses, those that the model reads worse at once than in pieces.

    Args:
        settings: of a result of this experiment.
        lengths: results of `python -m anchor_lab lengths`; None where there are none.
    """
    found = {} if lengths is None else data_worse(lengths["rows"])
    return [text for text in found.get(settings["tokens"], ()) if text in settings["texts"]]


def lost_in(lost: Lost, texts: list[str]) -> list[str]:
    """Mean with its interval, then by text."""
    low, high = lost.interval
    return [
        f"{signed(lost.mean)} ({signed(low)} to {signed(high)})",
        *(signed(lost.by_text[text]) for text in texts),
    ]


def dense(rows: list[dict], texts: list[str]) -> list[list[str]]:
    """Text, dense loss, and of its tokens the share of each class."""
    row = next((x for x in rows if x["method"] == measure.DENSE), None)
    if row is None:
        return []
    table = []
    for text in texts:
        count = sum(row["counts"][text])
        shares = [percent(x / count) for x in row["counts"][text]]
        table.append([text, digits(sum(row["classes"][text]) / count, 3), *shares])
    return table


def of_level(rows: list[dict], theta: float, budget: str, texts: list[str]) -> dict:
    """All methods where they spend what AnchorAttention spends at θ."""
    level = figure.data_level(rows, budget, theta)
    found = figure.data_at(rows, budget, level)
    ranked = published(name for name, lost in found.items() if lost is not None)
    own = found[OURS].interval
    return {
        "theta": f"{theta:g}",
        "budget": BUDGETS[budget],
        "level": percent(level),
        "place": ranked.index(OURS) + 1,
        "of": len(ranked),
        # Whose interval lies below ours, and above it.
        "less": [x for x in ranked if found[x].interval[1] < own[0]],
        "more": [x for x in ranked if found[x].interval[0] > own[1]],
        "lines": [
            [name, kind_of(name), percent(lost.density), percent(lost.total_cost),
             *lost_in(lost, texts)]
            for name, lost in found.items()
            if lost is not None
        ],
        "out": [name for name, lost in found.items() if lost is None],
    }  # fmt: skip


def by_token(rows: list[dict], theta: float) -> list[list[str]]:
    """By method, for as many pairs: nats a token of each class, their shares, and the worst's."""
    found = figure.data_at(rows, "density", figure.data_level(rows, "density", theta))
    table = []
    for name, lost in found.items():
        if lost is None:
            continue
        classes = figure.data_classes(rows, lost).values()
        whole, worst = sum(map(sum, lost.classes.values())), sum(lost.worst.values())
        loses = lost.interval[0] > 0
        table.append(
            [
                name,
                *(signed(each) for each, _ in classes),
                *(percent(share) if loses else "–" for _, share in classes),
                digits(worst / whole, 2) if loses else "–",
            ]
        )
    return table


def by_eighth(rows: list[dict], theta: float, tokens: int) -> list[list[str]]:
    """By method, for as many pairs: nats a token by eighths of a group."""
    found = figure.data_at(rows, "density", figure.data_level(rows, "density", theta))
    return [
        [name, *("–" if isnan(x) else signed(x) for x in figure.data_eighths(lost, tokens))]
        for name, lost in found.items()
        if lost is not None
    ]


EXPERIMENT = Experiment(
    name="losses",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="losses/losses.json",
    draw=figure.draw,
    options=measure.options,
)
