"""Figures of notebook 04: how near the anchor comes to each row's true maximum."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.analysis.maxima import REGIONS, Maxima
from anchor_lab.drawing.shapes import curve, label
from anchor_lab.drawing.style import ACCENT, DIM, INK, STRIPE

WIDTH = 0.25  # of a bar of the histogram, natural-log units


def data_gaps(gap: Float[Tensor, "R"], reach: float = 8.0) -> dict[str, Tensor | float]:
    """How many rows miss their maximum, and by how much.

    Args:
        gap: max_j s_ij − a_i of some rows, at least 0.
        reach: where the last bar ends; it holds all larger gaps too.

    Returns:
        exact: share of the rows whose gap is 0.
        edge: left edges of the bars, `[bars]`.
        share: share of the rows with 0 < gap in each bar, `[bars]`.
    """
    bars = round(reach / WIDTH)
    missed = gap[gap > 0]
    place = (missed / WIDTH).long().clamp(max=bars - 1)
    return {
        "exact": float((gap == 0).double().mean()),
        "edge": torch.arange(bars) * WIDTH,
        "share": torch.bincount(place, minlength=bars).double() / len(gap),
    }


def draw_gaps(data: Mapping[str, Tensor | float], ax) -> None:
    """By how much does the anchor miss?"""
    edges = [*data["edge"].tolist(), float(data["edge"][-1]) + WIDTH]
    ax.stairs(data["share"].tolist(), edges, fill=True, color=STRIPE)
    ax.bar([-0.3], [data["exact"]], width=0.35, color=ACCENT)
    look = {"color": ACCENT, "va": "top", "weight": "bold"}
    label(ax, f"exact: {data['exact']:.0%}", (-0.1, max(data["exact"], 0.3)), (3, 0), **look)
    ax.set(xlabel="true maximum − anchor", ylim=(0, 1), xlim=(-0.6, edges[-1]))


def data_missed(
    found: Sequence[Maxima], group_size: int, parts: int = 32
) -> dict[str, Float[Tensor, "parts"]]:
    """How often the largest score is a candidate's, by the row's place in its group.

    Args:
        found: of one layer or more, with whole groups.
        group_size: S.
        parts: bins of S / parts rows.

    Returns:
        place: rows since the group's start, the middle of each bin.
        share: of the rows there, over all heads and groups that have candidates.
    """
    candidates, size = REGIONS.index("candidates"), group_size // parts
    missed = torch.cat([maxima.region[..., maxima.rows] == candidates for maxima in found], 1)
    by_place = missed.double().unflatten(-1, (-1, parts, size))  # [B, Hq, groups, parts, size]
    return {
        "place": torch.arange(parts) * size + size / 2,
        "share": by_place.mean((0, 1, 2, 4)),
    }


def draw_missed(lines: Mapping[str, dict[str, Tensor]], ax) -> None:
    """Where in a group does the anchor miss?"""
    others = iter((STRIPE, ACCENT))  # lines that cross need colours of their own
    for name, data in lines.items():
        whole = name == "all layers"
        colour = INK if whole else next(others, DIM)
        curve(ax, data["place"], data["share"], name, colour, lw=2 if whole else 1, weight="bold")
    ax.set(xlabel="rows since the group's start", ylabel="share of rows", ylim=(0, None))
    ax.set_xlim(0, float(next(iter(lines.values()))["place"][-1]))
