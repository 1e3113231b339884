"""What AnchorAttention, its ablations and the stripe oracle share: stripes as a selection.

All attend to the same initial region and window; only the stripes between them differ.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from anchor_lab.methods.selection import Selection, causal_mask
from anchor_ref.anchor import compute_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores, stack_heads, unstack_heads
from anchor_ref.inputs import check_compute_dtype
from anchor_ref.measure import executed_density, identification_cost
from anchor_ref.plan import StripePlan
from anchor_ref.regions import Group, causal_pairs, groups

THETAS = (1.0, 2.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0, 17.0)
GATHER = 64  # stripes that stage 3 loads at a time


def stripe_selection(
    stripes: StripePlan, config: AnchorConfig, n: int, scored: float, gather: int = GATHER
) -> Selection:
    """Initial region, window and the stripes of a plan.

    Args:
        stripes: keys kept among the candidates of each group.
        config: block, group and regions.
        n: N.
        scored: see `Selection`.
        gather: stripes loaded at a time, see `measure.executed_density`.

    Raises:
        TypeError, ValueError: see `inputs.check_plan`.
    """
    batch, heads, _ = stripes.counts.shape
    device, all_groups = stripes.indices.device, groups(config, n, n)
    executed = executed_density(stripes, config, n, n, gather=gather) * causal_pairs(n)
    kept = stripes.to_mask(n)  # [B, Hq, G, N]: a byte a key where the plan has four a stripe

    def keep(rows: range) -> Tensor:
        mask = causal_mask(rows, device).repeat(batch, heads, 1, 1)
        for g, group in enumerate(all_groups):
            first, last = max(rows.start, group.rows.start), min(rows.stop, group.rows.stop)
            if first < last:
                inside = slice(first - rows.start, last - rows.start)
                candidates = slice(group.candidates.start, group.candidates.stop)
                mask[:, :, inside, candidates] &= kept[:, :, g, None, candidates]
        return mask

    return Selection((batch, heads, n), keep, executed.to(device), scored)


def method_selection(
    stripes: StripePlan, config: AnchorConfig, n: int, passes: int = 1, gather: int = GATHER
) -> Selection:
    """The selection of a method that forms the pooled scores of stage 2 `passes` times."""
    scored = passes * identification_cost(config, n, n).item() * causal_pairs(n)
    return stripe_selection(stripes, config, n, scored, gather)


def row_anchor(q: Tensor, k: Tensor, config: AnchorConfig, scale: float) -> Tensor:
    """Row anchors of stage 1; values play no part in them, and the keys stand in."""
    return compute_anchor(q, k, k, config, scale).max


def pick_stripes(
    q: Tensor,
    k: Tensor,
    config: AnchorConfig,
    scale: float,
    keep: Callable[[Tensor], Tensor],
) -> StripePlan:
    """Stripes by a rule on the pooled scores `[B, Hq, blocks, C]` of each group."""
    batch, heads, n, _ = q.shape
    all_groups = groups(config, n, n)
    chosen = torch.zeros(batch, heads, len(all_groups), n, dtype=torch.bool, device=q.device)
    for g, group in enumerate(all_groups):
        if group.candidates:
            candidates = slice(group.candidates.start, group.candidates.stop)
            picked = keep(_pooled_scores(q, k, group, scale))
            chosen[:, :, g, candidates] = picked.any(2)
    return StripePlan.from_mask(chosen)


def _pooled_scores(q: Tensor, k: Tensor, group: Group, scale: float) -> Tensor:
    dtype = check_compute_dtype(None, q.dtype)
    means = [q[:, :, rows.start : rows.stop].to(dtype).mean(2) for rows in group.blocks]
    pooled = stack_heads(torch.stack(means, 2), k.shape[1])
    keys = k[:, :, group.candidates.start : group.candidates.stop].to(dtype)
    return unstack_heads(scaled_scores(pooled, keys, scale), q.shape[1])
