"""AnchorAttention: the three stages in order. Mirrors `anchor_ref.attention`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anchor_kernels.calls import call_like, thetas_like
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
    theta_by_head: Sequence[float] | None = None,
) -> Tensor | tuple[Tensor, AnchorTrace]:
    """Causal attention over the initial region, the window, and the stripes that matter.

    Args:
        q: queries, `[B, Hq, Nq, D]`, float16, bfloat16 or float32, D at most 256, any strides.
        k: keys, `[B, Hkv, Nk, D]`, q's dtype and device; Hq a multiple of Hkv. With Nk > Nq the
            queries are the last Nq tokens (chunked prefill).
        v: values, k's shape.
        config: sizes and threshold; None means `AnchorConfig()`. with outlier rows,
            an extension, `outlier_choice` must be "even".
        scale: factor of q·k; None means 1/sqrt(D).
        cu_seqlens: `[n_sequences + 1]` int32 or int64, boundaries of sequences packed one after
            the other in a batch of 1; none attends to another.
        return_trace: also return what the stages found.
        theta_by_head: a threshold for each query head, in place of `config.theta`, see
            `anchor_ref.stripes.lowered_anchors`.

    Returns:
        Output `[B, Hq, Nq, D]` in q's dtype, and an `AnchorTrace` when asked for.

    Raises:
        TypeError, ValueError: see `anchor_ref.inputs.check_inputs`, and of `anchor_ref.stripes`
            `thresholds` and `at_lowered_anchors`.
        UnsupportedError: the kernels cannot run here or on these inputs; the message says why.
        RuntimeError: a CUDA graph is being captured and the call cannot be part of it.

    Beside inputs and output a call holds 8 bytes a row and head; 4 bytes a stripe; the mean
    queries and anchors, 4 · (D + 1) bytes a block and head; and one bit a candidate,
    Nq² / (16 · group size) bytes a head: 16 MiB each for 32 heads of 131 072 tokens of 128, 128
    MiB and 1 GiB for those of a million. Up to `calls.ROOM` candidates in all, the list gets a
    place for each, and the host does not wait for the device.

    What follows from shapes, strides and settings is kept for 64 kinds of calls, so that those
    after the first cost the host little (see `calls`). A call can be captured in a CUDA graph
    after one run like it, where the host does not wait: `cu_seqlens` must be on the CPU then, and
    its values are the graph's for good, as the tables of its kind stay for good.

    The same inputs give the same bits in every run. NaN and Inf act as in `anchor_ref`, but for
    one thing: in half precision an Inf in q or k makes NaN of the two parts that a mean query is
    split into, and what compares with NaN is kept. Later rows may then be NaN that are finite
    there, as in dense attention. No token changes a row of an earlier group or another sequence.

    Weights may reach 2^24 before they are normalised: values up to 2^100 are safe in bfloat16 and
    float32, larger ones may overflow.
    """
    config = AnchorConfig() if config is None else config
    by_head = theta_by_head is not None
    call = call_like(q, k, v, config, scale, cu_seqlens, return_trace, by_head)
    with torch.cuda.device_of(q):
        thetas = thetas_like(q, theta_by_head) if by_head else None
        out, trace = call(q, k, v, return_trace, thetas)
    return (out, trace) if return_trace else out
