"""AnchorAttention: the three stages in order (arXiv 2505.23520)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_ref.anchor import compute_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.plan import AnchorTrace
from anchor_ref.sparse import attend_stripes
from anchor_ref.stripes import at_lowered_anchors, identify_stripes, lowered_anchors
from anchor_ref.tail import attend_tail


def anchor_attention(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    v: Float[Tensor, "B Hkv Nk D"],
    config: AnchorConfig | None = None,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
    *,
    return_trace: bool = False,
    compute_dtype: torch.dtype | None = None,
    theta_by_head: Sequence[float] | None = None,
) -> Float[Tensor, "B Hq Nq D"] | tuple[Float[Tensor, "B Hq Nq D"], AnchorTrace]:
    """Causal attention over the initial region, the window, and the stripes that matter.

    Args:
        q: queries, `[B, Hq, Nq, D]`, float16, bfloat16, float32 or float64.
        k: keys, `[B, Hkv, Nk, D]`, q's dtype and device; Hq a multiple of Hkv. With Nk > Nq the
            queries are the last Nq tokens (chunked prefill).
        v: values, k's shape.
        config: sizes and threshold; None means `AnchorConfig()`.
        scale: factor of q·k; None means 1/sqrt(D).
        cu_seqlens: `[n_sequences + 1]` int32 or int64, boundaries of sequences packed one after
            the other in a batch of 1; none attends to another.
        return_trace: also return what the stages found.
        compute_dtype: float32 or float64; None means float32, and float64 for float64 inputs.
        theta_by_head: a threshold for each query head, in place of `config.theta`, see
            `stripes.lowered_anchors`; outlier rows, an extension, share it.

    Returns:
        Output `[B, Hq, Nq, D]` in q's dtype, and an `AnchorTrace` when asked for.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or value does not fit; the message names argument and value.

    Chunks. Nq < Nk gives the rows that one call for all tokens gives when the chunk starts on a
    group boundary and ends on one or with the prompt. Otherwise blocks and groups keep their
    places, but what is missing of them is not pooled: stripes are chosen for, and by, the queries
    at hand. A chunk of whole blocks keeps a subset of what the one call keeps.

    NaN and Inf. A NaN in a query makes its own row NaN, a NaN in a key its own and every later row
    of the sequence; a block with such a row lets its group keep every candidate. An infinite score
    is judged like any other, through the means of its block: -inf weighs nothing, +inf makes the
    row NaN if the key is kept. NaN or Inf in v reaches the rows that keep the key, and the rows
    before it in its own block, where it has weight 0 and the product is NaN. No token changes a
    row of an earlier group or of another sequence.
    """
    config = AnchorConfig() if config is None else config
    state = compute_anchor(q, k, v, config, scale, cu_seqlens, compute_dtype=compute_dtype)
    anchor = state.max
    if theta_by_head is not None:
        anchor, config = lowered_anchors(anchor, theta_by_head), at_lowered_anchors(config)
    stripes = identify_stripes(q, k, anchor, config, scale, cu_seqlens)
    out = attend_stripes(q, k, v, state, stripes, config, scale, cu_seqlens)
    if config.tail:
        out = attend_tail(q, k, v, state, out, config, scale, cu_seqlens)
    return (out, AnchorTrace(state.max, stripes)) if return_trace else out
