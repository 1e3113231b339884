"""Figures of inputs that break the method."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.analysis.failures import CAUSES, Tried
from anchor_lab.drawing.pooling import draw_asked
from anchor_lab.drawing.shapes import curve
from anchor_lab.drawing.style import (
    ACCENT,
    INIT,
    INK,
    MUTED,
    SKIPPED,
    STRIPE,
    WINDOW,
    caption,
    finish,
    panels,
    show,
)
from anchor_ref.stripes import passes_difference_test

COLOURS = {"kept": SKIPPED, **dict(zip(CAUSES, (INIT, STRIPE, WINDOW, INK), strict=True))}


def data_bound(thetas: Sequence[float], counts: Sequence[int]) -> dict[str, list]:
    """The most that each row's own test can lose: n e^(−θ) / (1 + n e^(−θ)) for n candidates.

    Returns:
        count: n, `[counts]`; lost: for each θ `[counts]`, in [0, 1).
    """
    n = torch.tensor(counts, dtype=torch.float64)
    lost = {theta: (n.log() - theta).sigmoid().tolist() for theta in thetas}
    return {"count": list(counts), "lost": lost}


def draw_bound(data: dict[str, list], ax) -> None:
    """How much can keys weigh together that are light alone?"""
    for theta, lost in data["lost"].items():
        curve(ax, data["count"], lost, f"θ = {theta:g}", ACCENT)
    ax.set(xscale="log", xlabel="candidates", ylabel="mass lost, at most", ylim=(0, 1))


def data_causes(
    cases: Mapping[str, Mapping[str, Float[Tensor, "B Hq N"]]], first_row: int
) -> dict[str, dict[str, float]]:
    """What is kept and what lost the rest, mean over the rows from `first_row` on.

    Args:
        cases: by name what `analysis.failures.blame` returned.
        first_row: the first row that has candidates.

    Returns:
        Of each case the shares of `CAUSES` and "kept"; they add up to 1.
    """
    found = {}
    for name, lost in cases.items():
        shares = {cause: float(x[..., first_row:].mean()) for cause, x in lost.items()}
        found[name] = {"kept": 1 - sum(shares.values()), **shares}
    return found


def draw_causes(data: dict[str, dict[str, float]], ax) -> None:
    """Where did the mass go?"""
    cases, left = range(len(data)), torch.zeros(len(data))
    for name, colour in COLOURS.items():
        share = torch.tensor([shares[name] for shares in data.values()])
        # In grey the threshold is as light as the mean anchor.
        look = {"fc": colour, "ec": "white", "lw": 0, "hatch": "////" * (name == "threshold")}
        bars = ax.barh(cases, share, left=left, height=0.7, label=name, **look)
        named = [name if x > 0.12 and name != "kept" else "" for x in share.tolist()]
        ax.bar_label(bars, named, label_type="center", color="white")
        left += share
    for y, shares in enumerate(data.values()):
        ax.text(1.01, y, f"recall {shares['kept']:.2f}", va="center")
    ax.set(yticks=cases, yticklabels=list(data), xlim=(0, 1), xlabel="mass of a row")
    ax.invert_yaxis()
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
    ax.legend(**place, ncols=len(COLOURS), columnspacing=1.2, handlelength=1)


def draw_reach(data: dict[str, list[float]], ax) -> None:
    """How far must the vectors move until recall falls?

    Args:
        data: "reach", and by name the mean recall at each.
        ax: where to draw.
    """
    reach, *names = data
    for name, colour in zip(names, (STRIPE, ACCENT), strict=True):
        curve(ax, data[reach], data[name], name, colour, (8, 0), marker="o", weight="bold")
    ax.set(xlabel="each vector moves by this share of its length", ylabel="recall, mean over rows")
    ax.set_ylim(0, 1.02)


def draw_remedies(tried: Mapping[str, Tried], axes) -> None:
    """What brings the answer back, and what does it cost?

    Args:
        tried: by name.
        axes: three that share their vertical axis, a quantity each.
    """
    names = range(len(tried))
    for ax, values, colour, words in zip(
        axes,
        (
            [x.asked for x in tried.values()],
            [x.beyond for x in tried.values()],
            [x.cost for x in tried.values()],
        ),
        (STRIPE, ACCENT, MUTED),
        ("recall, rows that ask", "recall, all rows", "cost, 1: dense attention"),
        strict=True,
    ):
        bars = ax.barh(names, values, height=0.7, color=colour)
        ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        ax.set(xlim=(0, 1.2), xticks=[0, 0.5, 1])
        ax.set_title(words, fontsize=9, color=INK if colour == MUTED else colour)
    axes[0].set_yticks(names, list(tried))
    axes[0].invert_yaxis()


def show_bound(data: dict[str, list]) -> None:
    """The figure of `draw_bound`, with its words."""
    figure, ax = panels(size=(6.4, 2.9))
    draw_bound(data, ax)
    ends = [f"{lost[-1]:.2f} at θ = {theta:g}" for theta, lost in data["lost"].items()]
    finish(
        figure,
        draw_bound.__doc__,
        "Computed: all candidates right below the threshold of one heavy key.",
        "Mass lost, at most, against the number of candidates, a rising line for each θ; "
        f"at {data['count'][-1]} candidates {', '.join(ends)}.",
    )


def show_asked(data: dict[str, Tensor], theta: float, where: str) -> None:
    """Who asks for one key of the fact, row by row, and do the means of their blocks?"""
    figure, ax = panels(size=(7.0, 3.2))
    draw_asked(data, theta, ax)
    ax.invert_yaxis()
    wants = int(passes_difference_test(data["difference"], theta).sum())
    hear = int(passes_difference_test(data["mean"], theta).sum())
    finish(
        figure,
        draw_asked.__doc__,
        f"{where}; the axis points down.",
        f"Differences of {len(data['row'])} rows with one key, a dot each. {wants} of them lie "
        f"within θ, and of the {len(data['mean'])} means of blocks {hear}.",
    )


def show_causes(data: dict[str, dict[str, float]], where: str) -> None:
    """Which approximation loses the mass?"""
    figure, ax = panels(size=(7.0, 0.9 + 0.5 * len(data)))
    draw_causes(data, ax)
    worst = [f"{name} {shares['kept']:.2f}" for name, shares in data.items()]
    figure.suptitle(show_causes.__doc__, x=0.01, ha="left", size=11, weight="bold")
    caption(figure, where)
    show(
        figure,
        "A bar for each head: mass of its rows that is kept, and what loses the rest. Kept: "
        f"{', '.join(worst)}. Most of the rest is lost to the mean query and to both means.",
    )


def show_reach(data: dict[str, list[float]], where: str) -> None:
    """How far must the vectors move until recall falls?"""
    figure, ax = panels(size=(6.4, 2.9))
    draw_reach(data, ax)
    reach, *names = data
    ends = [f"{name} {data[name][-1]:.2f}" for name in names]
    finish(
        figure,
        show_reach.__doc__,
        where,
        "Recall against how far each vector moves, a line for moves found by search and one for "
        f"random ones. At {data[reach][-1]:g} of its length: {', '.join(ends)}.",
    )


def show_remedies(tried: Mapping[str, Tried], where: str) -> None:
    """The figure of `draw_remedies`, with its words."""
    figure, axes = panels(1, 3, (8.4, 1.2 + 0.25 * len(tried)), sharey=True)
    draw_remedies(tried, axes)
    said = [f"{name}: {x.asked:.2f} for {x.cost:.2f}" for name, x in tried.items()]
    title = draw_remedies.__doc__.splitlines()[0]
    figure.suptitle(title, x=0.01, ha="left", size=11, weight="bold")
    caption(figure, where)
    show(
        figure,
        "Bars for each remedy: recall of the rows that ask and of all rows, and the cost. Of the "
        f"rows that ask, and the cost: {'; '.join(said)}.",
    )
