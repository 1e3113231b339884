"""What is lost for as many pairs, and for as much work: the numbers, and their picture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan
from statistics import mean

from anchor_lab.analysis.intervals import bootstrap
from anchor_lab.drawing.style import ACCENT, INK, MUTED, STRIPE, caption, question, use_style
from anchor_lab.experiments.compare.figure import OURS, colour_of
from anchor_lab.experiments.compare.measure import GROUP
from anchor_lab.experiments.losses.finished import finished_rows
from anchor_lab.experiments.losses.measure import (
    BUDGETS,
    DENSE,
    EIGHTHS,
    GOALS,
    compared,
    row_of,
    theta_label,
)
from anchor_lab.experiments.losses.tokens import CLASSES, FAR, NEAR, NEW
from anchor_lab.experiments.page import spaced

NAMES = {"density": "as many pairs", "total_cost": "as much work"}
# What texts are that somebody brought, by their names; others go by these.
BROUGHT = {"lorna_doone": "a novel"}
CLASS_COLOURS = {FAR: STRIPE, NEAR: ACCENT, NEW: MUTED}


@dataclass(frozen=True)
class Lost:
    """What a method loses against dense attention for some budget.

    Attributes:
        runs: by text, of each run of tokens, nats a token.
        classes: by text, sums over the tokens of each of `CLASSES`, nats.
        eighths: by text, sums over the rows of each eighth of their group, nats.
        worst: by text, the sum of the tokens that lose most, nats.
        density, total_cost: what it spends; below the level where its densest configuration is.
    """

    runs: dict[str, list[float]]
    classes: dict[str, list[float]]
    eighths: dict[str, list[float]]
    worst: dict[str, float]
    density: float
    total_cost: float

    @property
    def by_text(self) -> dict[str, float]:
        """Nats a token."""
        return {text: mean(runs) for text, runs in self.runs.items()}

    @property
    def mean(self) -> float:
        """Over texts, nats a token."""
        return mean(self.by_text.values())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean, over runs of tokens in each text."""
        return bootstrap(list(self.runs.values()))


def in_words(texts: Iterable[str]) -> str:
    """What texts are, in a row: "prose, code"; "a novel"."""
    return ", ".join(BROUGHT.get(text, text) for text in texts)


def data_lost(row: dict) -> Lost:
    """Of one row that is not dense attention's."""
    return Lost(*(row[name] for name in Lost.__dataclass_fields__))


def data_level(rows: Sequence[dict], budget: str, theta: float) -> float | None:
    """What AnchorAttention spends at θ; None where it was not read."""
    label = theta_label(theta)
    if not any((x["method"], x["configuration"]) == (OURS, label) for x in rows):
        return None
    return row_of(rows, OURS, label)[budget]


def data_at(rows: Sequence[dict], budget: str, level: float) -> dict[str, Lost | None]:
    """What each method loses where it spends as much.

    Between the two configurations that were read and lie next to the level everything is taken to
    be linear, run by run. A method that cannot spend so much counts with its densest.

    Args:
        rows: of a store.
        budget: of `BUDGETS`.
        level: of it.

    Returns:
        By method that is `compared` so, the one that loses least first; last, as None, those that
        spend more with their sparsest configuration.
    """
    found: dict[str, Lost | None] = {}
    names = dict.fromkeys(row["method"] for row in rows if row["method"] != DENSE)
    for name in (name for name in names if compared(name, budget)):
        pair = neighbours(rows, name, budget, level)
        if pair is None:
            found[name] = None
            continue
        low, high = pair
        wide = high[budget] - low[budget]
        found[name] = _between(low, high, (level - low[budget]) / wide if wide else 0.0)
    return dict(sorted(found.items(), key=lambda x: float("inf") if x[1] is None else x[1].mean))


def neighbours(
    lines: Sequence[dict], name: str, budget: str, level: float
) -> tuple[dict, dict] | None:
    """A method's configurations next to a level, twice its densest where that spends less; None
    where its sparsest spends more."""
    own = sorted((x for x in lines if x["method"] == name), key=lambda x: x[budget])
    below = [x for x in own if x[budget] <= level]
    above = [x for x in own if x[budget] > level]
    return (below[-1], (above or below[-1:])[0]) if below else None


def _between(low: dict, high: dict, share: float) -> Lost:
    def mix(a, b):
        if isinstance(a, dict):
            return {text: mix(a[text], b[text]) for text in a}
        if isinstance(a, list):
            return [mix(*pair) for pair in zip(a, b, strict=True)]
        return (1 - share) * a + share * b

    one, other = data_lost(low), data_lost(high)
    return Lost(*(mix(getattr(one, name), getattr(other, name)) for name in vars(one)))


def data_classes(rows: Sequence[dict], lost: Lost) -> dict[str, tuple[float, float]]:
    """By class of tokens: nats a token of this class, and its share of all nats lost.

    All texts together. The shares are NaN of a method that may lose nothing: its interval has 0.
    """
    counts = row_of(rows, DENSE, "default")["counts"]
    sums = [sum(lost.classes[text][at] for text in counts) for at in range(len(CLASSES))]
    there = [sum(each[at] for each in counts.values()) for at in range(len(CLASSES))]
    whole, loses = sum(sums), lost.interval[0] > 0
    return {
        name: (nats / max(1, count), nats / whole if loses else nan)
        for name, nats, count in zip(CLASSES, sums, there, strict=True)
    }


def data_eighths(lost: Lost, tokens: int) -> list[float]:
    """Nats a token by eighths of a group, all texts together; NaN of one without a row.

    Args:
        lost: of a method.
        tokens: N.
    """
    rows = [row % GROUP * EIGHTHS // GROUP for row in range(GROUP, tokens - 1)]
    return [
        sum(sums[at] for sums in lost.eighths.values()) / (count * len(lost.eighths))
        if (count := rows.count(at))
        else nan
        for at in range(EIGHTHS)
    ]


def _nats(ax) -> None:
    """Linear up to .01, then logarithmic; what is drawn sets the ends, and has room there."""
    ax.axvline(0, color=INK, lw=0.6)
    ax.set_xscale("symlog", linthresh=0.01)
    ax.autoscale_view()  # the margin is one of the new scale
    low, high = ax.get_xlim()
    ticks = [x for x in (-1, -0.1, -0.01, 0, 0.01, 0.03, 0.1, 0.3, 1, 3) if low <= x <= high]
    ax.set_xticks(ticks, [f"{x:g}".replace("-", "−") for x in ticks], fontsize=8)


def draw_lost(found: dict[str, Lost | None], ax) -> None:
    """Who loses least?"""
    names = list(found)
    for place, (name, lost) in enumerate(found.items()):
        if lost is None:
            ax.text(0.02, place, "spends more", color=MUTED, va="center", size=8,
                    transform=ax.get_yaxis_transform())  # fmt: skip
            continue
        (low, high), colour = lost.interval, colour_of(name)
        ax.plot([low, high], [place, place], color=colour, lw=1)
        ax.plot([lost.mean], [place], "o", color=colour, ms=4)
    _nats(ax)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    for tick, name in zip(ax.get_yticklabels(), names, strict=True):
        tick.set_color(STRIPE if name == OURS else INK)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlabel="loss − dense, nats a token")
    ax.grid(axis="y", color="#EEEEEE", zorder=0)


def draw_classes(rows: Sequence[dict], found: dict[str, Lost | None], ax) -> None:
    """Which tokens lose?"""
    names = [name for name, lost in found.items() if lost is not None]
    for name, shift in zip(CLASSES, (-0.25, 0, 0.25), strict=True):
        ax.plot(
            [data_classes(rows, found[method])[name][0] for method in names],
            [place + shift for place in range(len(names))],
            "o",
            color=CLASS_COLOURS[name],
            ms=3.5,
            label=name,
        )
    _nats(ax)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlabel="loss − dense, nats a token of the kind")
    ax.grid(axis="y", color="#EEEEEE", zorder=0)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)


def draw(results: dict):
    """A row of panels for each θ: as many pairs, as much work, which tokens."""
    from matplotlib import pyplot as plt

    use_style()
    rows, about = finished_rows(results["rows"]), results["settings"]
    goals = [theta for theta in GOALS if data_level(rows, "density", theta) is not None]
    methods = len({row["method"] for row in rows}) - 1
    high = 1.4 + 0.2 * methods
    figure, axes = plt.subplots(
        max(1, len(goals)), 3, figsize=(14, high * max(1, len(goals))), squeeze=False
    )
    for theta, line in zip(goals, axes, strict=False):
        for budget, ax in zip(BUDGETS, line, strict=False):
            level = data_level(rows, budget, theta)
            found = data_at(rows, budget, level)
            draw_lost(found, ax)
            ax.set_title(f"{NAMES[budget]} as ours at θ = {theta:g}: {level:.3f}", fontsize=9)
        found = data_at(rows, "density", data_level(rows, "density", theta))
        draw_classes(rows, found, line[2])
        line[2].set_title(f"{draw_classes.__doc__} As many pairs", fontsize=9)
    question(figure, draw_lost.__doc__)
    caption(
        figure,
        f"{about['model']}, {about['device']}, {spaced(about['tokens'])} tokens of "
        f"{in_words(about['texts'])}, {about['dtype']}, no "
        "tail; rows beyond the first group, mean over texts, 95 % intervals.\nBetween two "
        "configurations the line is read off. Red: AnchorAttention and its variants, blue: other "
        "methods, black: oracles, which save nothing.",
    )
    return figure
