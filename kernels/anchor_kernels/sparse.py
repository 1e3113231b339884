"""Stage 3: gather the stripes and finish the softmax. Mirrors `anchor_ref.sparse`."""

from dataclasses import dataclass
from itertools import chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from anchor_kernels.anchor import AnchorState
from anchor_kernels.launch import (
    HOPPER_CONSUMERS,
    AttentionLaunch,
    HopperLaunch,
    chosen_launch,
    padded_head_dim,
    sparse_launch,
)
from anchor_kernels.online_softmax import (
    LOG2E,
    any_flag,
    load_queries,
    load_rows,
    rescale,
    score_factor,
    softmax_step,
    unsound,
    weight_limit,
)
from anchor_kernels.prepared import Prepared
from anchor_kernels.support import again_programs, check_call
from anchor_kernels.tables import (
    GROUP_FIELDS,
    ROWS_END,
    ROWS_START,
    SPARSE_END,
    Tables,
    make_tables,
)
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_plan, check_tensor, check_type
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups


def attend_stripes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: AnchorState,
    stripes: StripePlan,
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    launch: AttentionLaunch | HopperLaunch | None = None,
) -> Tensor:
    """Continue stage 1's softmax over the stripes of each group and normalise it.

    out_i = softmax over A_i ∪ stripes(g) of s_ij, times v_j   for query i of group g

    Args:
        q, k, v: as in stage 1.
        state: what `compute_anchor` returned; it is read, not changed.
        stripes: what `identify_stripes` returned, or any plan that lists candidates of each group
            in ascending order, none twice.
        config: block and group sizes.
        scale: factor of q·k; None means 1/sqrt(D).
        cu_seqlens: boundaries of packed sequences, see `anchor_ref.regions.groups`.
        launch: tile sizes, when another choice than the shipped one is to be tried.

    Returns:
        Attention output `[B, Hq, Nq, D]` in q's dtype. Scores, softmax and sums are formed in
        float32; the weights are rounded to v's dtype before they meet v.

    Raises:
        TypeError, ValueError: see `anchor_ref.inputs.check_inputs` and `check_plan`; or `state`
            does not fit q, or `launch` does not fit the tensors.
        UnsupportedError: the kernels cannot run here or on these inputs; the message says why.
    """
    scale = check_call(q, k, v, scale, cu_seqlens)
    check_state(state, q)
    all_groups = groups(config, q.shape[2], k.shape[2], cu_seqlens)
    check_plan(stripes, [group.candidates for group in all_groups], q)
    return continue_softmax(
        q, k, v, state, stripes, config, scale, cu_seqlens, out=torch.empty_like(q), launch=launch
    )


def continue_softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: AnchorState,
    stripes: StripePlan,
    config: AnchorConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    *,
    out: Tensor,
    launch: AttentionLaunch | HopperLaunch | None = None,
) -> Tensor:
    """`attend_stripes` on inputs that are known to be sound, into `out`."""
    tables = make_tables(config, q.shape[2], k.shape[2], cu_seqlens, q.device)
    runs = prepare_sparse(q, k, v, state.out, out, tables, scale, launch)
    redo = torch.empty(runs.programs, dtype=torch.int8, device=q.device)
    with torch.cuda.device_of(q):
        runs(
            q,
            k,
            v,
            state.out,
            state.lse.contiguous(),
            out,
            stripes.indices.contiguous(),
            stripes.offsets.contiguous(),
            stripes.counts.contiguous(),
            tables.by_work,
            redo,
            tables.groups,
        )
    return out


@dataclass(frozen=True, eq=False)
class SparseRuns:
    """The launches of stage 3: all tiles the short way, then the few that need it once more.

    Attributes:
        programs: tiles; one flag for each says what is to be done again.
    """

    first: Prepared
    again: Prepared
    programs: int

    def __call__(self, *tensors: Tensor | int, stream: int | None = None) -> None:
        self.first(*tensors, stream=stream)
        self.again(*tensors, stream=stream)


def prepare_sparse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first_out: Tensor,
    out: Tensor,
    tables: Tables,
    scale: float,
    launch: AttentionLaunch | HopperLaunch | None = None,
) -> SparseRuns:
    """Launches for tensors of these sizes and strides.

    Raises:
        ValueError: `launch` does not fit the tensors, see `chosen_launch`.
    """
    launch = chosen_launch(launch, sparse_launch(q, k, v, first_out, out))
    tiles = triton.cdiv(tables.longest, launch.block_m)
    hopper = isinstance(launch, HopperLaunch)
    if hopper:  # a program takes several, the last maybe empty ones
        tiles = triton.cdiv(tiles, HOPPER_CONSUMERS) * HOPPER_CONSUMERS
    strides = [x.stride() for x in (q, k, v, first_out, out)]
    lists = q.shape[0] * q.shape[1] * tables.n_groups

    def prepare(launch: AttentionLaunch, online: bool) -> Prepared:
        """`sparse_kernel`, a program for each tile of each list, or fewer that look for flags."""
        factor, sign = score_factor(scale)
        works = lists * tiles
        programs = again_programs(q, works, hopper) if online else works
        sizes = q.shape[2], q.shape[0] * q.shape[1], tables.n_groups, tiles, works
        return Prepared(
            sparse_kernel,
            (programs,),
            (factor, *chain(*strides), *sizes),
            {
                "SIGN": sign,
                "Q_HEADS": q.shape[1],
                "HEADS_PER_KV": q.shape[1] // k.shape[1],
                "D": q.shape[3],
                "BLOCK_D": padded_head_dim(q.shape[3]),
                "BLOCK_M": launch.block_m,
                "BLOCK_N": launch.block_n,
                "LIMIT": weight_limit(q.dtype),
                "ONLINE": online,
                "SPAN": triton.next_power_of_2(triton.cdiv(works, programs)),
            },
            launch.options(online),
        )

    def prepare_hopper(launch: HopperLaunch) -> Prepared:
        """`sparse_hopper_kernel`, a program for every three tiles of a list."""
        # Gluon is Triton's youngest part: only Hopper GPUs depend on it.
        from anchor_kernels.sparse_hopper import WARPS, sparse_hopper_kernel

        sizes = q.shape[2], q.shape[0] * q.shape[1], tables.n_groups, tiles // HOPPER_CONSUMERS
        return Prepared(
            sparse_hopper_kernel,
            (lists * tiles // HOPPER_CONSUMERS,),
            (scale, *chain(*(stride[:3] for stride in strides)), *sizes),
            {
                "Q_HEADS": q.shape[1],
                "HEADS_PER_KV": q.shape[1] // k.shape[1],
                "D": q.shape[3],
                "BLOCK_N": launch.block_n,
                "STAGES": launch.num_stages,
                "LIMIT": weight_limit(q.dtype),
                "CONSUMER_REGISTERS": launch.consumer_registers,
                "PRODUCER_REGISTERS": launch.producer_registers,
            },
            {"num_warps": WARPS.value, "maxnreg": launch.max_registers},
        )

    first = prepare_hopper(launch) if hopper else prepare(launch, online=False)
    again = prepare(launch.again if hopper else launch, online=True)
    return SparseRuns(first, again, lists * tiles)


@triton.jit
def sparse_kernel(
    q,
    k,
    v,
    first_out,
    first_lse,
    out,
    indices,
    offsets,
    counts,
    by_work,
    redo,
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
    first_b,
    first_h,
    first_n,
    first_d,
    out_b,
    out_h,
    out_n,
    out_d,
    n_queries,
    n_heads,
    n_groups,
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
    SPAN: tl.constexpr,
):
    """One program: one of `works` tiles, BLOCK_M rows of one group and query head, all stripes.

    With ONLINE a tile is done again if it is flagged. A few programs may look at all flags then,
    SPAN each: with SPAN = 1 there is no loop, for which many targets have no registers.
    """
    tensors = q, k, v, first_out, first_lse, out, indices, offsets, counts, by_work, redo, groups
    q_strides, k_strides = (q_b, q_h, q_n, q_d), (k_b, k_h, k_n, k_d)
    first_strides, out_strides = (first_b, first_h, first_n, first_d), (out_b, out_h, out_n, out_d)
    strides = q_strides, k_strides, (v_b, v_h, v_n, v_d), first_strides, out_strides
    sizes = n_queries, n_heads, n_groups, tiles
    pid = tl.program_id(0)
    if SPAN == 1:
        if ONLINE:
            if tl.load(redo + pid) == 0:
                return
        sparse_tile(
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
        )
    elif any_flag(redo, works, SPAN):
        for mine in range(pid, works, tl.num_programs(0)):
            if tl.load(redo + mine) != 0:
                sparse_tile(
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
                )


@triton.jit
def sparse_tile(
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
):
    """Tile `pid`: BLOCK_M rows of one group and query head."""
    q, k, v, first_out, first_lse, out, indices, offsets, counts, by_work, redo, groups = tensors
    q_strides, k_strides, v_strides, first_strides, out_strides = strides
    q_b, q_h, q_n, q_d = q_strides
    k_b, k_h, k_n, k_d = k_strides
    v_b, v_h, v_n, v_d = v_strides
    first_b, first_h, first_n, first_d = first_strides
    out_b, out_h, out_n, out_d = out_strides
    n_queries, n_heads, n_groups, tiles = sizes
    # Tiles of a list are neighbours: they read the same stripes at the same time.
    tile = pid % tiles
    head = (pid // tiles % n_heads).to(tl.int64)  # of all heads of the batch
    g = tl.load(by_work + pid // tiles // n_heads)
    bhg = head * n_groups + g
    q_head = head % Q_HEADS
    b = head // Q_HEADS

    group = groups + g * GROUP_FIELDS
    rows_end = tl.load(group + ROWS_END)
    row_start = tl.load(group + ROWS_START) + tile * BLOCK_M
    if row_start < tl.load(group + SPARSE_END):
        stripes = indices + tl.load(offsets + bhg)
        count = tl.load(counts + bhg)

        rows = row_start + tl.arange(0, BLOCK_M)  # [M]
        dims = tl.arange(0, BLOCK_D).to(tl.int64)  # [D]
        real_dim = dims < D
        real = (rows < rows_end)[:, None] & real_dim[None, :]
        long_rows = rows.to(tl.int64)[:, None]
        q_at = q + b * q_b + q_head * q_h + long_rows * q_n + dims[None, :] * q_d
        q_tile = load_queries(q_at, rows < rows_end, real_dim, SIGN)  # [M, D]
        k_at = k + b * k_b + q_head // HEADS_PER_KV * k_h + dims[None, :] * k_d  # [1, D]
        v_at = v + b * v_b + q_head // HEADS_PER_KV * v_h + dims[None, :] * v_d  # [1, D]

        # What stage 1 left is (max, sum, acc) = (lse, 1, out): a state like any other. Its acc
        # waits in memory until the end.
        lse_at = first_lse + (b * Q_HEADS + q_head) * n_queries + rows
        lse = tl.load(lse_at, mask=rows < rows_end, other=float("inf"))  # inf: weights of 0
        first_max = lse / scale  # in units of q·k
        first_sum = tl.where(lse == float("-inf"), 0.0, 1.0)
        row_max, row_sum, acc = attend_list(
            q_tile,
            (k_at, v_at, k_n, v_n, real_dim),
            stripes,
            count,
            first_max,
            first_sum,
            scale * LOG2E,
            D,
            BLOCK_M,
            BLOCK_D,
            BLOCK_N,
            ONLINE,
        )
        first_at = first_out + b * first_b + q_head * first_h
        first_at += long_rows * first_n + dims[None, :] * first_d
        first_acc = tl.load(first_at, mask=real, other=0.0).to(tl.float32)  # [M, D]
        if ONLINE:
            acc += first_acc * rescale(first_max, row_max, scale * LOG2E)[:, None]
        else:  # the origin is still where stage 1 put it
            acc += first_acc
            again = unsound(row_sum, lse, LIMIT)
            tl.store(redo + pid, again)
            real = real & (again == 0)  # what is there is needed once more
        # The tail's rows were computed with their tile, so that no other row of it depends on
        # them.
        real = real & (rows < tl.load(group + SPARSE_END))[:, None]
        out_at = out + b * out_b + q_head * out_h + long_rows * out_n + dims[None, :] * out_d
        tl.store(out_at, (acc * (1 / row_sum)[:, None]).to(out.dtype.element_ty), mask=real)
    elif not ONLINE:
        tl.store(redo + pid, 0)


@triton.jit
def attend_list(
    q_tile,
    rows,
    stripes,
    count,
    row_max,
    row_sum,
    scale_log2,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ONLINE: tl.constexpr,
):
    """A tile of queries over `count` gathered keys, from a state whose acc is 0."""
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    state = row_max, row_sum, acc
    # Whole tiles need no mask. Wide heads and float32 have no registers for two kinds of tiles.
    PEEL: tl.constexpr = q_tile.dtype != tl.float32 and BLOCK_D <= 128
    whole = count // BLOCK_N * BLOCK_N if PEEL else count
    for start in range(0, whole, BLOCK_N):
        state = gather_step(
            q_tile, rows, stripes, start, count, state, scale_log2, D, BLOCK_N, ONLINE, not PEEL
        )
    if whole < count:
        state = gather_step(
            q_tile, rows, stripes, whole, count, state, scale_log2, D, BLOCK_N, ONLINE, True
        )
    return state


@triton.jit
def gather_step(
    q_tile,
    rows,
    stripes,
    start,
    count,
    state,
    scale_log2,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ONLINE: tl.constexpr,
    MAY_END: tl.constexpr,
):
    """Gather the stripes from `start` on, a tile of them, and take them into the state."""
    k, v, k_n, v_n, real_dim = rows
    row_max, row_sum, acc = state
    at = start + tl.arange(0, BLOCK_N)
    if MAY_END:  # beyond the end stands the last stripe once more, hidden
        key = tl.load(stripes + tl.minimum(at, count - 1)).to(tl.int64)  # [N]
    else:
        key = tl.load(stripes + at).to(tl.int64)
    k_part = load_rows(k + key[:, None] * k_n, real_dim, D)  # [N, D]
    v_part = load_rows(v + key[:, None] * v_n, real_dim, D)
    products = tl.dot(q_tile, tl.trans(k_part), input_precision="ieee")  # [M, N]
    if MAY_END:
        products = tl.where((at < count)[None, :], products, float("-inf"))
    return softmax_step(products, v_part, row_max, row_sum, acc, scale_log2, ONLINE)


def check_state(state: AnchorState, q: Tensor) -> None:
    """Refuse, with a TypeError or ValueError, what is no state of stage 1 for q."""
    check_type("state", state, AnchorState)
    check_tensor("state.out", state.out, q.shape, (q.dtype,), q.device)
    for name in ("max", "lse"):
        check_tensor(
            f"state.{name}", getattr(state, name), q.shape[:3], (torch.float32,), q.device
        )
