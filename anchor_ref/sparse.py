"""Stage 3: fine-grained sparse computation (arXiv 2505.23520, component 3).

The selected keys lie scattered. Their rows are gathered into a small dense matrix, and the softmax
that stage 1 began goes on over it. Every stripe precedes the whole group: no mask is needed.
"""

from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores
from anchor_ref.inputs import check_inputs, check_plan, check_tensor, check_type
from anchor_ref.online_softmax import SoftmaxState, merge, normalise, partial_softmax
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups


def attend_stripes(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    v: Float[Tensor, "B Hkv Nk D"],
    state: SoftmaxState,
    stripes: StripePlan,
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
) -> Float[Tensor, "B Hq Nq D"]:
    """Continue stage 1's softmax over the stripes of each group and normalise it.

    out_i = softmax over A_i ∪ stripes(g) of s_ij, times v_j   for query i of group g

    Args:
        q, k, v: as in stage 1.
        state: what `compute_anchor` returned; it is read, not changed.
        stripes: what `identify_stripes` returned, or any plan that lists candidates of each group
            in ascending order, none twice.
        config: block and group sizes.
        scale: factor of q·k; None means 1/sqrt(D).
        cu_seqlens: boundaries of packed sequences, see `regions.groups`.

    Returns:
        Attention output `[B, Hq, Nq, D]` in q's dtype, computed in the dtype of `state`.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs` and `inputs.check_plan`; or `state` does
            not fit q.
    """
    scale = check_inputs(q, k, v, scale, cu_seqlens)
    check_state(state, q)
    all_groups = groups(config, q.shape[2], k.shape[2], cu_seqlens)
    check_plan(stripes, [group.candidates for group in all_groups], q)
    dtype, heads_per_kv = state.acc.dtype, q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for b, h in product(range(q.shape[0]), range(q.shape[1])):
        for g, group in enumerate(all_groups):
            keys = stripes.keys(b, h, g)
            k_stripes = k[b, h // heads_per_kv].index_select(0, keys).to(dtype)  # [n, D]
            v_stripes = v[b, h // heads_per_kv].index_select(0, keys).to(dtype)
            rows = b, h, slice(group.rows.start, group.rows.stop)
            scores = scaled_scores(q[rows].to(dtype), k_stripes, scale)  # [S, n]
            out[rows] = normalise(merge(state[rows], partial_softmax(scores, v_stripes)))
    return out


def check_state(state: SoftmaxState, q: Float[Tensor, "B Hq Nq D"]) -> None:
    """Refuse, with a TypeError or ValueError, what stage 1 does not return for such queries."""
    check_type("state", state, SoftmaxState)
    wide = (torch.float32, torch.float64)
    check_tensor("state.acc", state.acc, q.shape, wide, q.device)
    for name in ("max", "sum"):
        part = getattr(state, name)
        check_tensor(f"state.{name}", part, q.shape[:3], (state.acc.dtype,), q.device)
