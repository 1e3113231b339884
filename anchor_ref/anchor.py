"""Stage 1: pattern-based anchor computation (arXiv 2505.23520, component 1).

The largest scores of a row lie nearly always at the start of the sequence or close to the row
itself. Both places are cheap to visit, so the attention over them is computed exactly; its running
maximum is the row's *anchor*, and its softmax state is the beginning of the final result.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores, stack_heads, unstack_heads
from anchor_ref.inputs import check_compute_dtype, check_inputs
from anchor_ref.online_softmax import SoftmaxState, empty_state, merge, partial_softmax
from anchor_ref.regions import groups


def compute_anchor(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    v: Float[Tensor, "B Hkv Nk D"],
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
    *,
    compute_dtype: torch.dtype | None = None,
) -> SoftmaxState:
    """Attention of every query over its initial region and window, left unnormalised.

    a_i = max_{j in A_i} s_ij,   A_i = (initial region ∪ window) ∩ {j <= i}

    Args:
        q: queries, `[B, Hq, Nq, D]`, float16, bfloat16, float32 or float64.
        k: keys, `[B, Hkv, Nk, D]`, q's dtype and device; Hq a multiple of Hkv, Nk >= Nq.
        v: values, k's shape.
        config: sizes of the regions.
        scale: factor of q·k; None means 1/sqrt(D).
        cu_seqlens: boundaries of packed sequences, see `regions.groups`.
        compute_dtype: float32 or float64; None means float32, and float64 for float64 inputs.

    Returns:
        State over A_i in the compute dtype; its `max`, `[B, Hq, Nq]`, is the row anchor a_i.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs` and `inputs.check_compute_dtype`.
    """
    scale = check_inputs(q, k, v, scale, cu_seqlens)
    dtype = check_compute_dtype(compute_dtype, q.dtype)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    state = empty_state(q)
    for group in groups(config, q.shape[2], k.shape[2], cu_seqlens):
        k_init, v_init = _columns(k, group.init), _columns(v, group.init)
        for rows in group.blocks:
            q_rows = stack_heads(_columns(q, rows), k.shape[1])  # [B, Hkv, r·b, D]
            window = range(group.window_start, rows.stop + group.shift)
            scores = scaled_scores(q_rows, _columns(k, window), scale)  # [B, Hkv, r·b, W]
            _hide_future(scores, len(rows))
            found = merge(
                partial_softmax(scaled_scores(q_rows, k_init, scale), v_init),
                partial_softmax(scores, _columns(v, window)),
            )
            block = slice(rows.start, rows.stop)
            state.max[:, :, block] = unstack_heads(found.max, q.shape[1])
            state.sum[:, :, block] = unstack_heads(found.sum, q.shape[1])
            state.acc[:, :, block] = unstack_heads(found.acc, q.shape[1])
    return state


def _columns(x: Tensor, tokens: range) -> Tensor:
    return x[:, :, tokens.start : tokens.stop]


def _hide_future(scores: Float[Tensor, "B Hkv rb W"], block: int) -> None:
    """Hide later keys, in place: the window ends with the block's own keys, the only ones."""
    own = scores.unflatten(2, (-1, block))[..., -block:]  # [B, Hkv, r, b, b]
    later = torch.ones(block, block, dtype=torch.bool, device=scores.device).triu(1)
    own.masked_fill_(later, -torch.inf)
