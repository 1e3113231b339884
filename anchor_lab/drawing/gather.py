"""Figures of notebook 06: how scattered stripes lie, and what leaving keys out costs."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing.style import INK, STRIPE
from anchor_ref.config import AnchorConfig
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups


def data_touched(
    plans: Sequence[StripePlan], config: AnchorConfig, n: int
) -> dict[str, Float[Tensor, "heads"]]:
    """Share of the candidates that are stripes, and of their blocks that hold a stripe.

    Args:
        plans: of one layer each, batch 1.
        config: blocks of `block_size` keys.
        n: N, with at least one group that has candidates.

    Returns:
        keys, blocks: for every head of all layers, over all groups.
    """
    b = config.block_size
    open_groups = [(g, group) for g, group in enumerate(groups(config, n, n)) if group.candidates]
    all_keys = sum(len(group.candidates) for _, group in open_groups)
    all_blocks = sum(-(-len(group.candidates) // b) for _, group in open_groups)
    keys, blocks = [], []
    for plan in plans:
        for h in range(plan.counts.shape[1]):
            lists = [plan.keys(0, h, g) for g, _ in open_groups]
            keys.append(sum(len(found) for found in lists) / all_keys)
            blocks.append(sum(len((found // b).unique()) for found in lists) / all_blocks)
    return {"keys": torch.tensor(keys), "blocks": torch.tensor(blocks)}


def draw_touched(data: Mapping[str, Tensor], ax) -> None:
    """How scattered are the stripes?"""
    ax.plot([0, 1], [0, 1], color="#9A9A9A", lw=0.8, ls=":")
    ax.annotate("as many blocks as keys", (0.62, 0.62), (4, -8), textcoords="offset points")
    ax.scatter(data["keys"], data["blocks"], s=22, color=STRIPE, lw=0.4, ec="white")
    ax.set(xlabel="share of the keys that are stripes", xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
    ax.set_ylabel("share of blocks with a stripe")


def draw_error(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], ax) -> None:
    """How much output error is left at which density?

    `lines` holds the densities and errors of two selections, by name.
    """
    top = max(lines, key=lambda name: lines[name][1][1])
    for (name, (densities, errors)), colour, mark in zip(
        lines.items(), (STRIPE, INK), "os", strict=True
    ):
        ax.plot(densities, errors, color=colour, marker=mark, ms=4)
        # At the second point, where lines have parted and their labels have room.
        ax.annotate(
            name,
            (densities[1], errors[1]),
            (6, 6) if name == top else (-6, -6),
            textcoords="offset points",
            color=colour,
            weight="bold",
            ha="left" if name == top else "right",
            va="bottom" if name == top else "top",
        )
    ax.set(xlabel="density: share of the causal pairs", ylabel="output error")
