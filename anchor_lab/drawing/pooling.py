"""Figures of notebook 05: the difference test for one row, for a group, for a block's mean."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing.style import ACCENT, INK, STRIPE


def data_row_test(
    scores: Float[Tensor, "N"], anchor: float, theta: float, candidates: range
) -> dict[str, Tensor]:
    """The difference test of one row, in the form that `stages.draw_difference` takes.

    Args:
        scores: of one query.
        anchor: a_i.
        theta: θ.
        candidates: keys that are asked.

    Returns:
        key, difference: `[C]`; theta.
    """
    key = torch.arange(candidates.start, candidates.stop)
    return {"key": key, "difference": anchor - scores[key], "theta": torch.tensor(theta)}


def data_union(difference: Float[Tensor, "R C"], theta: float) -> dict[str, Tensor]:
    """What a list must hold that has every key which one of its rows wants.

    Args:
        difference: a_i − s_ij of R rows and C candidates.
        theta: θ.

    Returns:
        rows: 1, ..., R.
        one: share of the candidates that each row wants, `[R]`.
        union: share that at least one of the rows so far wants, `[R]`.
    """
    wants = difference <= theta
    first = torch.where(wants.any(0), wants.int().argmax(0), len(wants))  # row that brings a key
    brought = torch.bincount(first, minlength=len(wants) + 1)[:-1]
    return {
        "rows": torch.arange(1, len(wants) + 1),
        "one": wants.double().mean(1),
        "union": brought.cumsum(0) / wants.shape[1],
    }


def draw_union(data: Mapping[str, Tensor], pooled: float, ax) -> None:
    """How many keys does a group need, if every row gets what it wants?"""
    rows = data["rows"]
    ax.scatter(rows, data["one"], s=3, color="#9A9A9A", lw=0)
    ax.plot(rows, data["union"], color=ACCENT, lw=2)
    end, mean = float(rows[-1]), float(data["one"].mean())
    ax.hlines(mean, 0, end, color="#6A6A6A", lw=1)
    ax.hlines(pooled, 0, end, color=STRIPE, lw=1.5, ls=(0, (4, 2)))
    higher = 5 if mean > pooled else -5  # the labels of two low lines stay apart
    for text, height, up, colour in (
        ("wanted by some row", data["union"][-1], 0, ACCENT),
        ("wanted by one row, mean", mean, higher, "#6A6A6A"),
        ("kept by the method", pooled, -higher, STRIPE),
    ):
        place = (end, float(height))
        ax.annotate(text, place, (6, up), textcoords="offset points", color=colour, va="center")
    ax.set(xlabel="rows of the group", ylabel="share of the candidates", ylim=(-0.02, 1.03))
    ax.set_xlim(0, end)


def data_block(
    scores: Float[Tensor, "b"], anchors: Float[Tensor, "b"], theta: float
) -> dict[str, Tensor | float]:
    """One key seen by all rows of a block: each row's difference, and their mean.

    The mean of a_i − s_ij over the block is what stage 2 compares with θ:
    ā_t − scale·<q̄_t, k_j>, because an inner product with a mean is the mean of inner products.

    Args:
        scores: s_ij of the block's rows with the key.
        anchors: a_i of these rows.
        theta: θ.

    Returns:
        difference: of each row; mean; theta; share: of the rows that want the key.
    """
    difference = anchors - scores
    return {
        "difference": difference,
        "mean": float(difference.double().mean()),
        "theta": theta,
        "share": float((difference <= theta).double().mean()),
    }


def draw_block(data: Mapping[str, Tensor | float], ax) -> None:
    """What do the rows of a block say of one key, and what does their mean say?"""
    difference, theta, mean = data["difference"], data["theta"], data["mean"]
    row, wants = torch.arange(len(difference)), difference <= theta
    ax.scatter(row[wants], difference[wants], s=22, color=STRIPE, marker="o", zorder=2)
    ax.scatter(row[~wants], difference[~wants], s=16, color="#9A9A9A", marker="x", lw=0.9)
    ax.axhline(theta, color=INK, lw=1)
    ax.axhline(mean, color=ACCENT, lw=2)
    if not ax.yaxis_inverted():  # it is, where a neighbour shares the axis
        ax.invert_yaxis()
    last = len(difference)
    higher = 5 if mean > theta else -5  # the axis points down; the labels of near lines part
    for text, height, up, look in (
        (f"θ = {theta:g}", theta, higher, {"color": INK}),
        (f"mean {mean:.1f}", mean, -higher, {"color": ACCENT, "weight": "bold"}),
    ):
        place = (last, height)
        ax.annotate(text, place, (4, up), textcoords="offset points", va="center", **look)
    ax.set(xlabel="row of the block", ylabel="anchor − score", xlim=(-1, last))
