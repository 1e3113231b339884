"""The online softmax on tiles, as stages 1 and 3 share it. Mirrors `anchor_ref.online_softmax`."""

import torch
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


def weight_limit(dtype: torch.dtype) -> float:
    """Sum of weights up to which a tile is sound; no weight exceeds the sum of all.

    float16 ends at 2^16. The other types end at 2^128: with weights of at most 2^24, sums over
    values of up to 2^100 stay finite.
    """
    return 2.0**15 if dtype == torch.float16 else 2.0**24


@triton.jit
def load_queries(q, real_row, real_dim, SIGN: tl.constexpr):
    """Queries `[M, D]` at the addresses `q`, times the scale's sign; 0 beyond either end."""
    tile = tl.load(q, mask=real_row[:, None] & real_dim[None, :], other=0.0)
    return tile if SIGN == 1 else (tile * SIGN).to(tile.dtype)


@triton.jit
def load_rows(rows, real_dim, D: tl.constexpr):
    """Keys or values `[N, D]` at the addresses `rows`, 0 beyond the head's own size."""
    whole: tl.constexpr = real_dim.shape[0] == D
    return tl.load(rows) if whole else tl.load(rows, mask=real_dim[None, :], other=0.0)


@triton.jit
def softmax_step(products, v, row_max, row_sum, acc, scale_log2, ONLINE: tl.constexpr):
    """The state (row_max, row_sum, acc) of BLOCK_M rows takes in one tile of keys.

    products `[M, N]` are q·k, -inf for a hidden key, and row_max `[M]` their maximum so far: the
    scale comes in as the factor of an FMA that is needed anyway.

    Not ONLINE, row_max stays what it is and nothing is rescaled: weights above 1 are as good as
    any, as long as they stay finite (`unsound`). That takes a third of the work off the
    arithmetic units, and the product with v needs no answer before the next tile.
    """
    new_max = row_max
    if ONLINE:
        new_max = tl.maximum(row_max, tl.max(products, 1))
        shrink = rescale(row_max, new_max, scale_log2)
        row_sum *= shrink
        acc *= shrink[:, None]
    weights = tl.exp2(products * scale_log2 - exponent_origin(new_max, scale_log2)[:, None])
    row_sum += tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
    return new_max, row_sum, acc


@triton.jit
def exponent_origin(row_max, scale_log2):
    """Where weights are measured from, in log2 units."""
    # A row that saw no key has the maximum -inf, and -inf − (-inf) is NaN: measure from 0 instead.
    return tl.where(row_max == float("-inf"), 0.0, row_max * scale_log2)


@triton.jit
def rescale(old_max, new_max, scale_log2):
    """The factor that takes sums over weights measured from old_max to new_max."""
    return tl.exp2(old_max * scale_log2 - exponent_origin(new_max, scale_log2))


@triton.jit
def unsound(row_sum, origin, LIMIT: tl.constexpr):
    """Is a tile to be done again, with a running maximum? int32, 0 or 1.

    Its weights outgrew their dtype or came near it (NaN too), or a row has seen nothing finite to
    measure weights from: they could then be as small as nothing.
    """
    bad = ~(row_sum <= LIMIT) | (origin == float("-inf"))
    return tl.max(bad.to(tl.int32), 0)


@triton.jit
def any_flag(redo, works, SPAN: tl.constexpr):
    """Is one of this program's tiles flagged: its own number, and each `num_programs` further?"""
    tile = tl.program_id(0) + tl.arange(0, SPAN) * tl.num_programs(0)
    return tl.max(tl.load(redo + tile, mask=tile < works, other=0).to(tl.int32), 0) != 0
