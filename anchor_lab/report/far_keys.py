"""The keys far away that matter most to a group of queries."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from anchor_lab.explorer import PreparedHead
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores
from anchor_ref.regions import Group


@dataclass(frozen=True)
class FarKey:
    """A candidate and the attention it gets from one group of queries.

    Attributes:
        key: its position.
        mass: its weight in the group's average row.
        query: the row in which its weight is largest.
        weight: that row's weight on it.
    """

    key: int
    mass: float
    query: int
    weight: float


def last_telling_group(found: Sequence[Group], config: AnchorConfig) -> Group:
    """The last group with candidates and all its queries; else the last of all."""
    whole = [g for g in found if len(g.rows) == config.group_size and len(g.candidates)]
    return (whole or found)[-1]


def strongest_far_keys(head: PreparedHead, group: Group, most: int = 8) -> list[FarKey]:
    """The candidates that matter most to a group, at least its own length away, kept or not.

    Args:
        head: from `explorer.prepare_head`.
        group: of `regions.groups`; its queries are read.
        most: how many.

    Returns:
        The strongest first. Where no candidate is that far away, of all candidates.
    """
    first, end = group.candidates.start, group.candidates.stop - len(group.rows)
    keys = head.k[first : end if end > first else group.candidates.stop]
    mass, heaviest = torch.zeros(len(keys)), torch.zeros(len(keys))
    query = torch.zeros(len(keys), dtype=torch.long)
    for block in group.blocks:
        rows = slice(block.start, block.stop)
        scores = scaled_scores(head.q[rows], keys, head.scale)
        weights = (scores - head.log_sum[rows, None]).exp_()
        mass += weights.sum(0)
        most_here, row = weights.max(0)
        query = torch.where(most_here > heaviest, row + block.start, query)
        heaviest = torch.maximum(heaviest, most_here)
    mass /= len(group.rows)
    return [
        FarKey(first + i, float(mass[i]), int(query[i]), float(heaviest[i]))
        for i in mass.topk(min(most, len(keys))).indices.tolist()
    ]
