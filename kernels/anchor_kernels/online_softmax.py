"""The online softmax on tiles, as stages 1 and 3 share it. Mirrors `anchor_ref.online_softmax`."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


def score_factor(scale: float) -> tuple[float, int]:
    """(factor > 0, sign) with scale = factor · sign.

    The running maximum is taken over plain products q·k. It is the one over scores if what scores
    are multiplied by is positive; so a sign goes into the queries. A scale of 0 is queries of 0.
    """
    return (abs(scale), 1 if scale > 0 else -1) if scale else (1.0, 0)


@triton.jit
def softmax_step(products, v, row_max, row_sum, acc, scale_log2):
    """The state (row_max, row_sum, acc) of BLOCK_M rows takes in one tile of keys.

    products `[M, N]` are q·k, -inf for a hidden key, and row_max `[M]` their maximum so far: the
    scale comes in as the factor of an FMA that is needed anyway.
    """
    new_max = tl.maximum(row_max, tl.max(products, 1))
    # A row that saw no key has the maximum -inf, and -inf − (-inf) is NaN: measure from 0 instead.
    origin = tl.where(new_max == float("-inf"), 0.0, new_max * scale_log2)
    weights = tl.exp2(products * scale_log2 - origin[:, None])  # [M, N]
    shrink = tl.exp2(row_max * scale_log2 - origin)
    row_sum = row_sum * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_max, row_sum, acc
