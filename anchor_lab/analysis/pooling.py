"""What each approximation of the difference test costs, one at a time."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_lab.analysis.maxima import locate_maxima
from anchor_ref.anchor import compute_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import causal_scores, scaled_scores, stack_heads, unstack_heads
from anchor_ref.inputs import check_inputs
from anchor_ref.measure import causal_pairs
from anchor_ref.regions import Group, groups

# What is compared with θ, and who keeps the key.
TESTS = {
    "exact": "row maximum − score, each row for itself",
    "anchor": "row anchor − score, each row for itself",
    "shared": "row maximum − score, a row keeps for its whole group",
    "pooled": "mean maximum − score of the mean query, a block keeps for its whole group",
    "method": "mean anchor − score of the mean query, a block keeps for its whole group",
}


@dataclass(frozen=True, eq=False)
class Kept:
    """What one test keeps, initial region and window included.

    Attributes:
        recall: of every row, `[B, Hq, Nq]`.
        density: of every head, `[B, Hq]` float64.
    """

    recall: Float[Tensor, "B Hq Nq"]
    density: Float[Tensor, "B Hq"]


def compare_tests(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
) -> dict[str, Kept]:
    """Recall and density of the exact difference test and of what stands in for it.

    Args:
        q, k, config, scale, cu_seqlens: as in `identify_stripes`.

    Returns:
        One `Kept` for each of `TESTS`, in float32 (float64 for float64 inputs). Costs three times
        what dense scores do; memory grows linearly in Nk.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`.
    """
    scale = check_inputs(q, k, None, scale, cu_seqlens)
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(dtype), k.to(dtype)
    # Values play no part in the anchor; the keys stand in for them.
    anchor = compute_anchor(q, k, k, config, scale, cu_seqlens).max
    row_max = locate_maxima(q, k, config, scale, cu_seqlens).largest
    recall = {name: torch.empty_like(anchor) for name in TESTS}
    pairs = {name: anchor.new_zeros(q.shape[:2], dtype=torch.float64) for name in TESTS}
    all_groups = groups(config, q.shape[2], k.shape[2], cu_seqlens)
    for group in all_groups:
        before = len(group.init)
        candidates = slice(before, before + len(group.candidates))
        always = len(group.rows) * before + causal_pairs(group, group.window_start)
        kept = {
            "shared": _any_row(q, k, row_max, group, config.theta, scale),
            "pooled": _any_block(q, k, row_max, group, config.theta, scale),
            "method": _any_block(q, k, anchor, group, config.theta, scale),
        }  # [B, Hq, 1, C]
        for name in TESTS:
            pairs[name] += always
        for rows in group.blocks:
            block = slice(rows.start, rows.stop)
            keys = k[:, :, group.init.start : rows.stop + group.shift]
            scores = causal_scores(q[:, :, block], keys, scale)  # [B, Hq, b, M]
            weights = scores.softmax(-1)[..., candidates]
            scores = scores[..., candidates]
            kept["exact"] = row_max[:, :, block, None] - scores <= config.theta
            kept["anchor"] = anchor[:, :, block, None] - scores <= config.theta
            for name, keep in kept.items():
                lost = weights.masked_fill(keep, 0).sum(-1)
                recall[name][:, :, block] = (1 - lost).clamp(0, 1)
                pairs[name] += keep.expand_as(scores).sum((-2, -1))
    causal = sum(causal_pairs(group, group.init.start) for group in all_groups)
    return {name: Kept(recall[name], pairs[name] / causal) for name in TESTS}


def _any_row(
    q: Tensor, k: Tensor, row_max: Tensor, group: Group, theta: float, scale: float
) -> Tensor:
    """Is the key within θ of some row's maximum? `[B, Hq, 1, C]`."""
    before = len(group.init)
    candidates = slice(before, before + len(group.candidates))
    found = torch.zeros(*q.shape[:2], 1, len(group.candidates), dtype=torch.bool, device=q.device)
    for rows in group.blocks:
        block = slice(rows.start, rows.stop)
        # The same product as the maximum's, key for key: a row's largest score must equal itself.
        keys = k[:, :, group.init.start : rows.stop + group.shift]
        scores = causal_scores(q[:, :, block], keys, scale)[..., candidates]
        found |= (row_max[:, :, block, None] - scores <= theta).any(2, keepdim=True)
    return found


def _any_block(
    q: Tensor, k: Tensor, largest: Tensor, group: Group, theta: float, scale: float
) -> Tensor:
    """Is the mean score of some block within θ of its mean `largest`? `[B, Hq, 1, C]`."""
    keys = k[:, :, group.candidates.start : group.candidates.stop]
    blocks = [slice(rows.start, rows.stop) for rows in group.blocks]
    pooled_q = torch.stack([q[:, :, rows].mean(2) for rows in blocks], 2)
    pooled = torch.stack([largest[:, :, rows].mean(2) for rows in blocks], 2)
    difference = pooled.unsqueeze(-1) - _scores(pooled_q, keys, scale)
    return (difference <= theta).any(2, keepdim=True)


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return unstack_heads(scaled_scores(stack_heads(q, k.shape[1]), k, scale), q.shape[1])
