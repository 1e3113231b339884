"""Stage 1 on Hopper: one warp fetches, two groups of four warps multiply.

The same mathematics as `anchor.anchor_kernel`, in Gluon. A program stays on its multiprocessor and
takes one tile of 128 rows after the other. Its producer fetches queries, keys and values with the
copy engine (TMA) and runs ahead, also into the next tile; its consumers hold 64 rows each and take
turns: while one has the matrix unit, the other does its exponentials.

    q_ready             the queries of a tile and what there is to know of it (`work`) have arrived
    q_free              both consumers are done with them, and their `remarks` are complete
    k_ready, v_ready    the copies into a buffer of the ring have arrived
    k_free, v_free      both consumers are done with it

A buffer's n-th use waits for the barrier's phase n mod 2.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from anchor_kernels.hopper import LOG2E, ROWS, WARPS, rows_of
from anchor_kernels.launch import HOPPER_ROWS
from anchor_kernels.tables import (
    FIRST_BLOCK,
    GROUP_FIELDS,
    INIT_END,
    INIT_START,
    ROWS_END,
    ROWS_START,
    SHIFT,
    WINDOW_START,
)

M = gl.constexpr(2 * HOPPER_ROWS)  # of a tile
Q_STAGES = gl.constexpr(2)  # tiles whose queries are held at once
LN2 = gl.constexpr(0.6931471805599453)

# What consumers are told about a tile.
PID = gl.constexpr(0)  # its number, -1 when there are no more
HEAD = gl.constexpr(1)  # of all heads of the batch
ROW_START = gl.constexpr(2)
ROW_END = gl.constexpr(3)  # of its group
OWN_SHIFT = gl.constexpr(4)
INIT_LENGTH = gl.constexpr(5)
DIAGONAL = gl.constexpr(6)  # the first key of its masked end
WHOLE = gl.constexpr(7)  # tiles of keys before it
BLOCK = gl.constexpr(8)  # the query block that it is, with POOL
FIELDS = gl.constexpr(9)

IN_SHARED = gl.NVMMASharedLayout(128, 16, 4)  # tiles as the copy engine lays them out


def tiles_of(x: Tensor, rows: int) -> TensorDescriptor:
    """x `[B, H, N, D]` as the copy engine knows it, in tiles of so many rows."""
    return TensorDescriptor(x, [*x.shape], [*x.stride()], [1, 1, rows, x.shape[3]], IN_SHARED)


# Numbers that differ from call to call, and of which the compiler can make nothing.
@gluon.jit(do_not_specialize=["n_queries", "n_groups", "n_blocks", "tiles", "works"])
def anchor_hopper_kernel(
    q_tiles,
    k_tiles,
    v_tiles,
    k,
    v,
    out,
    row_anchor,
    lse,
    redo,
    pooled_q,
    pooled_anchor,
    groups,
    counter,
    scale,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    out_b,
    out_h,
    out_n,
    n_queries,
    n_groups,
    n_blocks,
    tiles,
    works,
    SIGN: gl.constexpr,
    Q_HEADS: gl.constexpr,
    HEADS_PER_KV: gl.constexpr,
    D: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    LIMIT: gl.constexpr,
    POOL: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """One program: tiles of 2 x 64 rows, one after the other, until `counter` has given out all.

    It is 0 before and after. `works` tiles in all, in the order and with the numbers of
    `anchor_kernel`'s programs.
    """
    dtype: gl.constexpr = k.dtype.element_ty
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16, 4)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    q_ring = gl.allocate_shared_memory(dtype, [Q_STAGES * 2, 1, 1, ROWS, D], swizzled)
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_N, D], swizzled)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_N, D], swizzled)
    work = gl.allocate_shared_memory(gl.int32, [Q_STAGES * FIELDS, 1], flat)
    flags = gl.allocate_shared_memory(gl.int32, [Q_STAGES * 2, 1], flat)
    q_sums = gl.allocate_shared_memory(gl.float32, [Q_STAGES * 2, D], flat)
    anchor_sums = gl.allocate_shared_memory(gl.float32, [Q_STAGES * 2, 1], flat)
    q_ready = gl.allocate_shared_memory(gl.int64, [Q_STAGES, 1], mbarrier.MBarrierLayout())
    q_free = gl.allocate_shared_memory(gl.int64, [Q_STAGES, 1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(Q_STAGES):
        mbarrier.init(q_ready.index(stage), count=1)
        mbarrier.init(q_free.index(stage), count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(stage), count=1)
        mbarrier.init(v_ready.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=2)
        mbarrier.init(v_free.index(stage), count=2)
    fence_async_shared()
    queries = (q_ring, work, q_ready, q_free)
    ring = (k_ring, v_ring, k_ready, v_ready, k_free, v_free)
    remarks = (flags, q_sums, anchor_sums)
    table = (groups, counter, n_groups, n_blocks, tiles, works)
    sources = (q_tiles, k_tiles, v_tiles, k, v, k_b, k_h, k_n, v_b, v_h, v_n)
    results = (redo, pooled_q, pooled_anchor)
    places = (out, row_anchor, lse, out_b, out_h, out_n, n_queries)
    shared = (places, scale, queries, ring, remarks)
    given = (remarks, results)
    gl.warp_specialize(
        [
            (attend, (0, shared, SIGN, Q_HEADS, D, LIMIT, POOL)),
            (attend, (1, shared, SIGN, Q_HEADS, D, LIMIT, POOL)),
            (
                fetch,
                (table, sources, queries, ring, given, Q_HEADS, HEADS_PER_KV, POOL),
            ),
        ],
        [WARPS, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


@gluon.jit
def fetch(
    table,
    sources,
    queries,
    ring,
    given,
    Q_HEADS: gl.constexpr,
    HEADS_PER_KV: gl.constexpr,
    POOL: gl.constexpr,
):
    """The producer: queries, keys and values of one tile of rows after the other."""
    groups, counter, n_groups, n_blocks, tiles, works = table
    q_tiles, k_tiles, v_tiles, k, v, k_b, k_h, k_n, v_b, v_h, v_n = sources
    q_ring, work, q_ready, q_free = queries
    k_ring, v_ring, k_ready, v_ready, k_free, v_free = ring
    remarks, results = given
    redo = results[0]
    KV_HEADS: gl.constexpr = Q_HEADS // HEADS_PER_KV
    STAGES: gl.constexpr = k_ring.shape[0]
    BLOCK_N: gl.constexpr = k_ring.shape[3]
    D: gl.constexpr = k_ring.shape[4]

    pid = gl.program_id(0)
    n = 0  # tiles of rows so far
    at = 0  # tiles of keys so far
    while pid < works:
        # As in `anchor_kernel`: heads that share keys are neighbours, then the tiles of a group,
        # its longest first.
        tile = tiles - 1 - pid // HEADS_PER_KV % tiles
        group = groups + pid // HEADS_PER_KV // tiles % n_groups * GROUP_FIELDS
        kv = pid // HEADS_PER_KV // tiles // n_groups
        b = kv // KV_HEADS
        kv_head = kv % KV_HEADS
        q_head = kv_head * HEADS_PER_KV + pid % HEADS_PER_KV
        row_start = gl.load(group + ROWS_START) + tile * M
        rows_end = gl.load(group + ROWS_END)
        next_pid = pid
        if row_start < rows_end:
            shift = gl.load(group + SHIFT)
            init_start = gl.load(group + INIT_START)
            init_end = gl.load(group + INIT_END)
            window_start = gl.load(group + WINDOW_START)
            first_own = row_start + shift
            last = gl.minimum(first_own + M, rows_end + shift)  # after the last row's own key
            whole = gl.maximum(first_own - window_start, 0) // BLOCK_N  # see `attend_regions`
            diagonal = window_start + whole * BLOCK_N
            init_tiles = gl.cdiv(init_end - init_start, BLOCK_N)
            masked = init_tiles + gl.cdiv(last - diagonal, BLOCK_N)

            slot = n % Q_STAGES
            mbarrier.wait(q_free.index(slot), n // Q_STAGES & 1 ^ 1)
            if n >= Q_STAGES:
                summarise(slot, work, remarks, results, D, POOL)
            about = slot * FIELDS
            tell(work, about + PID, pid, 1)
            tell(work, about + HEAD, b * Q_HEADS + q_head, 1)
            tell(work, about + ROW_START, row_start, 1)
            tell(work, about + ROW_END, rows_end, 1)
            tell(work, about + OWN_SHIFT, shift, 1)
            tell(work, about + INIT_LENGTH, init_end - init_start, 1)
            tell(work, about + DIAGONAL, diagonal, 1)
            tell(work, about + WHOLE, whole, 1)
            if POOL:
                block = gl.load(group + FIRST_BLOCK) + tile
                tell(work, about + BLOCK, (b * Q_HEADS + q_head) * n_blocks + block, 1)
            mbarrier.expect(q_ready.index(slot), M * D * 2)
            for part in gl.static_range(2):
                tma.async_copy_global_to_shared(
                    q_tiles,
                    [b, q_head, row_start + part * ROWS, 0],
                    q_ready.index(slot),
                    q_ring.index(slot * 2 + part),
                )
            k_head = k + b.to(gl.int64) * k_b + kv_head.to(gl.int64) * k_h
            v_head = v + b.to(gl.int64) * v_b + kv_head.to(gl.int64) * v_h
            for i in range(masked + whole):
                # The initial region, the diagonal, and then the whole tiles before it.
                start = window_start + (i - masked) * BLOCK_N
                stop = start + BLOCK_N  # keys from here on nobody sees
                if i < init_tiles:
                    start = init_start + i * BLOCK_N
                    stop = init_end
                elif i < masked:
                    start = diagonal + (i - init_tiles) * BLOCK_N
                    stop = last
                stage = (at + i) % STAGES
                phase = (at + i) // STAGES & 1 ^ 1  # the first round waits for nobody
                place = [b, kv_head, start, 0]
                k_buffer, v_buffer = k_ring.index(stage), v_ring.index(stage)
                mbarrier.wait(k_free.index(stage), phase)
                if start + BLOCK_N <= stop:
                    mbarrier.expect(k_ready.index(stage), BLOCK_N * D * 2)
                    tma.async_copy_global_to_shared(k_tiles, place, k_ready.index(stage), k_buffer)
                    mbarrier.wait(v_free.index(stage), phase)
                    mbarrier.expect(v_ready.index(stage), BLOCK_N * D * 2)
                    tma.async_copy_global_to_shared(v_tiles, place, v_ready.index(stage), v_buffer)
                else:
                    copy_rows(k_head, k_n, start, stop - 1, k_buffer)
                    mbarrier.arrive(k_ready.index(stage), count=1)
                    mbarrier.wait(v_free.index(stage), phase)
                    copy_rows(v_head, v_n, start, stop - 1, v_buffer)
                    mbarrier.arrive(v_ready.index(stage), count=1)
                if i == 0:  # here is time for it
                    next_pid = take_tile(counter, works)
            at += masked + whole
            n += 1
        else:
            gl.store(redo + pid, 0)
            next_pid = take_tile(counter, works)
        pid = next_pid
    for i in gl.static_range(Q_STAGES):
        slot = n % Q_STAGES
        mbarrier.wait(q_free.index(slot), n // Q_STAGES & 1 ^ 1)
        if n >= Q_STAGES:
            summarise(slot, work, remarks, results, D, POOL)
        if i == 0:
            tell(work, slot * FIELDS + PID, -1, 1)
            mbarrier.arrive(q_ready.index(slot), count=1)
        n += 1


@gluon.jit
def take_tile(counter, works):
    """The number of a tile that nobody else has; `works` and more when there is none left."""
    taken = gl.atomic_add(counter, 1, sem="relaxed")
    if taken == works - 1:  # each tile was followed by one call: nobody counts after this
        gl.store(counter, 0)  # for the next launch
    return gl.num_programs(0) + taken


@gluon.jit
def copy_rows(source, stride, start, last, buffer):
    """Rows start, start + 1, ... of keys or values into a buffer; after `last` it stands still.

    The slow way, for tiles that end before their buffer does: the copy engine would fetch rows of
    others behind them, and weights of 0 times not-a-number are not 0.
    """
    N: gl.constexpr = buffer.shape[2]
    D: gl.constexpr = buffer.shape[3]
    # The buffer as the copy engine lays it out: pieces of 8 rows and 64 columns.
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    pieces = buffer._reinterpret(buffer.dtype, [N * D // 512, 8, 64], swizzled)
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    rows = gl.arange(0, 8, gl.SliceLayout(1, layout))
    source += gl.arange(0, 64, gl.SliceLayout(0, layout))[None, :]
    # No stride is shorter: so the compiler does not know how many pieces there are, and does not
    # unroll them all.
    for i in range(gl.minimum(stride, N * D // 512)):
        row = gl.minimum(start + i % (N // 8) * 8 + rows, last).to(gl.int64)[:, None]
        at = source + i // (N // 8) * 64 + row * stride
        async_copy.async_copy_global_to_shared(pieces.index(i), at)
    async_copy.commit_group()
    async_copy.wait_group(0)
    fence_async_shared()  # matrix instructions read shared memory another way than this wrote it


@gluon.jit
def summarise(slot, work, remarks, results, D: gl.constexpr, POOL: gl.constexpr):
    """The producer writes down what the consumers remarked on the tile that was in this slot."""
    flags, q_sums, anchor_sums = remarks
    redo, pooled_q, pooled_anchor = results
    about = slot * FIELDS
    again = told(flags, slot * 2, 1) | told(flags, slot * 2 + 1, 1)
    gl.store(redo + told(work, about + PID, 1), again)
    if POOL:
        rows = told(work, about + ROW_END, 1) - told(work, about + ROW_START, 1)
        length = gl.minimum(rows, M).to(gl.float32)
        block = told(work, about + BLOCK, 1)
        layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
        sums = q_sums.index(slot * 2).load(layout) + q_sums.index(slot * 2 + 1).load(layout)
        gl.store(pooled_q + block.to(gl.int64) * D + gl.arange(0, D, layout), sums / length)
        total = told(anchor_sums, slot * 2, 1) + told(anchor_sums, slot * 2 + 1, 1)
        gl.store(pooled_anchor + block, total / length)


@gluon.jit
def tell(where, at, value, N_WARPS: gl.constexpr):
    """Write a number into shared memory, by so many warps."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [N_WARPS], [0])
    where.index(at).store(gl.full([1], value, where.dtype, layout))


@gluon.jit
def told(where, at, N_WARPS: gl.constexpr):
    """Read it."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [N_WARPS], [0])
    return gl.sum(where.index(at).load(layout), 0)


@gluon.jit
def attend(
    PART: gl.constexpr,
    shared,
    SIGN: gl.constexpr,
    Q_HEADS: gl.constexpr,
    D: gl.constexpr,
    LIMIT: gl.constexpr,
    POOL: gl.constexpr,
):
    """A consumer: 64 rows of each tile."""
    places, scale, queries, ring, remarks = shared
    out, row_anchor, lse, out_b, out_h, out_n, n_queries = places
    q_ring, work, q_ready, q_free = queries
    k_ring, v_ring, k_ready, v_ready, k_free, v_free = ring
    flags, q_sums, anchor_sums = remarks
    STAGES: gl.constexpr = k_ring.shape[0]
    BLOCK_N: gl.constexpr = k_ring.shape[3]
    dtype: gl.constexpr = k_ring.dtype
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_N, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, D, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    rows_layout: gl.constexpr = gl.SliceLayout(1, scores_layout)
    wide: gl.constexpr = rows_of(D)
    nothing = gl.zeros([ROWS, BLOCK_N], gl.float32, scores_layout)
    scale_log2 = scale * LOG2E

    if PART == 1:
        pass_turn(PART)  # part 0 is first
    n = 0  # tiles of rows so far
    at = 0  # tiles of keys so far
    mbarrier.wait(q_ready.index(0), 0)
    pid = told(work, PID, WARPS)
    while pid >= 0:
        slot = n % Q_STAGES
        about = slot * FIELDS
        head = told(work, about + HEAD, WARPS)
        first_row = told(work, about + ROW_START, WARPS)
        rows_end = told(work, about + ROW_END, WARPS)
        shift = told(work, about + OWN_SHIFT, WARPS)
        init_length = told(work, about + INIT_LENGTH, WARPS)
        diagonal = told(work, about + DIAGONAL, WARPS)
        whole = told(work, about + WHOLE, WARPS)
        init_tiles = gl.cdiv(init_length, BLOCK_N)
        last = gl.minimum(first_row + M, rows_end) + shift
        masked = init_tiles + gl.cdiv(last - diagonal, BLOCK_N)
        row_start = first_row + PART * ROWS
        own_key = row_start + shift + gl.arange(0, ROWS, rows_layout)  # [M]
        q_tile = q_ring.index(slot * 2 + PART).reshape([ROWS, D])
        acc = gl.zeros([ROWS, D], gl.float32, out_layout)

        # The first tile of keys: there is no product with values to go along with.
        stage = at % STAGES
        mbarrier.wait(k_ready.index(stage), at // STAGES & 1)
        take_turn(PART)
        keys = k_ring.index(stage).reshape([BLOCK_N, D]).permute((1, 0))  # [D, N]
        products = warpgroup_mma(q_tile, keys, nothing, use_acc=False, is_async=True)
        pass_turn(PART)
        if POOL:  # meanwhile
            mine = row_start + gl.arange(0, ROWS, gl.SliceLayout(1, wide)) < rows_end
            q_sum = gl.sum(gl.where(mine[:, None], q_tile.load(wide).to(gl.float32), 0.0), 0)
            q_sums.index(slot * 2 + PART).store(q_sum)
        products = warpgroup_mma_wait(0, deps=(products,))
        mbarrier.arrive(k_free.index(stage), count=1)
        seen = own_key + 1 - diagonal
        if init_tiles > 0:  # ends before the diagonal, or holds it
            seen = init_length + gl.minimum(seen, 0)
        products = hide(signed(products, SIGN), seen)
        origin = gl.convert_layout(gl.max(fold_max(products), 1), rows_layout)
        weights = gl.exp2(products * scale_log2 - origin_of(origin, scale_log2)[:, None])
        first_sum = gl.sum(weights, 1)

        # The others that need a mask, with a running maximum. Weights cross rounds as float32:
        # rounded, they are half as many, but registers would be cut and joined again.
        for i in range(1, masked):
            rounded = gl.convert_layout(weights.to(dtype), operand)
            before = (at + i - 1) % STAGES
            stage = (at + i) % STAGES
            mbarrier.wait(v_ready.index(before), (at + i - 1) // STAGES & 1)
            mbarrier.wait(k_ready.index(stage), (at + i) // STAGES & 1)
            take_turn(PART)
            keys = k_ring.index(stage).reshape([BLOCK_N, D]).permute((1, 0))
            products = warpgroup_mma(q_tile, keys, nothing, use_acc=False, is_async=True)
            values = v_ring.index(before).reshape([BLOCK_N, D])
            acc = warpgroup_mma(rounded, values, acc, is_async=True)
            pass_turn(PART)
            products, acc = warpgroup_mma_wait(0, deps=(products, acc))
            mbarrier.arrive(k_free.index(stage), count=1)
            mbarrier.arrive(v_free.index(before), count=1)
            seen = own_key + 1 - (diagonal + (i - init_tiles) * BLOCK_N)
            if i < init_tiles:
                seen = gl.zeros_like(own_key) + (init_length - i * BLOCK_N)
            products = hide(signed(products, SIGN), seen)
            largest = gl.convert_layout(gl.max(fold_max(products), 1), rows_layout)
            new_origin = gl.maximum(origin, largest)
            measured_from = origin_of(new_origin, scale_log2)
            shrink = gl.exp2(origin * scale_log2 - measured_from)
            origin = new_origin
            weights = gl.exp2(products * scale_log2 - measured_from[:, None])
            first_sum = first_sum * shrink + gl.sum(weights, 1)
            acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, out_layout))[:, None]

        # The rest of the window: whole tiles that every row sees.
        measured_from = origin_of(origin, scale_log2)
        row_max = fold_max(gl.full([ROWS, BLOCK_N], float("-inf"), gl.float32, scores_layout))
        row_sum = fold_sum(nothing)
        for i in range(masked, masked + whole):
            rounded = gl.convert_layout(weights.to(dtype), operand)
            before = (at + i - 1) % STAGES
            stage = (at + i) % STAGES
            mbarrier.wait(v_ready.index(before), (at + i - 1) // STAGES & 1)
            mbarrier.wait(k_ready.index(stage), (at + i) // STAGES & 1)
            take_turn(PART)
            keys = k_ring.index(stage).reshape([BLOCK_N, D]).permute((1, 0))
            values = v_ring.index(before).reshape([BLOCK_N, D])
            acc = warpgroup_mma(rounded, values, acc, is_async=True)
            products = warpgroup_mma(q_tile, keys, nothing, use_acc=False, is_async=True)
            pass_turn(PART)
            products, acc = warpgroup_mma_wait(0, deps=(products, acc))
            mbarrier.arrive(k_free.index(stage), count=1)
            mbarrier.arrive(v_free.index(before), count=1)
            products = signed(products, SIGN)
            weights = gl.exp2(products * scale_log2 - measured_from[:, None])
            row_max = gl.maximum(row_max, fold_max(products))
            row_sum += fold_sum(weights)

        # Products with the last values.
        at += masked + whole
        rounded = gl.convert_layout(weights.to(dtype), operand)
        before = (at - 1) % STAGES
        mbarrier.wait(v_ready.index(before), (at - 1) // STAGES & 1)
        values = v_ring.index(before).reshape([BLOCK_N, D])
        acc = warpgroup_mma(rounded, values, acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(v_free.index(before), count=1)

        # As in `anchor_kernel`: is the tile to be done again, anchors, sums, output.
        total = first_sum + gl.convert_layout(gl.sum(row_sum, 1), rows_layout)
        largest = gl.maximum(origin, gl.convert_layout(gl.max(row_max, 1), rows_layout))
        row = row_start + gl.arange(0, ROWS, rows_layout)
        real = row < rows_end
        bad = real & (~(total <= LIMIT) | (origin == float("-inf")))
        tell(flags, slot * 2 + PART, gl.max(bad.to(gl.int32), 0), WARPS)
        # A sum is NaN when a score was; the maximum alone would hide it.
        hidden = (total != total) & (gl.abs(largest) < float("inf"))
        anchor = gl.where(hidden, float("nan"), largest * scale)
        if POOL:
            anchor_sum = gl.sum(gl.where(real, anchor, 0.0), 0)
            tell(anchor_sums, slot * 2 + PART, anchor_sum, WARPS)
        first = head.to(gl.int64) * n_queries
        gl.store(row_anchor + first + row, anchor, mask=real)
        gl.store(lse + first + row, (measured_from + gl.log2(total)) * LN2, mask=real)
        inverse = gl.where(total == 0, 0.0, 1 / total)
        inverse = gl.convert_layout(inverse, gl.SliceLayout(1, out_layout))[:, None]
        q_tile.store((acc * inverse).to(dtype))  # in the place of the queries, to go out by rows
        row = row_start + gl.arange(0, ROWS, gl.SliceLayout(1, wide))
        dims = gl.arange(0, D, gl.SliceLayout(0, wide))[None, :]
        place = (
            out + (head // Q_HEADS).to(gl.int64) * out_b + (head % Q_HEADS).to(gl.int64) * out_h
        )
        place = place + row.to(gl.int64)[:, None] * out_n + dims
        gl.store(place, q_tile.load(wide), mask=(row < rows_end)[:, None])
        fence_async_shared()  # before the next queries are copied there
        mbarrier.arrive(q_free.index(slot), count=1)

        n += 1
        slot = n % Q_STAGES
        mbarrier.wait(q_ready.index(slot), n // Q_STAGES & 1)
        pid = told(work, slot * FIELDS + PID, WARPS)
    if PART == 0:
        take_turn(PART)  # the other has passed its turn once more


@gluon.jit
def signed(products, SIGN: gl.constexpr):
    """Products of queries that take the scale's sign."""
    return products if SIGN == 1 else products * SIGN


@gluon.jit
def hide(products, seen):
    """-inf in the place of all but the first `seen` `[M]` of each row."""
    columns = gl.arange(0, products.shape[1], gl.SliceLayout(0, products.type.layout))[None, :]
    # A thread holds columns c + (8 j or 8 j + 1): compare what is known here with what is not, in
    # place of keeping 32 sums.
    visible = (columns & -7) < (seen[:, None] - (columns & 6))
    return gl.where(visible, products, float("-inf"))


@gluon.jit
def origin_of(row_max, scale_log2):
    """Where weights are measured from, in log2 units: 0 for a row that saw no key."""
    return gl.where(row_max == float("-inf"), 0.0, row_max * scale_log2)


@gluon.jit
def fold_sum(x):
    """Sums of a row of x `[M, 4]` by the four threads that share it: no word between threads."""
    return gl.sum(gl.sum(x.reshape([x.shape[0], x.shape[1] // 8, 4, 2]), 3), 1)


@gluon.jit
def fold_max(x):
    """The same with maxima."""
    return gl.max(gl.max(x.reshape([x.shape[0], x.shape[1] // 8, 4, 2]), 3), 1)


@gluon.jit
def take_turn(PART: gl.constexpr):
    """Wait for the other consumer to pass the matrix unit on."""
    if PART == 0:
        gl.inline_asm_elementwise(
            "bar.sync 8, 256; mov.b32 $0, 0;", "=r", [], gl.int32, is_pure=False, pack=1
        )
    else:
        gl.inline_asm_elementwise(
            "bar.sync 9, 256; mov.b32 $0, 0;", "=r", [], gl.int32, is_pure=False, pack=1
        )


@gluon.jit
def pass_turn(PART: gl.constexpr):
    """Let the other consumer have it."""
    if PART == 0:
        gl.inline_asm_elementwise(
            "bar.arrive 9, 256; mov.b32 $0, 0;", "=r", [], gl.int32, is_pure=False, pack=1
        )
    else:
        gl.inline_asm_elementwise(
            "bar.arrive 8, 256; mov.b32 $0, 0;", "=r", [], gl.int32, is_pure=False, pack=1
        )
