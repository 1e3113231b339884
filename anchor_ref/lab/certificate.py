"""A certificate: what can the keys that were dropped weigh at most?

Nothing but pooled quantities is looked at, so that asking costs about what stage 2 does.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.heads import causal_scores, scaled_scores, stack_heads, unstack_heads
from anchor_ref.inputs import check_inputs, check_plan
from anchor_ref.measure import causal_pairs, dropped_candidates
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups


def certify(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    stripes: StripePlan,
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
    *,
    rows: int = 128,
    directions: int = 0,
) -> Float[Tensor, "B Hq Nq"]:
    """A recall that each row has at least, without a score of any dropped key.

    Queries that are pooled together differ from their mean by δ_i = q_i − q̄, and so

        s_ij = <q̄, k_j> + <δ_i, k_j>
             <= <q̄, k_j> + Σ_u max_i <δ_i, u><k_j, u> + max_i ‖δ_i'‖ · ‖k_j'‖
        recall_i >= K_i / (K_i + Σ_{j dropped} exp(bound_j))

    with u the main directions of the δ_i, the primes what lies outside them, and K_i = Σ exp(s_ij)
    over the keys that are kept, which stage 3 has anyway. (The scale goes into q.)

    Args:
        q, k, config, scale, cu_seqlens: as in `identify_stripes`.
        stripes: the keys kept among the candidates.
        rows: queries pooled together, at least 1. Fewer are more alike: the bound is tighter and
            costs more.
        directions: number of directions u, 0 to rows − 1. With rows − 1 of them nothing lies
            outside, and the cost is that of all scores.

    Returns:
        Guaranteed recall in [0, 1], `[B, Hq, Nq]` float64; true up to rounding in float64.

    Raises:
        TypeError, ValueError: see `check_inputs` and `check_plan`; or `rows` or `directions` is
            outside its range.
    """
    scale = check_inputs(q, k, None, scale, cu_seqlens)
    _check_effort(rows, directions)
    all_groups = groups(config, q.shape[2], k.shape[2], cu_seqlens)
    check_plan(stripes, [group.candidates for group in all_groups], q)
    q, k = q.double() * scale, k.double()
    found = torch.empty(q.shape[:3], dtype=torch.float64, device=q.device)
    for g, group in enumerate(all_groups):
        dropped = dropped_candidates(stripes, g, group)  # [B, Hq, C]
        k_dropped = k[:, :, group.candidates.start : group.candidates.stop]
        for start in range(group.rows.start, group.rows.stop, rows):
            part = slice(start, min(start + rows, group.rows.stop))
            keys = k[:, :, group.init.start : part.stop + group.shift]
            hidden = dropped, group.candidates.start - group.init.start
            kept = _log_kept(q[:, :, part], keys, *hidden)  # [B, Hq, b]
            bound = _score_bound(q[:, :, part], k_dropped, directions)  # [B, Hq, C]
            lost = bound.masked_fill(~dropped, -torch.inf).logsumexp(-1, keepdim=True)
            found[:, :, part] = (kept - lost).sigmoid()
    return found


def certificate_cost(
    config: AnchorConfig,
    n_queries: int,
    n_keys: int,
    cu_seqlens: Int[Tensor, "S"] | None = None,
    *,
    rows: int = 128,
    directions: int = 0,
) -> float:
    """Products formed to certify, x 1/2, as a share of all causal pairs.

    The unit of `measure.identification_cost`: with rows = block_size and no directions they are
    equal.
    """
    _check_effort(rows, directions)
    all_groups = groups(config, n_queries, n_keys, cu_seqlens)
    pooled = sum(-(-len(g.rows) // rows) * len(g.candidates) for g in all_groups)
    causal = sum(causal_pairs(g, g.init.start) for g in all_groups)
    return pooled * (1 + directions) / 2 / causal


def _score_bound(q: Tensor, k: Tensor, directions: int) -> Tensor:
    """What no score of these queries exceeds, for each key: `[B, Hq, C]`; q is scaled."""
    mean = q.mean(2, keepdim=True)
    spread = q - mean  # δ, [B, Hq, b, D]
    bound = _scores(mean, k).squeeze(2)
    outside = k.square().sum(-1).repeat_interleave(q.shape[1] // k.shape[1], 1)  # [B, Hq, C]
    if directions:
        axes = torch.linalg.svd(spread, full_matrices=False).Vh[:, :, :directions]  # [B, Hq, u, D]
        along_k = _scores(axes, k)  # [B, Hq, u, C]
        along_q = spread @ axes.mT  # [B, Hq, b, u]
        most, least = along_q.amax(2).unsqueeze(-1), along_q.amin(2).unsqueeze(-1)
        bound = bound + torch.maximum(most * along_k, least * along_k).sum(2)
        outside = outside - along_k.square().sum(2)
        spread = spread - along_q @ axes
    radius = spread.norm(dim=-1).amax(2, keepdim=True)  # [B, Hq, 1]
    return bound + radius * outside.clamp(min=0).sqrt()


def _log_kept(q: Tensor, k: Tensor, dropped: Tensor, at: int) -> Tensor:
    """log Σ exp(s_ij) over the keys each row keeps, `[B, Hq, b]`; the queries are the last."""
    scores = causal_scores(q, k, 1.0)
    scores[..., at : at + dropped.shape[-1]].masked_fill_(dropped.unsqueeze(2), -torch.inf)
    return scores.logsumexp(-1)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return unstack_heads(scaled_scores(stack_heads(q, k.shape[1]), k, 1.0), q.shape[1])


def _check_effort(rows: int, directions: int) -> None:
    if not isinstance(rows, int) or rows < 1:
        raise ValueError(f"rows must be an integer of at least 1, got {rows!r}")
    if not isinstance(directions, int) or not 0 <= directions < rows:
        raise ValueError(f"directions must be an integer in 0..rows - 1, got {directions!r}")
