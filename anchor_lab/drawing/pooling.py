"""What the rows of a group want of the candidates, and what the means of their blocks say."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing.shapes import label, mark, threshold
from anchor_lab.drawing.style import ACCENT, DIM, INK, MUTED, STRIPE
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores
from anchor_ref.regions import groups
from anchor_ref.stripes import passes_difference_test, pooled_difference


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
    wants = passes_difference_test(difference, theta)
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
    ax.scatter(rows, data["one"], s=3, color=MUTED, lw=0)
    ax.plot(rows, data["union"], color=ACCENT, lw=2)
    end, mean = float(rows[-1]), float(data["one"].mean())
    ax.hlines(mean, 0, end, color=DIM, lw=1)
    ax.hlines(pooled, 0, end, color=STRIPE, lw=1.5, ls=(0, (4, 2)))
    higher = 9 if mean > pooled else -9  # the labels of two low lines stay apart
    union = float(data["union"][-1])
    for text, height, up, colour in (
        (f"wanted by some row: {union:.1%}", union, 0, ACCENT),
        (f"wanted by one row, mean: {mean:.1%}", mean, 6 + higher, DIM),
        (f"kept by the method: {pooled:.1%}", pooled, 6 - higher, STRIPE),
    ):
        label(ax, text, (end, float(height)), (6, up), color=colour)
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
        "share": float(passes_difference_test(difference, theta).double().mean()),
    }


def draw_block(data: Mapping[str, Tensor | float], ax) -> None:
    """What do the rows of a block say of one key, and what does their mean say?"""
    difference, theta, mean = data["difference"], data["theta"], data["mean"]
    row, wants = torch.arange(len(difference)), passes_difference_test(difference, theta)
    ax.scatter(row[wants], difference[wants], s=22, color=STRIPE, marker="o", zorder=2)
    ax.scatter(row[~wants], difference[~wants], s=16, color=MUTED, marker="x", lw=0.9)
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
        label(ax, text, (last, height), (4, up), **look)
    ax.set(xlabel="row of the block", ylabel="anchor − score", xlim=(-1, last))


def data_asked(
    q: Float[Tensor, "N D"],
    k: Float[Tensor, "N D"],
    row_anchor: Float[Tensor, "N"],
    key: int,
    config: AnchorConfig,
    scale: float,
) -> dict[str, Tensor]:
    """How far one key lies below the anchor: for each row of the last group, and for the means.

    Args:
        q, k: one head's queries and keys, `[N, D]`.
        row_anchor: a_i of the same head, `[N]`.
        key: j, a candidate of the last group.
        config: sizes of block and group.
        scale: factor of q·k.

    Returns:
        row: `[rows]`; difference: a_i − s_ij, `[rows]`; start, mean: of each block its first row
        and ā_t − s̄_tj, `[blocks]`.
    """
    group = groups(config, len(q), len(k))[-1]
    rows = torch.arange(group.rows.start, group.rows.stop)
    scores = scaled_scores(q[rows].float(), k[key : key + 1].float(), scale)[:, 0]
    one_head = (x[None, None] for x in (q, k, row_anchor))
    pooled = pooled_difference(*one_head, group, scale)[0, 0]  # [T, C]
    return {
        "row": rows,
        "difference": row_anchor[rows] - scores,
        "start": torch.tensor([rows.start for rows in group.blocks]),
        "mean": pooled[:, key - group.candidates.start],
    }


def draw_asked(data: dict[str, Tensor], theta: float, ax) -> None:
    """Who asks for this key, and does the mean?"""
    ends = [*data["start"][1:].tolist(), int(data["row"][-1]) + 1]
    asks = passes_difference_test(data["difference"], theta)
    mark(ax, data["row"], data["difference"], asks, sizes=(3, 14))
    ax.hlines(data["mean"], data["start"], ends, color=ACCENT, lw=2)
    threshold(ax, theta)
    ax.set(xlabel="query", ylabel="anchor − score of the key")
    ax.text(0.01, 0.97, "mean of each block", color=ACCENT, transform=ax.transAxes, va="top")
    ax.text(0.3, 0.97, "rows that ask", color=STRIPE, transform=ax.transAxes, va="top")
