"""AnchorAttention: the three stages in order. Mirrors `anchor_ref.attention`."""

from torch import Tensor

from anchor_kernels.anchor import compute_anchor
from anchor_kernels.sparse import continue_softmax
from anchor_kernels.stripes import identify_stripes
from anchor_kernels.support import check_call
from anchor_ref.config import AnchorConfig
from anchor_ref.plan import AnchorTrace


def anchor_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: AnchorConfig | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    return_trace: bool = False,
) -> Tensor | tuple[Tensor, AnchorTrace]:
    """Causal attention over the initial region, the window, and the stripes that matter.

    Args:
        q: queries, `[B, Hq, Nq, D]`, float16, bfloat16 or float32, D at most 256, any strides.
        k: keys, `[B, Hkv, Nk, D]`, q's dtype and device; Hq a multiple of Hkv. With Nk > Nq the
            queries are the last Nq tokens (chunked prefill).
        v: values, k's shape.
        config: sizes and threshold; None means `AnchorConfig()`.
        scale: factor of q·k; None means 1/sqrt(D).
        cu_seqlens: `[n_sequences + 1]` int32 or int64, boundaries of sequences packed one after
            the other in a batch of 1; none attends to another.
        return_trace: also return what the stages found.

    Returns:
        Output `[B, Hq, Nq, D]` in q's dtype, and an `AnchorTrace` when asked for.

    Raises:
        TypeError, ValueError: see `anchor_ref.inputs.check_inputs`.
        UnsupportedError: the kernels cannot run here or on these inputs; the message says why.

    The same inputs give the same bits in every run. NaN and Inf act as in `anchor_ref`, but for
    one thing: in half precision an Inf in q or k makes NaN of the two parts that a mean query is
    split into, and what compares with NaN is kept. Later rows may then be NaN that are finite
    there, as in dense attention. No token changes a row of an earlier group or another sequence.
    """
    config = AnchorConfig() if config is None else config
    scale = check_call(q, k, v, scale, cu_seqlens)
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.cpu()  # waits for the device here, and not in every stage
    state = compute_anchor(q, k, v, config, scale, cu_seqlens)
    stripes = identify_stripes(q, k, state.max, config, scale, cu_seqlens)
    # Nobody else reads the partial output: the result takes its place.
    out = continue_softmax(q, k, v, state, stripes, config, scale, cu_seqlens, out=state.out)
    return (out, AnchorTrace(state.max, stripes)) if return_trace else out
