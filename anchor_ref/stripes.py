"""Stage 2: difference-aware stripe sparsity identification (arXiv 2505.23520, component 2).

A key whose score lies θ below the row's largest score weighs at most e^(−θ) of that key. The
anchor stands in for the largest score, and the mean query of a block for all its queries; so one
small matrix product per group decides which of the keys in between still matter.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.heads import attention_scores
from anchor_ref.inputs import check_inputs, check_tensor, check_type
from anchor_ref.outliers import outlier_difference
from anchor_ref.plan import StripePlan
from anchor_ref.regions import Group, groups


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

    with ā_t and q̄_t the means of a_i and q_i over the queries of block t that exist. Where
    `config.outliers` is not 0, which is an extension, also

    keep key j for group g   when   a_i − scale · <q_i, k_j> <= θ₂   for some outlier row i of g

    Args:
        q: queries, `[B, Hq, Nq, D]`.
        k: keys, `[B, Hkv, Nk, D]`.
        row_anchor: a_i from stage 1, `[B, Hq, Nq]`, natural-log units; its dtype, float32 or
            float64, is the one of the comparison.
        config: block and group sizes, and θ; outlier rows and θ₂ of the extension.
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
    layout = groups(config, q.shape[2], k.shape[2], cu_seqlens)
    kept = [keeps(q, k, row_anchor, group, config, scale) for group in layout]
    return StripePlan.from_candidates(kept, [group.candidates for group in layout])


def keeps(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    row_anchor: Float[Tensor, "B Hq Nq"],
    group: Group,
    config: AnchorConfig,
    scale: float,
) -> Bool[Tensor, "B Hq C"]:
    """Which candidates of a group some block, or some outlier row, keeps."""
    pooled = pooled_difference(q, k, row_anchor, group, scale)
    kept = passes_difference_test(pooled, config.theta).any(2)
    if config.outliers:
        own = outlier_difference(q, k, row_anchor, group, scale, config)
        kept |= passes_difference_test(own, config.row_theta).any(2)
    return kept


def lowered_anchors(
    row_anchor: Float[Tensor, "B Hq Nq"], theta_by_head: Sequence[float]
) -> Float[Tensor, "B Hq Nq"]:
    """Anchors whose difference test at θ = 0 is each head's test at its own threshold.

    ā − s <= θ_h is asked as (ā − θ_h) − s <= 0: equal but for the rounding of ā − θ_h.

    Args:
        row_anchor: a_i from stage 1, natural-log units.
        theta_by_head: θ_h of each query head; +inf keeps every candidate, -inf none.

    Raises:
        TypeError, ValueError: see `thresholds`.
    """
    thetas = thresholds(theta_by_head, row_anchor.shape[1])
    return row_anchor - row_anchor.new_tensor(thetas)[:, None]


def thresholds(theta_by_head: Sequence[float], heads: int) -> tuple[float, ...]:
    """θ_h of each head as floats.

    Raises:
        TypeError: `theta_by_head` is no sequence.
        ValueError: there are more or fewer thresholds than heads, or one is no threshold.
    """
    check_type("theta_by_head", theta_by_head, Sequence)
    if len(theta_by_head) != heads:
        raise ValueError(
            f"theta_by_head must have one value for each of q's {heads} heads, "
            f"got {len(theta_by_head)}"
        )
    # An AnchorConfig refuses what is no threshold.
    return tuple(AnchorConfig(theta=theta).theta for theta in theta_by_head)


def at_lowered_anchors(config: AnchorConfig) -> AnchorConfig:
    """The same, with the threshold 0 that `lowered_anchors` are compared at, outlier rows' too.

    Raises:
        ValueError: `config` has a θ₂ of its own, which would be added to every head's threshold.
    """
    if config.outlier_theta is not None:
        raise ValueError(
            "outlier_theta must be None with a threshold for each head, which outlier rows then "
            f"share, got {config.outlier_theta}"
        )
    return replace(config, theta=0.0)


def passes_difference_test(
    difference: Float[Tensor, "*pairs"], theta: float
) -> Bool[Tensor, "*pairs"]:
    """Is a key at most θ below? Inclusive, and true for NaN."""
    return ~(difference > theta)


def pooled_difference(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    row_anchor: Float[Tensor, "B Hq Nq"],
    group: Group,
    scale: float,
) -> Float[Tensor, "B Hq T C"]:
    """How far each candidate of a group lies below the anchor, for each of its query blocks.

    ā_t − s̄_tj,   see `pooled_scores`

    Args:
        q, k, row_anchor: as in `identify_stripes`.
        group: one of `regions.groups`, of T blocks and C candidates.
        scale: factor of q·k.

    Returns:
        `[B, Hq, T, C]` in the dtype of `row_anchor`, natural-log units.
    """
    anchor = block_means(row_anchor, group.blocks, row_anchor.dtype)  # [B, Hq, T]
    return anchor.unsqueeze(-1) - pooled_scores(q, k, group, scale, row_anchor.dtype)


def pooled_scores(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    group: Group,
    scale: float,
    dtype: torch.dtype,
) -> Float[Tensor, "B Hq T C"]:
    """Scores of each block's mean query with the candidates of its group.

    s̄_tj = scale · <q̄_t, k_j>

    It is the mean of s_ij over the queries i of block t, for one product in place of b.

    Args:
        q, k, group, scale: as in `pooled_difference`.
        dtype: to compute in.
    """
    candidates = k[:, :, group.candidates.start : group.candidates.stop].to(dtype)
    return attention_scores(block_means(q, group.blocks, dtype), candidates, scale)


def block_means(
    x: Float[Tensor, "B H N *D"], blocks: Sequence[range], dtype: torch.dtype
) -> Float[Tensor, "B H T *D"]:
    """Mean over the tokens of each of T blocks: q̄_t of queries, ā_t of anchors."""
    return torch.stack([x[:, :, rows.start : rows.stop].to(dtype).mean(2) for rows in blocks], 2)
