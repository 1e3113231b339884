"""Stage 1: attention over initial region and window, and each row's anchor.

Mirrors `anchor_ref.anchor`. The state that the reference keeps as (max, sum, acc) is kept here as
(max, log-sum-exp, acc / sum): what is as wide as the output has the output's dtype, and stage 3
may write the result over it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from anchor_kernels.launch import AttentionLaunch, anchor_launch, padded_head_dim
from anchor_kernels.online_softmax import LN2, LOG2E, score_factor, softmax_step
from anchor_kernels.support import check_call
from anchor_kernels.tables import (
    GROUP_FIELDS,
    INIT_END,
    INIT_START,
    ROWS_END,
    ROWS_START,
    SHIFT,
    WINDOW_START,
    make_tables,
)
from anchor_ref.config import AnchorConfig


@dataclass(frozen=True, eq=False)
class AnchorState:
    """Attention over the keys of stage 1, normalised, with what it takes to go on from it.

    The `SoftmaxState` of the reference in other words: lse = max + log(sum), out = acc / sum.

    Attributes:
        max: row anchor a_i, `[B, Hq, Nq]` float32, natural-log units.
        lse: log Σ exp(s_ij) over the keys of stage 1, `[B, Hq, Nq]` float32, natural-log units;
            -inf for a row that saw no finite score.
        out: partial output, `[B, Hq, Nq, D]` in q's dtype; 0 for such a row.
    """

    max: Tensor
    lse: Tensor
    out: Tensor

    @property
    def sum(self) -> Tensor:
        """l = Σ exp(s_ij − max), `[B, Hq, Nq]` float32."""
        return (self.lse - self.max.where(self.max != -torch.inf, 0.0)).exp()

    @property
    def acc(self) -> Tensor:
        """Unnormalised output l · out, `[B, Hq, Nq, D]` float32."""
        return self.sum.unsqueeze(-1) * self.out.float()


def compute_anchor(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    launch: AttentionLaunch | None = None,
) -> AnchorState:
    """Attention of every query over its initial region and window.

    a_i = max_{j in A_i} s_ij,   A_i = (initial region ∪ window) ∩ {j <= i}

    Args:
        q: queries, `[B, Hq, Nq, D]`, float16, bfloat16 or float32, D at most 256, any strides.
        k: keys, `[B, Hkv, Nk, D]`; Hq a multiple of Hkv, Nk >= Nq. The queries are the last
            Nq tokens.
        v: values, k's shape.
        config: sizes of the regions.
        scale: factor of q·k; None means 1/sqrt(D).
        cu_seqlens: boundaries of packed sequences, see `anchor_ref.regions.groups`.
        launch: tile sizes, when another choice than the shipped one is to be tried.

    Returns:
        `AnchorState`. Scores, softmax and sums are formed in float32; the weights are rounded to
        v's dtype before they meet v, and `out` is rounded once.

    Raises:
        TypeError, ValueError: see `anchor_ref.inputs.check_inputs`.
        UnsupportedError: the kernels cannot run here or on these inputs; the message says why.
    """
    scale = check_call(q, k, v, scale, cu_seqlens)
    launch = launch or anchor_launch(q)
    tables = make_tables(config, q.shape[2], k.shape[2], cu_seqlens, q.device)
    batch, q_heads, n_queries, head_dim = q.shape
    out = torch.empty_like(q)
    row_anchor = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    lse = torch.empty_like(row_anchor)
    tiles = triton.cdiv(tables.longest, launch.block_m)
    with torch.cuda.device_of(q):
        anchor_kernel[(batch * q_heads * tables.n_groups * tiles,)](
            q,
            k,
            v,
            out,
            row_anchor,
            lse,
            tables.groups,
            *score_factor(scale),
            *q.stride(),
            *k.stride(),
            *v.stride(),
            *out.stride(),
            n_queries,
            tables.n_groups,
            tiles,
            Q_HEADS=q_heads,
            HEADS_PER_KV=q_heads // k.shape[1],
            D=head_dim,
            BLOCK_D=padded_head_dim(head_dim),
            BLOCK_M=launch.block_m,
            BLOCK_N=launch.block_n,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
            maxnreg=launch.max_registers,
        )
    return AnchorState(row_anchor, lse, out)


@triton.jit
def anchor_kernel(
    q,
    k,
    v,
    out,
    row_anchor,
    lse,
    groups,
    scale,
    SIGN: tl.constexpr,
    q_b,
    q_h,
    q_n,
    q_d,
    k_b,
    k_h,
    k_n,
    k_d,
    v_b,
    v_h,
    v_n,
    v_d,
    out_b,
    out_h,
    out_n,
    out_d,
    n_queries,
    n_groups,
    tiles,
    Q_HEADS: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: one query head, one tile of BLOCK_M rows of one group."""
    # Heads that share keys are neighbours, then the tiles of a group, its longest first.
    pid = tl.program_id(0)
    KV_HEADS: tl.constexpr = Q_HEADS // HEADS_PER_KV
    head = pid % HEADS_PER_KV
    tile = tiles - 1 - (pid // HEADS_PER_KV) % tiles
    g = (pid // (HEADS_PER_KV * tiles)) % n_groups
    kv = pid // (HEADS_PER_KV * tiles * n_groups)
    b = (kv // KV_HEADS).to(tl.int64)
    kv_head = (kv % KV_HEADS).to(tl.int64)
    q_head = kv_head * HEADS_PER_KV + head

    group = groups + g * GROUP_FIELDS
    rows_end = tl.load(group + ROWS_END)
    row_start = tl.load(group + ROWS_START) + tile * BLOCK_M
    if row_start >= rows_end:
        return
    shift = tl.load(group + SHIFT)
    init_start = tl.load(group + INIT_START)
    init_end = tl.load(group + INIT_END)
    window_start = tl.load(group + WINDOW_START)

    rows = row_start + tl.arange(0, BLOCK_M)  # [M]
    dims = tl.arange(0, BLOCK_D)  # [D]
    real_row = rows < rows_end
    real_dim = dims < D
    q += b * q_b + q_head * q_h + rows.to(tl.int64)[:, None] * q_n + dims[None, :] * q_d
    q_tile = tl.load(q, mask=real_row[:, None] & real_dim[None, :], other=0.0)  # [M, D]
    if SIGN != 1:
        q_tile = (q_tile * SIGN).to(q_tile.dtype)

    keys = tl.arange(0, BLOCK_N)
    k += b * k_b + kv_head * k_h
    v += b * v_b + kv_head * v_h
    k_tile = keys.to(tl.int64)[None, :] * k_n + dims[:, None] * k_d  # [D, N]
    v_tile = keys.to(tl.int64)[:, None] * v_n + dims[None, :] * v_d  # [N, D]

    scale_log2 = scale * LOG2E
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)  # largest q·k so far
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    # Whole tiles that every row sees: initial region, then the window up to the first row's key.
    init_tiles = (init_end - init_start) // BLOCK_N
    window_tiles = (row_start + shift + 1 - window_start) // BLOCK_N
    for i in range(init_tiles + window_tiles):
        start = tl.where(
            i < init_tiles, init_start + i * BLOCK_N, window_start + (i - init_tiles) * BLOCK_N
        ).to(tl.int64)
        if D == BLOCK_D:
            k_part = tl.load(k + start * k_n + k_tile)
            v_part = tl.load(v + start * v_n + v_tile)
        else:
            k_part = tl.load(k + start * k_n + k_tile, mask=real_dim[:, None], other=0.0)
            v_part = tl.load(v + start * v_n + v_tile, mask=real_dim[None, :], other=0.0)
        products = tl.dot(q_tile, k_part, input_precision="ieee")  # [M, N]
        row_max, row_sum, acc = softmax_step(products, v_part, row_max, row_sum, acc, scale_log2)

    # What is left of the initial region, then the diagonal: the tiles that need a mask.
    init_rest = init_start + init_tiles * BLOCK_N
    window_rest = window_start + window_tiles * BLOCK_N
    last = tl.minimum(row_start + BLOCK_M, rows_end) + shift  # after the last row's own key
    rest_tiles = tl.where(init_rest < init_end, 1, 0)
    for i in range(rest_tiles + tl.cdiv(last - window_rest, BLOCK_N)):
        in_init = i < rest_tiles
        start = tl.where(in_init, init_rest, window_rest + (i - rest_tiles) * BLOCK_N)
        end = tl.where(in_init, init_end, last)
        real_key = start + keys < end
        k_mask = real_key[None, :] & real_dim[:, None]
        v_mask = real_key[:, None] & real_dim[None, :]
        k_part = tl.load(k + start.to(tl.int64) * k_n + k_tile, mask=k_mask, other=0.0)
        v_part = tl.load(v + start.to(tl.int64) * v_n + v_tile, mask=v_mask, other=0.0)
        products = tl.dot(q_tile, k_part, input_precision="ieee")
        seen = real_key[None, :] & ((start + keys)[None, :] <= (rows + shift)[:, None])
        products = tl.where(seen, products, float("-inf"))
        row_max, row_sum, acc = softmax_step(products, v_part, row_max, row_sum, acc, scale_log2)

    # row_sum is NaN when a score was; the maximum alone would hide it.
    anchor = tl.where(
        (row_sum != row_sum) & (tl.abs(row_max) < float("inf")), float("nan"), row_max * scale
    )
    row = (b * Q_HEADS + q_head) * n_queries + rows
    tl.store(row_anchor + row, anchor, mask=real_row)
    tl.store(lse + row, row_max * scale + tl.log2(row_sum) * LN2, mask=real_row)
    out += b * out_b + q_head * out_h + rows.to(tl.int64)[:, None] * out_n + dims[None, :] * out_d
    # A row that saw no finite score has no output yet; stage 3 may still find it one.
    result = tl.where(row_sum[:, None] == 0, 0.0, acc / row_sum[:, None])
    tl.store(out, result.to(out.dtype.element_ty), mask=real_row[:, None] & real_dim[None, :])
