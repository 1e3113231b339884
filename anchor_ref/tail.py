"""The tail: the last queries of a sequence see everything (not in the paper, but in its code).

A prompt ends with its question. The few rows that ask it are pooled with the rest of their block,
whose mean looks elsewhere, and stage 2 then drops the keys that hold the answer. So the last
`config.tail` queries of each sequence skip the selection: they continue stage 1's softmax over
every candidate of their group, and their output is that of dense attention.
"""

from jaxtyping import Float, Int
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores, stack_heads, unstack_heads
from anchor_ref.inputs import check_inputs
from anchor_ref.online_softmax import SoftmaxState, merge, normalise, partial_softmax
from anchor_ref.regions import groups
from anchor_ref.sparse import check_state


def attend_tail(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    v: Float[Tensor, "B Hkv Nk D"],
    state: SoftmaxState,
    out: Float[Tensor, "B Hq Nq D"],
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
) -> Float[Tensor, "B Hq Nq D"]:
    """The output of stage 3 with the rows of the tail replaced by dense attention.

    out_i = softmax over all j <= i of s_ij, times v_j   for the last `config.tail` rows

    Args:
        q, k, v: as in stage 1.
        state: what `compute_anchor` returned; it is read, not changed.
        out: what `attend_stripes` returned; it is read, not changed.
        config: regions and tail; its θ plays no part.
        scale: factor of q·k; None means 1/sqrt(D).
        cu_seqlens: boundaries of packed sequences, see `regions.groups`; each has a tail.

    Returns:
        `[B, Hq, Nq, D]` in q's dtype. Rows before the tail are those of `out`, bit for bit.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`; or `state` does not fit q.
    """
    scale = check_inputs(q, k, v, scale, cu_seqlens)
    check_state(state, q)
    dtype, kv_heads = state.acc.dtype, k.shape[1]
    out = out.clone()
    for group in groups(config, q.shape[2], k.shape[2], cu_seqlens):
        keys = slice(group.candidates.start, group.candidates.stop)
        k_all, v_all = k[:, :, keys].to(dtype), v[:, :, keys].to(dtype)
        for block in group.blocks:
            rows = slice(max(block.start, group.tail.start), block.stop)
            if rows.start >= rows.stop:
                continue
            # Every candidate precedes the whole group: no mask is needed.
            q_rows = stack_heads(q[:, :, rows].to(dtype), kv_heads)  # [B, Hkv, r·n, D]
            found = partial_softmax(scaled_scores(q_rows, k_all, scale), v_all)
            parts = (unstack_heads(x, q.shape[1]) for x in (found.max, found.sum, found.acc))
            seen = merge(state[:, :, rows], SoftmaxState(*parts))
            out[:, :, rows] = normalise(seen).to(out.dtype)
    return out
