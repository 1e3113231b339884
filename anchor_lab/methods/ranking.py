"""Choices by rank: the largest of a row, by number or by the share they hold.

Of equal values the first counts as the larger, and NaN as the largest of all.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


def by_rank(
    values: Float[Tensor, "*batch M"],
    keep: Callable[[Float[Tensor, "*batch M"]], Bool[Tensor, "*batch M"]],
) -> Bool[Tensor, "*batch M"]:
    """What a rule keeps that sees the last dimension in falling order."""
    ranked, order = values.sort(dim=-1, descending=True, stable=True)
    kept = keep(ranked)
    return torch.empty_like(kept).scatter_(-1, order, kept)


def largest(
    values: Float[Tensor, "*batch M"], count: int | Int[Tensor, "*batch"]
) -> Bool[Tensor, "*batch M"]:
    """Which of the last dimension are its `count` largest."""
    rank = torch.arange(values.shape[-1], device=values.device)
    first = rank < torch.as_tensor(count, device=values.device).unsqueeze(-1)
    return by_rank(values, lambda ranked: first.expand_as(ranked).contiguous())


def first_and_largest(
    values: Float[Tensor, "*batch M"], first: int, count: int | Int[Tensor, "*batch"]
) -> Bool[Tensor, "*batch M"]:
    """The first `first`, and of the others the largest, `count` in all."""
    values = values.clone()
    values[..., :first] = torch.inf
    kept = largest(values, count)
    kept[..., :first] = True  # a NaN elsewhere does not crowd them out
    return kept


def largest_share(weights: Float[Tensor, "*batch M"], share: float) -> Bool[Tensor, "*batch M"]:
    """The fewest of the last dimension that hold `share` of its sum, the largest first.

    keep w_r   when   Σ_{r' before r} w_r' < share · Σ w   with r in falling order

    Args:
        weights: not negative. Where their sum is NaN, all are kept.
        share: in [0, 1]; 0 keeps none, 1 keeps what adds to the sum in the dtype of `weights`.
    """

    def short(ranked: Tensor) -> Tensor:
        sums = ranked.cumsum(-1)
        return ~(pad(sums[..., :-1], (1, 0)) >= share * sums[..., -1:])

    return by_rank(weights, short)
