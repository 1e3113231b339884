"""Every method's loss, recall and answers over time and over work, a row of panels for each."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from anchor_lab.drawing.style import (
    ACCENT,
    DIM,
    INIT,
    INK,
    STRIPE,
    TAIL,
    caption,
    question,
    use_style,
)
from anchor_lab.experiments.answers.counts import Counts
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.page import spaced
from anchor_lab.experiments.rivals.page import kind_of
from anchor_lab.experiments.verdict import ahead
from anchor_lab.experiments.verdict.asked import Comparison, Way, comparisons
from anchor_lab.experiments.verdict.times import WORDS, Clock, Kind, equal_recall

LOSS, RECALL, ANSWERS = "loss − dense, nats a token", "recall", "answers found, of 100"
LABELS = {
    "time": "time, of cuDNN's dense attention",
    "total_cost": "total cost, of dense attention's",
}
GREY = "#B0B0B0"
OTHERS = (ACCENT, TAIL, "#7A5195", INIT)  # colours of methods that stand out
GAP = 0.05  # of a panel's height, between names
MARKS = {
    Kind.MEASURED: {"marker": "o"},
    Kind.CHOICE_MODELLED: {"marker": "o", "mfc": "white"},
    Kind.MODELLED: {"marker": "x"},
    Kind.DRAWN_OUT: {"marker": "|"},
}


@dataclass(frozen=True)
class Curve:
    """A method over a budget.

    Attributes:
        x: what is spent.
        y: loss, recall, or answers of 100.
        kinds: how each x is known; None for total cost.
    """

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    kinds: list[Kind | None] = field(default_factory=list)


def data_curves(lines: Sequence[dict], budget: str) -> dict[str, Curve]:
    """Published methods over a budget, by name.

    Args:
        lines: timed ones, of losses or of recall; those without the budget are left out.
        budget: of `ahead.BUDGETS`.
    """
    found: dict[str, Curve] = {}
    for line in sorted((x for x in lines if budget in x), key=lambda x: x[budget]):
        if kind_of(line["method"]) != "published":
            continue
        curve = found.setdefault(line["method"], Curve())
        curve.x.append(line[budget])
        curve.y.append(line["recall_mean"] if "recall_mean" in line else ahead.loss_of(line).value)
        curve.kinds.append(line["kind"] if budget == "time" else None)
    return found


def data_answers(ways: Sequence[Way], budget: str) -> dict[str, Curve]:
    """By method the ways to read prompts whose cost is known: without a tail and with some.

    Args:
        ways: of one comparison, asked the same prompts.
        budget: of `ahead.BUDGETS`.
    """
    found: dict[str, Curve] = {}
    for way in sorted(ways, key=lambda way: way.total_cost or 0):
        spent = way.total_cost if budget == "total_cost" else way.time and way.time.share
        if spent is not None:
            curve = found.setdefault(way.method, Curve())
            curve.x.append(spent)
            curve.y.append(_of_100(way.counts))
            curve.kinds.append(way.time.kind if budget == "time" else None)
    return found


def _of_100(counts: Counts) -> float:
    return 100 * counts.ours / counts.prompts


def colours_of(names: Sequence[str], rankings: Sequence[ahead.Ranking]) -> dict[str, str]:
    """Ours; those that stand first or second somewhere, as long as there are colours; others."""
    best = dict.fromkeys(
        name for one in rankings if one.tells for name in one.ranked[:2] if name != OURS
    )
    named = dict(zip(best, OTHERS, strict=False))
    return {name: STRIPE if name == OURS else named.get(name, GREY) for name in names}


def draw_curves(curves: dict[str, Curve], colours: dict[str, str], ax) -> None:
    """Who is ahead for as much time, and for as much work?"""
    for name, curve in curves.items():
        colour = colours[name]
        stands_out = colour != GREY
        ax.plot(
            curve.x, curve.y, color=colour, lw=2 if name == OURS else 1.3 if stands_out else 0.7,
            zorder=3 if stands_out else 1,
        )  # fmt: skip
        for kind in set(curve.kinds):
            at = [place for place, one in enumerate(curve.kinds) if one == kind]
            ax.plot(
                [curve.x[i] for i in at], [curve.y[i] for i in at], ls="", color=colour,
                ms=4.5 if stands_out else 3, zorder=4 if stands_out else 2, **MARKS[kind or 0],
            )  # fmt: skip


def name_ends(curves: dict[str, Curve], colours: dict[str, str], ax) -> None:
    """The names of all curves in a column on the right, none over another, each with a line to
    the last point that is seen."""
    low, high = ax.get_xlim()
    ends = {}
    for name, curve in curves.items():
        seen = [place for place, x in enumerate(curve.x) if low <= x <= high]
        if seen:
            ends[name] = (curve.x[seen[-1]], curve.y[seen[-1]])
    to_axes = ax.transData + ax.transAxes.inverted()
    places = {name: to_axes.transform(end)[1] for name, end in ends.items()}
    order = sorted(places, key=places.__getitem__)
    for name, at in zip(order, spread([places[name] for name in order], GAP), strict=True):
        ax.annotate(
            name, ends[name], xytext=(1.03, at), textcoords="axes fraction", va="center",
            fontsize=8, color=colours[name] if colours[name] != GREY else DIM,
            weight="bold" if name == OURS else "normal",
            arrowprops={"arrowstyle": "-", "color": "#DDDDDD", "lw": 0.6, "shrinkB": 2},
            annotation_clip=False,
        )  # fmt: skip


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places in [0, 1], moved apart to a gap at least, as far as there is room."""
    gap = min(gap, 1 / max(1, len(places) - 1))
    found: list[float] = []
    for place in places:
        found.append(max(min(1.0, max(0.0, place)), found[-1] + gap if found else 0.0))
    over = 1.0
    for at in range(len(found) - 1, -1, -1):
        found[at] = min(found[at], over)
        over = found[at] - gap
    return found


def draw_dense(clock: Clock, ax) -> None:
    """Where the fastest dense kernel stands."""
    best = min(clock.dense, key=clock.dense.__getitem__)
    ax.axvline(clock.dense[best], color=INK, lw=0.8, ls="--")
    ax.text(
        clock.dense[best], 1.01, f"dense: {best}", transform=ax.get_xaxis_transform(), ha="right",
        va="bottom", fontsize=8,
    )  # fmt: skip


def draw_dense_answers(most: Comparison, ax) -> None:
    """How many dense attention finds of the same prompts."""
    found = 100 * most.dense.dense / most.dense.prompts
    ax.axhline(found, color=INK, lw=0.8, ls=":")
    ax.text(0.01, found, "dense finds", va="bottom", fontsize=8)


def scale(ax, quantity: str, budget: str) -> None:
    """Axes of a panel: shares up to all of dense attention's, few ticks."""
    ax.set(xlim=(0, 1.05), xlabel=LABELS[budget], ylabel=quantity)
    ax.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20 %", "40 %", "60 %", "80 %", "100 %"])
    if quantity == LOSS:
        ax.set_yscale("symlog", linthresh=0.01, linscale=0.5)
        ticks = (0, 0.01, 0.03, 0.1, 0.3, 1)
        ax.set_yticks(ticks, [f"{x:g}" for x in ticks])
        ax.minorticks_off()
        ax.set_ylim(-0.002, 1.2)
    elif quantity == RECALL:
        ax.set_ylim(0.7, 1.005)
    else:
        ax.set(xlim=(0, 1.3), ylim=(-3, 103))


def draw_equal_recall(times: dict[str, dict[str, float]], clock: Clock, ax) -> None:
    """What does a recall take? The smallest dot is the smallest recall.

    Args:
        times: milliseconds by recall and method.
        clock: of the same length.
        ax: of a panel.
    """
    order = list(dict.fromkeys(name for found in times.values() for name in found))
    for place, name in enumerate(order):
        there = [(recall, found[name]) for recall, found in times.items() if name in found]
        colour = STRIPE if name == OURS else DIM
        kind = Kind.MEASURED if name == OURS else Kind.CHOICE_MODELLED
        spent = [ms / clock.dense_ms for _, ms in there]
        ax.plot(spent, [place] * len(spent), color=colour, lw=1, zorder=1)
        for x, (recall, _) in zip(spent, there, strict=True):
            ax.plot([x], [place], ls="", color=colour, ms=6, **MARKS[kind])
            ax.annotate(
                recall, (x, place), xytext=(0, 6), textcoords="offset points", ha="center",
                fontsize=7.5, color=colour,
            )  # fmt: skip
    ax.set_yticks(range(len(order)), order, fontsize=8)
    for tick, name in zip(ax.get_yticklabels(), order, strict=True):
        tick.set_color(STRIPE if name == OURS else INK)
    ax.set(ylim=(len(order) - 0.5, -0.7), ylabel="")
    ax.grid(axis="y", color="#EEEEEE", zorder=0)


def draw(results: dict):
    """A row of panels for each length and quantity, over time and over work: losses, or recall
    where no loss is measured, or times at equal recall where neither is; then answers."""
    from matplotlib import pyplot as plt

    use_style()
    rows = [row for n, clock in ahead.clocks_of(results).items() for row in of(results, n, clock)]
    high = max(1, len(rows))
    figure, axes = plt.subplots(high, 2, figsize=(12, 4.9 * high), squeeze=False)
    for row, line in zip(rows, axes, strict=False):
        for budget, ax in zip(ahead.BUDGETS, line, strict=True):
            draw_panel(row, budget, ax)
    for ax in axes.flat:
        if not ax.has_data():
            ax.axis("off")
            ax.text(0.5, 0.5, "not measured yet", transform=ax.transAxes, ha="center", color=DIM)
    figure.legend(
        handles=[
            plt.Line2D([], [], ls="", color=INK, ms=5, label=WORDS[kind], **mark)
            for kind, mark in MARKS.items()
        ],
        loc="outside upper right", ncols=4, fontsize=8,
    )  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.12)
    question(figure, draw_curves.__doc__)
    caption(
        figure,
        "Red: AnchorAttention. Other colours: published methods that stand first or second "
        "somewhere; grey: the other published ones. Model, texts and layers are those of the "
        "results named on the page.\nMarks say how a time is known; total cost is counted. No "
        "tail; answers: as published, and with tails, a line through both, of prompts that all of "
        "them were asked; the page has those that fewer were.",
    )
    return figure


@dataclass(frozen=True)
class Row:
    """What a row of panels shows.

    Attributes:
        n: N.
        what: `LOSS`, `RECALL` or `ANSWERS`.
        curves: by budget and method; empty where times at equal recall are all there is.
        rankings: which methods stand out.
        clock: of N.
        equal_recall: as in `times.equal_recall`, empty where there are curves.
        most: what the answers are of; None of other quantities.
    """

    n: int
    what: str
    curves: dict[str, dict[str, Curve]]
    rankings: list[ahead.Ranking]
    clock: Clock | None
    equal_recall: dict[str, dict[str, float]] = field(default_factory=dict)
    most: Comparison | None = None

    @property
    def title(self) -> str:
        """Length, and what is not plain from the axes."""
        said = f"{spaced(self.n)} tokens"
        if self.equal_recall:
            return f"{said}, at equal recall"
        if self.most is not None:
            return f"{said}, the same {self.most.dense.prompts} prompts: {self.most.asked}"
        return said


def of(results: dict, n: int, clock: Clock | None) -> list[Row]:
    """The rows of one length."""
    losses, recalls = ahead.lines_of(results, n)
    lost, found = ahead.rankings(losses, recalls, clock)
    what, lines, rankings = (LOSS, losses, lost) if lost else (RECALL, recalls, found)
    known, rows = ahead.timed(lines, clock) if rankings else [], []
    timed = equal_recall(results.get("side_by_side"), clock, n)
    if known:
        curves = {budget: data_curves(known, budget) for budget in ahead.BUDGETS}
        rows.append(Row(n, what, curves, rankings, clock))
    elif timed:
        rows.append(Row(n, what, {}, [], clock, timed))
    asked = results.get("answers", {"rows": []})["rows"]
    # Of the ways that were asked the same prompts the most; shares of other prompts would mix.
    for most in comparisons(asked, n, [*losses, *recalls], clock)[:1]:
        curves = {budget: data_answers(most.ways, budget) for budget in ahead.BUDGETS}
        rows.append(Row(n, ANSWERS, curves, [], clock, most=most))
    return rows


def draw_panel(row: Row, budget: str, ax) -> None:
    """One quantity over one budget; nothing where it is not measured."""
    curves = row.curves.get(budget, {})
    timed = row.equal_recall if budget == "time" else {}
    if not curves and not timed:
        return
    scale(ax, row.what, budget)
    if timed:
        draw_equal_recall(timed, row.clock, ax)
    else:
        colours = colours_of(list(curves), row.rankings)
        draw_curves(curves, colours, ax)
        name_ends(curves, colours, ax)
    if budget == "time" and row.clock is not None:
        draw_dense(row.clock, ax)
    if row.most is not None:
        draw_dense_answers(row.most, ax)
    ax.set_title(row.title, fontsize=9, pad=16)
