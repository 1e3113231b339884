"""Stage 3 on Hopper: some warps gather stripes while others multiply.

The same mathematics as `sparse.sparse_kernel`, in Gluon, which lets a program say what each of
its warps does. One producer copies keys and values of the next stripes into a ring of buffers,
row by row, because stripes lie scattered. Three consumers of 64 query rows each weigh what is in
the ring: while one exponentiates, another has the matrix unit, and a stripe that was fetched once
serves 192 rows.

    k_ready, v_ready    the producer's copies into a buffer have arrived
    k_free, v_free      all consumers are done with it

A buffer's n-th use waits for the barrier's phase n mod 2.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from anchor_kernels.hopper import LOG2E, ROWS, WARPS, rows_of
from anchor_kernels.launch import HOPPER_CONSUMERS
from anchor_kernels.tables import GROUP_FIELDS, ROWS_END, ROWS_START, SPARSE_END

CONSUMERS = gl.constexpr(HOPPER_CONSUMERS)


@gluon.jit
def sparse_hopper_kernel(
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
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    first_b,
    first_h,
    first_n,
    out_b,
    out_h,
    out_n,
    n_queries,
    n_heads,
    n_groups,
    tiles,
    Q_HEADS: gl.constexpr,
    HEADS_PER_KV: gl.constexpr,
    D: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    LIMIT: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """One program: one tile of 3 x 64 rows of one group and query head, all stripes of it."""
    # As in `sparse_kernel`: most candidates first, tiles of a list are neighbours.
    pid = gl.program_id(0)
    head = (pid // tiles % n_heads).to(gl.int64)
    g = gl.load(by_work + pid // tiles // n_heads)
    bhg = head * n_groups + g
    q_head = head % Q_HEADS
    b = head // Q_HEADS
    group = groups + g * GROUP_FIELDS
    rows_end = gl.load(group + ROWS_END)
    sparse_end = gl.load(group + SPARSE_END)
    row_start = gl.load(group + ROWS_START) + pid % tiles * (CONSUMERS * ROWS)
    # Before it is known whether they are needed: nobody waits for one load after the other.
    stripes = indices + gl.load(offsets + bhg)
    count = gl.load(counts + bhg)
    if row_start >= sparse_end:
        for part in gl.static_range(CONSUMERS):
            gl.store(redo + pid * CONSUMERS + part, gl.to_tensor(0).to(gl.int8))
    else:
        q += b * q_b + q_head * q_h
        k += b * k_b + q_head // HEADS_PER_KV * k_h
        v += b * v_b + q_head // HEADS_PER_KV * v_h
        first_out += b * first_b + q_head * first_h
        first_lse += (b * Q_HEADS + q_head) * n_queries
        out += b * out_b + q_head * out_h
        redo += pid * CONSUMERS

        dtype: gl.constexpr = q.dtype.element_ty
        swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
        q_tiles = gl.allocate_shared_memory(dtype, [CONSUMERS, ROWS, D], swizzled)
        k_ring = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, D], swizzled)
        v_ring = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, D], swizzled)
        k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        for stage in gl.static_range(STAGES):
            mbarrier.init(k_ready.index(stage), count=32 * WARPS)  # each thread copies
            mbarrier.init(v_ready.index(stage), count=32 * WARPS)
            mbarrier.init(k_free.index(stage), count=CONSUMERS)
            mbarrier.init(v_free.index(stage), count=CONSUMERS)
        ring = (k_ring, v_ring, k_ready, v_ready, k_free, v_free)
        rows = (row_start, rows_end, sparse_end, count)
        places = (q, first_out, first_lse, out, redo, q_n, first_n, out_n)
        gl.warp_specialize(
            [
                (attend, (0, rows, places, scale, q_tiles, ring, LIMIT)),
                (attend, (1, rows, places, scale, q_tiles, ring, LIMIT)),
                (attend, (2, rows, places, scale, q_tiles, ring, LIMIT)),
                (gather, (k, v, k_n, v_n, stripes, count, ring)),
            ],
            [WARPS, WARPS, WARPS],
            [CONSUMER_REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )


@gluon.jit
def gather(k, v, k_n, v_n, stripes, count, ring):
    """The producer: copy the keys and values of all stripes, a tile after the other."""
    k_ring, v_ring, k_ready, v_ready, k_free, v_free = ring
    STAGES: gl.constexpr = k_ring.shape[0]
    BLOCK_N: gl.constexpr = k_ring.shape[1]
    D: gl.constexpr = k_ring.shape[2]
    layout: gl.constexpr = rows_of(D)
    at = gl.arange(0, BLOCK_N, gl.SliceLayout(1, layout))
    dims = gl.arange(0, D, gl.SliceLayout(0, layout))[None, :]
    tiles = gl.cdiv(count, BLOCK_N)
    # The first tile is the one that need not be full: what comes after it needs no mask. In its
    # empty places stands the first stripe once more; consumers hide it.
    at -= tiles * BLOCK_N - count
    next_key = gl.load(stripes + gl.maximum(at, 0), mask=(at * 0 + count) > 0, other=0)
    for i in range(tiles):
        key = next_key.to(gl.int64)[:, None]
        # A tile ahead: to read them takes longer than to start the copies.
        ahead = gl.minimum(i + 1, tiles - 1) * BLOCK_N + at
        next_key = gl.load(stripes + gl.maximum(ahead, 0))
        stage = i % STAGES
        phase = i // STAGES & 1
        mbarrier.wait(k_free.index(stage), phase ^ 1)  # the first round waits for nobody
        async_copy.async_copy_global_to_shared(k_ring.index(stage), k + key * k_n + dims)
        async_copy.mbarrier_arrive(k_ready.index(stage), increment_count=False)
        mbarrier.wait(v_free.index(stage), phase ^ 1)
        async_copy.async_copy_global_to_shared(v_ring.index(stage), v + key * v_n + dims)
        async_copy.mbarrier_arrive(v_ready.index(stage), increment_count=False)


@gluon.jit
def attend(PART: gl.constexpr, rows, places, scale, q_tiles, ring, LIMIT: gl.constexpr):
    """A consumer: 64 rows over all stripes, from stage 1's state to the output."""
    row_start, rows_end, sparse_end, count = rows
    row_start += PART * ROWS
    if row_start < sparse_end:
        rows = (row_start, rows_end, sparse_end, count)
        attend_rows(PART, rows, places, scale, q_tiles.index(PART), ring, LIMIT)
    else:  # the last tile of a group, which has no rows for this consumer
        gl.store(places[4] + PART, gl.to_tensor(0).to(gl.int8))
        k_ring, _, k_ready, v_ready, k_free, v_free = ring
        STAGES: gl.constexpr = k_ring.shape[0]
        for i in range(gl.cdiv(count, k_ring.shape[1])):
            mbarrier.wait(k_ready.index(i % STAGES), i // STAGES & 1)
            mbarrier.arrive(k_free.index(i % STAGES), count=1)
            mbarrier.wait(v_ready.index(i % STAGES), i // STAGES & 1)
            mbarrier.arrive(v_free.index(i % STAGES), count=1)


@gluon.jit
def attend_rows(PART: gl.constexpr, rows, places, scale, q_tile, ring, LIMIT: gl.constexpr):
    """The rows of a consumer, some of which are real."""
    row_start, rows_end, sparse_end, count = rows
    q, first_out, first_lse, out, redo, q_n, first_n, out_n = places
    k_ring, v_ring, k_ready, v_ready, k_free, v_free = ring
    STAGES: gl.constexpr = k_ring.shape[0]
    BLOCK_N: gl.constexpr = k_ring.shape[1]
    D: gl.constexpr = k_ring.shape[2]
    dtype: gl.constexpr = k_ring.dtype
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_N, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, D, 16])

    wide: gl.constexpr = rows_of(D)
    row = row_start + gl.arange(0, ROWS, gl.SliceLayout(1, wide))
    dims = gl.arange(0, D, gl.SliceLayout(0, wide))
    q_at = q + row.to(gl.int64)[:, None] * q_n + dims[None, :]
    q_tile.store(gl.load(q_at, mask=(row < rows_end)[:, None], other=0.0))
    fence_async_shared()  # see `take`

    # Stage 1 left (max, sum, acc) = (lse, 1, out); its acc waits in memory until the end.
    row = row_start + gl.arange(0, ROWS, gl.SliceLayout(1, scores_layout))
    lse = gl.load(first_lse + row, mask=row < rows_end, other=float("inf"))  # inf: weights of 0
    origin = gl.where(lse == float("-inf"), 0.0, lse * LOG2E)
    row_sum = gl.where(lse == float("-inf"), 0.0, 1.0)
    scale_log2 = scale * LOG2E
    acc = gl.zeros([ROWS, D], gl.float32, out_layout)
    nothing = gl.zeros([ROWS, BLOCK_N], gl.float32, scores_layout)

    # Products with the keys of one tile run beside those with the values of the tile before.
    tiles = gl.cdiv(count, BLOCK_N)
    if tiles > 0:
        take(k_ready.index(0), 0)
        keys = k_ring.index(0).permute((1, 0))  # [D, N]
        products = warpgroup_mma(q_tile, keys, nothing, use_acc=False, is_async=True)
        products = warpgroup_mma_wait(0, deps=(products,))
        mbarrier.arrive(k_free.index(0), count=1)
        hidden = tiles * BLOCK_N - count
        weights, row_sum = weigh(
            products, origin, row_sum, scale_log2, hidden, True, out_layout, dtype
        )
        for i in range(1, tiles):
            stage = i % STAGES
            before = (i - 1) % STAGES
            take(k_ready.index(stage), i // STAGES & 1)
            keys = k_ring.index(stage).permute((1, 0))
            products = warpgroup_mma(q_tile, keys, nothing, use_acc=False, is_async=True)
            take(v_ready.index(before), (i - 1) // STAGES & 1)
            acc = warpgroup_mma(weights, v_ring.index(before), acc, is_async=True)
            products = warpgroup_mma_wait(1, deps=(products,))  # all but the last: acc goes on
            mbarrier.arrive(k_free.index(stage), count=1)
            # A new name: the running product still reads the old weights.
            next_weights, row_sum = weigh(
                products, origin, row_sum, scale_log2, 0, False, out_layout, dtype
            )
            acc = warpgroup_mma_wait(0, deps=(acc,))
            mbarrier.arrive(v_free.index(before), count=1)
            weights = next_weights
        last = (tiles - 1) % STAGES
        take(v_ready.index(last), (tiles - 1) // STAGES & 1)
        acc = warpgroup_mma(weights, v_ring.index(last), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))

    row = row_start + gl.arange(0, ROWS, gl.SliceLayout(1, out_layout))
    long_row = row.to(gl.int64)[:, None]
    dims = gl.arange(0, D, gl.SliceLayout(0, out_layout))[None, :]
    real = (row < rows_end)[:, None]
    acc += gl.load(first_out + long_row * first_n + dims, mask=real, other=0.0).to(gl.float32)
    # As `unsound` has it: leave the rows to `sparse_kernel`, and what it needs.
    again = gl.max((~(row_sum <= LIMIT) | (lse == float("-inf"))).to(gl.int32), 0)
    gl.store(redo + PART, again.to(gl.int8))
    inverse = gl.convert_layout(1 / row_sum, gl.SliceLayout(1, out_layout))[:, None]
    written = (row < sparse_end)[:, None] & (again == 0)
    gl.store(out + long_row * out_n + dims, (acc * inverse).to(dtype), mask=written)


@gluon.jit
def take(ready, phase):
    """Wait for a buffer's copies, and for their being seen by matrix instructions."""
    mbarrier.wait(ready, phase)
    fence_async_shared()  # these read shared memory another way than copies write it


@gluon.jit
def weigh(
    products,
    origin,
    row_sum,
    scale_log2,
    hidden,
    HIDES: gl.constexpr,
    out_layout: gl.constexpr,
    dtype: gl.constexpr,
):
    """Weights of one tile as an operand of the next product, and the sum they are added to.

    With HIDES the first `hidden` keys are none.
    """
    weights = gl.exp2(products * scale_log2 - origin[:, None])
    if HIDES:
        keys = gl.arange(0, products.shape[1], gl.SliceLayout(0, products.type.layout))
        weights = gl.where((keys >= hidden)[None, :], weights, 0.0)
    row_sum += gl.sum(weights, 1)
    operand: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    return gl.convert_layout(weights.to(dtype), operand), row_sum
