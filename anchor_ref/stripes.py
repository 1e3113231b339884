"""Stage 2: difference-aware stripe sparsity identification (arXiv 2505.23520, component 2).

A key whose score lies θ below the row's largest score weighs at most e^(−θ) of that key. The
anchor stands in for the largest score, and the mean query of a block for all its queries; so one
small matrix product per group decides which of the keys in between still matter.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores, stack_heads, unstack_heads
from anchor_ref.inputs import check_inputs, check_tensor
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups


def identify_stripes(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    row_anchor: Float[Tensor, "B Hq Nq"],
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
) -> StripePlan:
    """Select the candidates that lie within θ of the anchor for at least one block of the group.

    keep key j for group g   when   ā_t − scale · <q̄_t, k_j> <= θ   for some block t of g

    with ā_t and q̄_t the means of a_i and q_i over the queries of block t that exist.

    Args:
        q: queries, `[B, Hq, Nq, D]`.
        k: keys, `[B, Hkv, Nk, D]`.
        row_anchor: a_i from stage 1, `[B, Hq, Nq]`, natural-log units; its dtype, float32 or
            float64, is the one of the comparison.
        config: block and group sizes, and θ.
        scale: factor of q·k; None means 1/sqrt(D).
        cu_seqlens: boundaries of packed sequences, see `regions.groups`.

    Returns:
        One ascending list of keys for every batch entry, query head and group.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`; or `row_anchor` does not fit q.

    A comparison with NaN keeps the key: what is not a number stays visible in the output, as it
    would in dense attention, and is not dropped without a word.
    """
    scale = check_inputs(q, k, None, scale, cu_seqlens)
    wide = (torch.float32, torch.float64)
    check_tensor("row_anchor", row_anchor, q.shape[:3], wide, q.device)
    q_heads, kv_heads, dtype = q.shape[1], k.shape[1], row_anchor.dtype
    all_groups = groups(config, q.shape[2], k.shape[2], cu_seqlens)
    lists = {}
    for g, group in enumerate(all_groups):
        candidates = slice(group.candidates.start, group.candidates.stop)
        pooled_q = torch.stack([_mean(q, rows, dtype) for rows in group.blocks], 2)
        anchor = torch.stack([_mean(row_anchor, rows, dtype) for rows in group.blocks], 2)
        scores = scaled_scores(
            stack_heads(pooled_q, kv_heads), k[:, :, candidates].to(dtype), scale
        )
        difference = anchor.unsqueeze(-1) - unstack_heads(scores, q_heads)  # [B, Hq, blocks, C]
        keep = ~(difference > config.theta)
        for (b, h), kept in _each_head(keep.any(2)):
            lists[b, h, g] = group.candidates.start + kept.nonzero().flatten()
    shape = (q.shape[0], q_heads, len(all_groups))
    return StripePlan.from_lists([lists[bhg] for bhg in sorted(lists)], shape)


def _mean(x: Tensor, rows: range, dtype: torch.dtype) -> Tensor:
    return x[:, :, rows.start : rows.stop].to(dtype).mean(2)


def _each_head(x: Tensor):
    """((b, h), x[b, h]) for every batch entry and head."""
    return (((b, h), x[b, h]) for b in range(x.shape[0]) for h in range(x.shape[1]))
