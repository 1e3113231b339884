"""Stage 1: attention over initial region and window, and each row's anchor.

Mirrors `anchor_ref.anchor`. The state that the reference keeps as (max, sum, acc) is kept here as
(max, log-sum-exp, acc / sum): what is as wide as the output has the output's dtype, and stage 3
may write the result over it.
"""

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from anchor_kernels.launch import (
    HOPPER_ROWS,
    AnchorHopperLaunch,
    AttentionLaunch,
    anchor_launch,
    chosen_launch,
    padded_head_dim,
)
from anchor_kernels.online_softmax import (
    LN2,
    LOG2E,
    any_flag,
    exponent_origin,
    load_queries,
    load_rows,
    score_factor,
    softmax_step,
    unsound,
    weight_limit,
)
from anchor_kernels.prepared import Prepared
from anchor_kernels.support import again_programs, check_call, multiprocessors
from anchor_kernels.tables import (
    FIRST_BLOCK,
    GROUP_FIELDS,
    INIT_END,
    INIT_START,
    ROWS_END,
    ROWS_START,
    SHIFT,
    WINDOW_START,
    Tables,
    make_tables,
)
from anchor_ref.config import AnchorConfig

if TYPE_CHECKING:
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


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
    launch: AttentionLaunch | AnchorHopperLaunch | None = None,
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
        TypeError, ValueError: see `anchor_ref.inputs.check_inputs`; or `launch` does not fit the
            tensors.
        UnsupportedError: the kernels cannot run here or on these inputs; the message says why.
    """
    scale = check_call(q, k, v, scale, cu_seqlens)
    tables = make_tables(config, q.shape[2], k.shape[2], cu_seqlens, q.device)
    out = torch.empty_like(q)
    row_anchor = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    lse = torch.empty_like(row_anchor)
    runs = prepare_anchor(q, k, v, out, tables, scale, launch)
    redo = torch.empty(runs.programs, dtype=torch.int8, device=q.device)
    nowhere = row_anchor  # nothing is pooled
    with torch.cuda.device_of(q):
        tensors = q, k, v, out, row_anchor, lse, redo, nowhere, nowhere, tables.groups
        runs((q, k, v), *tensors)
    return AnchorState(row_anchor, lse, out)


@dataclass(frozen=True, eq=False)
class AnchorRuns:
    """The launches of stage 1: all tiles the short way, then the few that need it once more.

    Attributes:
        programs: tiles; one flag for each says what is to be done again.
        pools: whether they leave mean queries and anchors of the blocks as well.
        described: on Hopper GPUs the inputs as the copy engine knows them, but for their
            addresses.
        counters: of the tiles that are taken there, one for each stream, 0 between launches.
    """

    first: Prepared
    again: Prepared
    programs: int
    pools: bool
    described: "tuple[TensorDescriptor, ...] | None" = None
    counters: dict[int, Tensor] = field(default_factory=dict)

    def __call__(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        *places: Tensor | int,
        stream: int | None = None,
    ) -> None:
        """Launch both; `places` are the inputs once more, tensors or addresses, and the rest."""
        if self.described is None:
            self.first(*places, stream=stream)
        else:
            pairs = zip(self.described, inputs, strict=True)
            descriptors = (replace_base(described, tensor) for described, tensor in pairs)
            counter = self._counter(inputs[0].device, stream)
            self.first(*descriptors, *places[1:], counter, stream=stream)
        self.again(*places, stream=stream)

    def _counter(self, device: torch.device, stream: int | None) -> Tensor:
        """One that no launch beside this one counts with."""
        # Two replays of what is captured may run beside each other: each sets its own to 0.
        if stream is None or torch.cuda.is_current_stream_capturing():
            return torch.zeros(1, dtype=torch.int32, device=device)
        if stream not in self.counters:
            self.counters[stream] = torch.zeros(1, dtype=torch.int32, device=device)
        return self.counters[stream]


def replace_base(described: "TensorDescriptor", x: Tensor | None) -> "TensorDescriptor":
    """A descriptor of another tensor of the same sizes, strides and dtype, not checked again."""
    found = object.__new__(type(described))  # `copy.copy` takes five times as long
    found.__dict__.update(described.__dict__)
    found.base = x
    return found


def prepare_anchor(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    tables: Tables,
    scale: float,
    launch: AttentionLaunch | AnchorHopperLaunch | None = None,
    *,
    pool: bool = False,
) -> AnchorRuns:
    """Launches for tensors of these sizes and strides; with `pool`, where tiles are blocks.

    Raises:
        ValueError: `launch` does not fit the tensors, see `chosen_launch`.
    """
    launch = chosen_launch(launch, anchor_launch(q, k, v, out))
    batch, q_heads, n_queries, head_dim = q.shape
    factor, sign = score_factor(scale)
    tiles = triton.cdiv(tables.longest, launch.block_m)
    programs = batch * q_heads * tables.n_groups * tiles
    # The queries of a negative scale are in hand with the other sign.
    pool = pool and tables.tile == launch.block_m and sign == 1
    strides = [x.stride() for x in (q, k, v, out)]
    constants = {
        "SIGN": sign,
        "Q_HEADS": q_heads,
        "HEADS_PER_KV": q_heads // k.shape[1],
        "D": head_dim,
        "LIMIT": weight_limit(q.dtype),
        "POOL": pool,
    }

    sizes = n_queries, tables.n_groups, tables.n_blocks, tiles, programs
    hopper = isinstance(launch, AnchorHopperLaunch)

    def prepare(launch: AttentionLaunch, online: bool) -> Prepared:
        """`anchor_kernel`, a program for each tile, or fewer that look for flags."""
        grid = again_programs(q, programs, hopper) if online else programs
        return Prepared(
            anchor_kernel,
            (grid,),
            (factor, *chain(*strides), *sizes),
            {
                **constants,
                "BLOCK_D": padded_head_dim(head_dim),
                "BLOCK_M": launch.block_m,
                "BLOCK_N": launch.block_n,
                "ONLINE": online,
                "SPAN": triton.next_power_of_2(triton.cdiv(programs, grid)),
            },
            launch.options(online),
        )

    if not hopper:
        return AnchorRuns(prepare(launch, False), prepare(launch, True), programs, pool)

    # Gluon is Triton's youngest part: only Hopper GPUs depend on it.
    from anchor_kernels.anchor_hopper import WARPS, anchor_hopper_kernel, tiles_of

    rows = HOPPER_ROWS, launch.block_n, launch.block_n
    first = Prepared(
        anchor_hopper_kernel,
        (min(programs, multiprocessors(q)),),  # each stays for many tiles
        (factor, *chain(*(stride[:3] for stride in strides[1:])), *sizes),
        {
            **constants,
            "BLOCK_N": launch.block_n,
            "STAGES": launch.num_stages,
            "CONSUMER_REGISTERS": launch.consumer_registers,
            "PRODUCER_REGISTERS": launch.producer_registers,
        },
        {"num_warps": WARPS.value, "maxnreg": launch.max_registers},
    )
    described = (tiles_of(x, n) for x, n in zip((q, k, v), rows, strict=True))
    described = tuple(replace_base(x, None) for x in described)
    return AnchorRuns(first, prepare(launch.again, True), programs, pool, described)


@triton.jit
def anchor_kernel(
    q,
    k,
    v,
    out,
    row_anchor,
    lse,
    redo,
    pooled_q,
    pooled_anchor,
    groups,
    scale,
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
    n_blocks,
    tiles,
    works,
    SIGN: tl.constexpr,
    Q_HEADS: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LIMIT: tl.constexpr,
    ONLINE: tl.constexpr,
    POOL: tl.constexpr,
    SPAN: tl.constexpr,
):
    """One program: one of `works` tiles, BLOCK_M rows of one group and query head.

    With ONLINE a tile is done again if it is flagged. A few programs may look at all flags then,
    SPAN each: with SPAN = 1 there is no loop, for which many targets have no registers. With POOL
    a tile is a query block, and its mean query and anchor are left for stage 2.
    """
    tensors = q, k, v, out, row_anchor, lse, redo, pooled_q, pooled_anchor, groups
    q_strides, k_strides = (q_b, q_h, q_n, q_d), (k_b, k_h, k_n, k_d)
    strides = q_strides, k_strides, (v_b, v_h, v_n, v_d), (out_b, out_h, out_n, out_d)
    sizes = n_queries, n_groups, n_blocks, tiles
    pid = tl.program_id(0)
    if SPAN == 1:
        if ONLINE:
            if tl.load(redo + pid) == 0:
                return
        anchor_tile(
            pid,
            tensors,
            strides,
            sizes,
            scale,
            SIGN,
            Q_HEADS,
            HEADS_PER_KV,
            D,
            BLOCK_D,
            BLOCK_M,
            BLOCK_N,
            LIMIT,
            ONLINE,
            POOL,
        )
    elif any_flag(redo, works, SPAN):
        for mine in range(pid, works, tl.num_programs(0)):
            if tl.load(redo + mine) != 0:
                anchor_tile(
                    mine,
                    tensors,
                    strides,
                    sizes,
                    scale,
                    SIGN,
                    Q_HEADS,
                    HEADS_PER_KV,
                    D,
                    BLOCK_D,
                    BLOCK_M,
                    BLOCK_N,
                    LIMIT,
                    ONLINE,
                    POOL,
                )


@triton.jit
def anchor_tile(
    pid,
    tensors,
    strides,
    sizes,
    scale,
    SIGN: tl.constexpr,
    Q_HEADS: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LIMIT: tl.constexpr,
    ONLINE: tl.constexpr,
    POOL: tl.constexpr,
):
    """Tile `pid`: BLOCK_M rows of one group and query head."""
    q, k, v, out, row_anchor, lse, redo, pooled_q, pooled_anchor, groups = tensors
    q_strides, k_strides, v_strides, out_strides = strides
    q_b, q_h, q_n, q_d = q_strides
    k_b, k_h, k_n, k_d = k_strides
    v_b, v_h, v_n, v_d = v_strides
    out_b, out_h, out_n, out_d = out_strides
    n_queries, n_groups, n_blocks, tiles = sizes
    # Heads that share keys are neighbours, then the tiles of a group, its longest first.
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
    if row_start < rows_end:
        shift = tl.load(group + SHIFT)
        init_start = tl.load(group + INIT_START)
        init_end = tl.load(group + INIT_END)
        window_start = tl.load(group + WINDOW_START)

        rows = row_start + tl.arange(0, BLOCK_M)  # [M]
        dims = tl.arange(0, BLOCK_D).to(tl.int64)  # [D]
        real_row = rows < rows_end
        real_dim = dims < D
        long_rows = rows.to(tl.int64)[:, None]
        q_at = q + b * q_b + q_head * q_h + long_rows * q_n + dims[None, :] * q_d
        q_tile = load_queries(q_at, real_row, real_dim, SIGN)  # [M, D]
        if POOL and not ONLINE:
            block = (b * Q_HEADS + q_head) * n_blocks + tl.load(group + FIRST_BLOCK) + tile
            length = tl.minimum(rows_end - row_start, BLOCK_M).to(tl.float32)
            mean = tl.sum(q_tile.to(tl.float32), 0) / length
            tl.store(pooled_q + block * D + dims, mean, mask=real_dim)

        row_max, origin, row_sum, acc = attend_regions(
            q_tile,
            k + b * k_b + kv_head * k_h + dims[None, :] * k_d,  # [1, D]
            v + b * v_b + kv_head * v_h + dims[None, :] * v_d,  # [1, D]
            k_n,
            v_n,
            rows + shift,
            row_start + shift,
            rows_end + shift,
            init_start,
            init_end,
            window_start,
            scale * LOG2E,
            real_dim,
            D,
            BLOCK_D,
            BLOCK_M,
            BLOCK_N,
            ONLINE,
        )
        if not ONLINE:
            tl.store(redo + pid, unsound(row_sum, origin, LIMIT))

        # row_sum is NaN when a score was; the maximum alone would hide it.
        anchor = tl.where(
            (row_sum != row_sum) & (tl.abs(row_max) < float("inf")), float("nan"), row_max * scale
        )
        row = (b * Q_HEADS + q_head) * n_queries + rows
        tl.store(row_anchor + row, anchor, mask=real_row)
        if POOL:
            block = (b * Q_HEADS + q_head) * n_blocks + tl.load(group + FIRST_BLOCK) + tile
            length = tl.minimum(rows_end - row_start, BLOCK_M).to(tl.float32)
            tl.store(pooled_anchor + block, tl.sum(tl.where(real_row, anchor, 0.0), 0) / length)
        log2_sum = exponent_origin(origin, scale * LOG2E) + tl.log2(row_sum)
        tl.store(lse + row, log2_sum * LN2, mask=real_row)
        out_at = out + b * out_b + q_head * out_h + long_rows * out_n + dims[None, :] * out_d
        # A row that saw no finite score has no output yet; stage 3 may still find it one.
        result = acc * tl.where(row_sum == 0, 0.0, 1 / row_sum)[:, None]
        tl.store(
            out_at, result.to(out.dtype.element_ty), mask=real_row[:, None] & real_dim[None, :]
        )
    elif not ONLINE:
        tl.store(redo + pid, 0)


@triton.jit
def attend_regions(
    q_tile,
    k,
    v,
    k_n,
    v_n,
    own_key,
    first_own,
    end,
    init_start,
    init_end,
    window_start,
    scale_log2,
    real_dim,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ONLINE: tl.constexpr,
):
    """A tile of rows over initial region and window: (row_max, origin, row_sum, acc).

    row_max `[M]` is the largest q·k, and the weights are measured from origin `[M]`: the largest
    one too if ONLINE, otherwise the largest of the initial region and the diagonal.
    """
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    keys = tl.arange(0, BLOCK_N)

    # The tiles that need a mask: the initial region, and the window's end, the diagonal.
    # The diagonal holds the first row's own key at least, so that every row has an origin.
    # Where a sequence begins, its first keys are both (`tables.first_keys`).
    whole = tl.maximum(first_own - window_start, 0) // BLOCK_N
    diagonal = window_start + whole * BLOCK_N
    last = tl.minimum(first_own + BLOCK_M, end)  # after the last row's own key
    init_end = tl.minimum(init_end, last)
    init_tiles = tl.cdiv(init_end - init_start, BLOCK_N)
    for i in range(init_tiles + tl.cdiv(tl.maximum(last - diagonal, 0), BLOCK_N)):
        in_init = i < init_tiles
        start = tl.where(in_init, init_start + i * BLOCK_N, diagonal + (i - init_tiles) * BLOCK_N)
        seen = tl.minimum(
            own_key + 1, tl.where(in_init, init_end, last)
        )  # [M], keys before it are
        # Beyond the end stands its last key once more, hidden.
        at = start + keys
        key = tl.minimum(at, tl.where(in_init, init_end, last) - 1).to(tl.int64)
        k_part = load_rows(k + key[:, None] * k_n, real_dim, D)  # [N, D]
        v_part = load_rows(v + key[:, None] * v_n, real_dim, D)
        products = tl.dot(q_tile, tl.trans(k_part), input_precision="ieee")  # [M, N]
        products = tl.where(at[None, :] < seen[:, None], products, float("-inf"))
        row_max, row_sum, acc = softmax_step(
            products, v_part, row_max, row_sum, acc, scale_log2, True
        )

    # The rest of the window: whole tiles that every row sees.
    origin = row_max
    for i in range(whole):
        key = (window_start + i * BLOCK_N + keys).to(tl.int64)
        k_part = load_rows(k + key[:, None] * k_n, real_dim, D)
        v_part = load_rows(v + key[:, None] * v_n, real_dim, D)
        products = tl.dot(q_tile, tl.trans(k_part), input_precision="ieee")
        if not ONLINE:
            row_max = tl.maximum(row_max, tl.max(products, 1))
        origin, row_sum, acc = softmax_step(
            products, v_part, origin, row_sum, acc, scale_log2, ONLINE
        )
    if ONLINE:
        row_max = origin
    return row_max, origin, row_sum, acc
