"""Grouped-query attention without copying a key: query heads stacked on the kv head they share."""

import torch
from jaxtyping import Float
from torch import Tensor


def stack_heads(x: Float[Tensor, "B Hq N *D"], kv_heads: int) -> Float[Tensor, "B Hkv rN *D"]:
    """Rows of the r = Hq / Hkv query heads of each kv head, one head after the other.

    Query head h reads kv head h // r, so heads that share one are neighbours, and one matrix
    product `[r·N, D] x [D, M]` scores them all.
    """
    return x.unflatten(1, (kv_heads, -1)).flatten(2, 3)


def unstack_heads(x: Float[Tensor, "B Hkv rN *D"], q_heads: int) -> Float[Tensor, "B Hq N *D"]:
    """The inverse of `stack_heads`."""
    return x.unflatten(2, (q_heads // x.shape[1], -1)).flatten(1, 2)


def scaled_scores(
    q: Float[Tensor, "*batch N D"], k: Float[Tensor, "*batch M D"], scale: float
) -> Float[Tensor, "*batch N M"]:
    """s_ij = scale · <q_i, k_j>, natural-log units.

    The factor follows the sum: equal inner products stay equal, so that ties at the threshold are
    decided by the numbers and not by the order of rounding.
    """
    return product(q, k.mT).mul_(scale)


def product(
    a: Float[Tensor, "*batch N K"], b: Float[Tensor, "*batch K M"]
) -> Float[Tensor, "*batch N M"]:
    """The matrix product in the dtype of its factors, also where autocast would take another."""
    with torch.autocast(a.device.type, enabled=False):
        return torch.matmul(a, b)


def attention_scores(
    q: Float[Tensor, "B Hq R D"], k: Float[Tensor, "B Hkv M D"], scale: float
) -> Float[Tensor, "B Hq R M"]:
    """s_ij of every query and the keys of the kv head it shares, nothing hidden."""
    return unstack_heads(scaled_scores(stack_heads(q, k.shape[1]), k, scale), q.shape[1])


def causal_scores(
    q: Float[Tensor, "B Hq R D"], k: Float[Tensor, "B Hkv M D"], scale: float
) -> Float[Tensor, "B Hq R M"]:
    """s_ij of queries that are the last R of M tokens, -inf where key j comes after query i."""
    scores = attention_scores(q, k, scale)
    rows = q.shape[2]
    later = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu(1)
    scores[..., -rows:].masked_fill_(later, -torch.inf)
    return scores
