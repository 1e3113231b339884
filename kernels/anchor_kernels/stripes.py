"""Stage 2: the difference test, and its decisions as a ragged list. Mirrors `anchor_ref.stripes`.

Four steps, none with a buffer wider than one bit per candidate:

    pool      mean query and mean anchor of every block, unless stage 1 has left them
    select    one bit for each candidate of each list, 32 in a word, and how many are set
    offsets   where each list begins: prefix sums of those counts, or a place for each candidate
    compact   words to key positions, and the length of each list
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from anchor_kernels.launch import SelectLaunch, padded_head_dim, select_launch
from anchor_kernels.prepared import Prepared
from anchor_kernels.support import check_call, multiprocessors
from anchor_kernels.tables import (
    FIRST_BLOCK,
    GROUP_FIELDS,
    N_BLOCKS,
    SLOT_BEFORE,
    SLOT_END,
    SLOT_FIELDS,
    SLOT_GROUP,
    SLOT_LAST,
    SLOT_START,
    Chunks,
    Tables,
    make_chunks,
    make_tables,
)
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_tensor, check_type
from anchor_ref.plan import StripePlan

WORD = tl.constexpr(32)  # decisions in a word
SHORTEST = 4  # tiles of a chunk


def identify_stripes(
    q: Tensor,
    k: Tensor,
    row_anchor: Tensor,
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    launch: SelectLaunch | None = None,
) -> StripePlan:
    """Select the candidates that lie within θ of the anchor for at least one block of the group.

    keep key j for group g   when   ā_t − scale · <q̄_t, k_j> <= θ   for some block t of g

    with ā_t and q̄_t the means of a_i and q_i over the queries of block t that exist. Where
    `config.outliers` is not 0, which is an extension, also

    keep key j for group g   when   a_i − scale · <q_i, k_j> <= θ₂   for some row i that g asks

    Args:
        q: queries, `[B, Hq, Nq, D]`, float16, bfloat16 or float32, D at most 256, any strides.
        k: keys, `[B, Hkv, Nk, D]`.
        row_anchor: a_i from stage 1, `[B, Hq, Nq]` float32, natural-log units.
        config: block and group sizes, and θ; outlier rows and θ₂ of the extension, of which only
            evenly spaced ones are asked: `outlier_choice` must be "even" where there are any.
        scale: factor of q·k; None means 1/sqrt(D).
        cu_seqlens: boundaries of packed sequences, see `anchor_ref.regions.groups`.
        launch: tile sizes, when another choice than the shipped one is to be tried.

    Returns:
        One ascending list of keys for every batch entry, query head and group.

    Raises:
        TypeError, ValueError: see `anchor_ref.inputs.check_inputs`; or `row_anchor` does not fit
            q.
        UnsupportedError: the kernels cannot run here or on these inputs; the message says why.

    Means and comparisons are float32. For a half-precision k, q̄_t is split into a rounded part and
    a rounded rest: two products on the matrix units, each exact before it is summed in float32.
    A single row needs one.
    A comparison with NaN keeps the key, as in the reference.
    """
    check_type("config", config, AnchorConfig)
    scale = check_call(q, k, None, scale, cu_seqlens, config)
    check_tensor("row_anchor", row_anchor, q.shape[:3], (torch.float32,), q.device)
    launch = launch or select_launch(q, config.outliers > 0)
    tables = make_tables(config, q.shape[2], k.shape[2], cu_seqlens, q.device)
    batch, q_heads, _, head_dim = q.shape
    stack = stack_rows(config, q_heads // k.shape[1], tables.n_groups, launch.rows)
    chunks = make_chunks(*cuts(q, k, tables, stack, launch))
    row_anchor = row_anchor.contiguous()

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(batch, q_heads, *shape, dtype=dtype, device=q.device)

    with torch.cuda.device_of(q):
        pooled_q = empty(tables.n_blocks, head_dim, dtype=torch.float32)
        pooled_anchor = empty(tables.n_blocks, dtype=torch.float32)
        prepare_pool(q, tables)(q, row_anchor, pooled_q, pooled_anchor, tables.blocks)
        words = empty(chunks.n_slots, chunks.length // WORD.value, dtype=torch.int32)
        slot_counts = empty(chunks.n_slots, dtype=torch.int32)
        prepare_select(q, k, tables, chunks, stack, scale, config, launch)(
            pooled_q,
            pooled_anchor,
            q,
            row_anchor,
            k,
            words,
            slot_counts,
            tables.groups,
            tables.asked,
            chunks.slots,
            chunks.order,
        )
        offsets, total = lists_of(slot_counts, chunks)
        counts = torch.empty(offsets.shape, dtype=torch.int32, device=q.device)
        indices = torch.empty(total, dtype=torch.int32, device=q.device)
        prepare_compact(q, tables, chunks)(
            words, slot_counts, offsets, indices, counts, chunks.slots
        )
    return StripePlan(counts, offsets, indices)


def lists_of(slot_counts: Tensor, chunks: Chunks) -> tuple[Tensor, int]:
    """Where each list begins, `[B, Hq, G]` int64, and the length of all: the host waits for it."""
    ends = slot_counts.flatten().cumsum(0, dtype=torch.int64).view(slot_counts.shape)
    return (ends - slot_counts)[..., chunks.first_slot], int(ends[-1, -1, -1])


def prepare_pool(q: Tensor, tables: Tables) -> Prepared:
    """Means over each query block: `[B, Hq, blocks, D]` and `[B, Hq, blocks]`, float32."""
    batch, q_heads, n_queries, head_dim = q.shape
    return Prepared(
        pool_kernel,
        (batch * q_heads * tables.n_blocks,),
        (*q.stride(), n_queries, tables.n_blocks),
        {
            "Q_HEADS": q_heads,
            "D": head_dim,
            "BLOCK_D": padded_head_dim(head_dim),
            "BLOCK_M": 64,
        },
        {"num_warps": 4},
    )


@triton.jit
def pool_kernel(
    q,
    row_anchor,
    pooled_q,
    pooled_anchor,
    blocks,
    q_b,
    q_h,
    q_n,
    q_d,
    n_queries,
    n_blocks,
    Q_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One program: one query block of one query head."""
    pid = tl.program_id(0)
    block = pid % n_blocks
    head = (pid // n_blocks).to(tl.int64)  # of all heads of the batch
    start = tl.load(blocks + 2 * block)
    end = tl.load(blocks + 2 * block + 1)
    dims = tl.arange(0, BLOCK_D).to(tl.int64)
    q += head // Q_HEADS * q_b + head % Q_HEADS * q_h + dims[None, :] * q_d
    q_sum = tl.zeros([BLOCK_D], tl.float32)
    anchor_sum = tl.zeros([BLOCK_M], tl.float32)
    for first in range(start, end, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        real = (rows < end)[:, None] & (dims < D)[None, :]
        part = tl.load(q + rows.to(tl.int64)[:, None] * q_n, mask=real, other=0.0)  # [M, D]
        q_sum += tl.sum(part.to(tl.float32), 0)
        anchor_sum += tl.load(row_anchor + head * n_queries + rows, mask=rows < end, other=0.0)
    # The block's own length: a ragged last block holds fewer queries.
    length = (end - start).to(tl.float32)
    tl.store(pooled_q + (head * n_blocks + block) * D + dims, q_sum / length, mask=dims < D)
    tl.store(pooled_anchor + head * n_blocks + block, tl.sum(anchor_sum, 0) / length)


class Stack(NamedTuple):
    """The rows of a tile of stage 2: groups, times query heads that share keys, times blocks."""

    groups: int
    heads: int
    blocks: int


def stack_rows(config: AnchorConfig, heads_per_kv: int, n_groups: int, rows: int) -> Stack:
    """How to fill `rows` with what needs the same keys, so that a key is read once for all of it.

    All three are powers of two. Blocks come first, then heads, then groups.
    """
    blocks = min(triton.next_power_of_2(config.step), rows)
    heads = min(triton.next_power_of_2(heads_per_kv), rows // blocks)
    groups = min(triton.next_power_of_2(n_groups), rows // blocks // heads)
    # Matrix instructions take 16 rows or more.
    return Stack(groups, heads, max(blocks, 16 // heads // groups))


def cuts(
    q: Tensor, k: Tensor, tables: Tables, stack: Stack, launch: SelectLaunch
) -> tuple[Tables, int, int, int, int]:
    """How to cut the candidates, see `chunks_of`: a program takes a chunk for each kv head."""
    wanted = triton.cdiv(4 * multiprocessors(q), k.shape[0] * k.shape[1])
    return tables, stack.groups, launch.chunk, SHORTEST * launch.block_n, wanted


def prepare_select(
    q: Tensor,
    k: Tensor,
    tables: Tables,
    chunks: Chunks,
    stack: Stack,
    scale: float,
    config: AnchorConfig,
    launch: SelectLaunch,
) -> Prepared:
    """Decisions `[B, Hq, slots, chunk / 32]` int32, bit by bit, and their number by slot."""
    heads_per_kv = q.shape[1] // k.shape[1]
    head_tiles = triton.cdiv(heads_per_kv, stack.heads)
    visits = len(chunks.order)
    return Prepared(
        select_kernel,
        (k.shape[0] * k.shape[1] * visits * head_tiles,),
        (
            *(scale, config.theta, config.row_theta),
            *q.stride(),
            *k.stride(),
            *(q.shape[2], tables.n_blocks, chunks.n_slots, visits),
        ),
        {
            "Q_HEADS": q.shape[1],
            "HEADS_PER_KV": heads_per_kv,
            "D": k.shape[3],
            "BLOCK_D": padded_head_dim(k.shape[3]),
            "GROUPS": stack.groups,
            "HEADS": stack.heads,
            "STEP_TILE": stack.blocks,
            "ONE_TILE": config.step <= stack.blocks,
            "ASKED": config.outliers,
            "HELD": config.step <= stack.blocks and config.outliers <= launch.held,
            "SPLIT": k.dtype != torch.float32,
            "BLOCK_N": launch.block_n,
            "CHUNK": chunks.length,
        },
        {"num_warps": launch.num_warps, "num_stages": launch.num_stages},
    )


@triton.jit
def select_kernel(
    pooled_q,
    pooled_anchor,
    q,
    row_anchor,
    k,
    words,
    counts,
    groups,
    asked,
    slots,
    order,
    scale,
    theta,
    row_theta,
    q_b,
    q_h,
    q_n,
    q_d,
    k_b,
    k_h,
    k_n,
    k_d,
    n_queries,
    n_blocks,
    n_slots,
    visits,
    Q_HEADS: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUPS: tl.constexpr,
    HEADS: tl.constexpr,
    STEP_TILE: tl.constexpr,
    ONE_TILE: tl.constexpr,
    ASKED: tl.constexpr,
    HELD: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program: HEADS query heads of one kv head, GROUPS groups, one chunk of their keys.

    ASKED rows of each block make as many more tiles of queries, row r of every block one of them.
    With HELD they stay in shared memory while the keys pass by, else they are read for each tile
    of keys.
    """
    HEAD_TILES: tl.constexpr = (HEADS_PER_KV + HEADS - 1) // HEADS
    KV_HEADS: tl.constexpr = Q_HEADS // HEADS_PER_KV
    LISTS: tl.constexpr = GROUPS * HEADS
    pid = tl.program_id(0)
    order += pid // HEAD_TILES % visits * GROUPS
    kv = pid // HEAD_TILES // visits
    b = (kv // KV_HEADS).to(tl.int64)
    kv_head = (kv % KV_HEADS).to(tl.int64)
    first_head = b * Q_HEADS + kv_head * HEADS_PER_KV  # of all heads of the batch
    head_tile = pid % HEAD_TILES * HEADS

    # Lists are those of the heads of one group, then those of the next.
    of_list = tl.arange(0, LISTS)
    slot = tl.load(order + of_list // HEADS)  # [LISTS], -1 for none
    head = head_tile + of_list % HEADS
    real_list = (slot >= 0) & (head < HEADS_PER_KV)
    end = tl.load(slots + slot * SLOT_FIELDS + SLOT_END, mask=slot >= 0, other=0)
    last = tl.max(end, 0)
    start_of_all = tl.load(slots + tl.load(order) * SLOT_FIELDS + SLOT_START)
    place = (first_head + head) * n_slots + slot  # [LISTS]
    words += (place * (CHUNK // WORD))[:, None]
    found = tl.zeros([LISTS, BLOCK_N // WORD], tl.int32)

    # Rows of the tile: the blocks of one list, then those of the next.
    row = tl.arange(0, LISTS * STEP_TILE)
    row_block = row % STEP_TILE
    row_head = head_tile + row // STEP_TILE % HEADS
    row_slot = tl.load(order + row // STEP_TILE // HEADS)
    g = tl.load(slots + row_slot * SLOT_FIELDS + SLOT_GROUP, mask=row_slot >= 0, other=0)
    group = groups + g * GROUP_FIELDS
    # A row of no group or no head has no blocks.
    real_row = (row_slot >= 0) & (row_head < HEADS_PER_KV)
    group_blocks = tl.load(group + N_BLOCKS, mask=real_row, other=0)  # [M]
    most_blocks = tl.max(group_blocks, 0)
    blocks_start = tl.load(group + FIRST_BLOCK, mask=real_row, other=0)
    of_head = first_head + row_head
    row_first = of_head * n_blocks + blocks_start

    dims = tl.arange(0, BLOCK_D).to(tl.int64)
    q += b * q_b + (kv_head * HEADS_PER_KV + row_head) * q_h  # [M]
    row_anchor += of_head * n_queries
    keys = tl.arange(0, BLOCK_N)
    k += b * k_b + kv_head * k_h + dims[:, None] * k_d
    real_row = row_block < group_blocks
    if ONE_TILE:  # the pooled queries stay where they are
        high, low, anchor = load_pooled(
            pooled_q, pooled_anchor, row_first + row_block, real_row, dims, D, k.dtype.element_ty
        )
    if HELD:
        held = ()
        for r in tl.static_range(ASKED):
            at = asked + (blocks_start + row_block) * ASKED + r
            held += (load_asked(q, row_anchor, at, q_n, q_d, real_row, dims, D),)
    for start in range(start_of_all, last, BLOCK_N):
        real_key = start + keys < last
        k_mask = real_key[None, :] & (dims < D)[:, None]
        k_part = tl.load(
            k + (start + keys).to(tl.int64)[None, :] * k_n, mask=k_mask, other=0.0
        )  # [D, N]
        if ONE_TILE:
            products = mean_products(high, low, k_part, SPLIT)
            kept = any_keeps(
                products, anchor, real_row, scale, theta, LISTS, STEP_TILE
            )  # [LISTS, N / 32]
            if HELD:
                for r in tl.static_range(ASKED):
                    row_q, own_anchor = held[r]
                    products = tl.dot(row_q, k_part, input_precision="ieee")
                    kept |= any_keeps(
                        products, own_anchor, real_row, scale, row_theta, LISTS, STEP_TILE
                    )
            else:
                for r in range(ASKED):
                    at = asked + (blocks_start + row_block) * ASKED + r
                    row_q, own_anchor = load_asked(q, row_anchor, at, q_n, q_d, real_row, dims, D)
                    products = tl.dot(row_q, k_part, input_precision="ieee")
                    kept |= any_keeps(
                        products, own_anchor, real_row, scale, row_theta, LISTS, STEP_TILE
                    )
        else:
            kept = tl.zeros([LISTS, BLOCK_N // WORD], tl.int32)
            for t in range(0, most_blocks, STEP_TILE):
                real_row = t + row_block < group_blocks
                high, low, anchor = load_pooled(
                    pooled_q,
                    pooled_anchor,
                    row_first + t + row_block,
                    real_row,
                    dims,
                    D,
                    k.dtype.element_ty,
                )
                products = mean_products(high, low, k_part, SPLIT)
                kept |= any_keeps(products, anchor, real_row, scale, theta, LISTS, STEP_TILE)
                for r in range(ASKED):
                    at = asked + (blocks_start + t + row_block) * ASKED + r
                    row_q, own_anchor = load_asked(q, row_anchor, at, q_n, q_d, real_row, dims, D)
                    products = tl.dot(row_q, k_part, input_precision="ieee")
                    kept |= any_keeps(
                        products, own_anchor, real_row, scale, row_theta, LISTS, STEP_TILE
                    )
        word = start + tl.arange(0, BLOCK_N // WORD) * WORD  # its first key
        kept &= first_bits(end[:, None] - word[None, :])
        found += count_bits(kept)
        tl.store(words + ((word - start_of_all) // WORD)[None, :], kept, mask=real_list[:, None])
    tl.store(counts + place, tl.sum(found, 1), mask=real_list)


@triton.jit
def load_pooled(pooled_q, pooled_anchor, at, real_row, dims, D: tl.constexpr, dtype: tl.constexpr):
    """Pooled queries `[M, D]` as rounded part and rounded rest, and pooled anchors `[M]`."""
    mask = real_row[:, None] & (dims < D)[None, :]
    pooled = tl.load(pooled_q + at[:, None] * D + dims[None, :], mask=mask, other=0.0)
    anchor = tl.load(pooled_anchor + at, mask=real_row, other=0.0)
    high = pooled.to(dtype)
    low = (pooled - high.to(tl.float32)).to(dtype)
    return high, low, anchor


@triton.jit
def load_asked(q, row_anchor, at, q_n, q_d, real_row, dims, D: tl.constexpr):
    """Queries `[M, D]` that are asked by themselves, and their anchors `[M]`."""
    row = tl.load(at, mask=real_row, other=0).to(tl.int64)
    mask = real_row[:, None] & (dims < D)[None, :]
    asked = tl.load((q + row * q_n)[:, None] + dims[None, :] * q_d, mask=mask, other=0.0)
    return asked, tl.load(row_anchor + row, mask=real_row, other=0.0)


@triton.jit
def mean_products(high, low, k_part, SPLIT: tl.constexpr):
    """Products of mean queries and keys, `[M, N]`; with SPLIT a query is high + low."""
    products = tl.dot(high, k_part, input_precision="ieee")
    if SPLIT:
        products = tl.dot(low, k_part, products)
    return products


@triton.jit
def any_keeps(
    products, anchor, real_row, scale, theta, LISTS: tl.constexpr, STEP_TILE: tl.constexpr
):
    """Which keys some query of each list keeps: bits of `[LISTS, N / 32]` int32."""
    # Not "<= theta": NaN is kept.
    keep = real_row[:, None] & ~(anchor[:, None] - products * scale > theta)
    # Words first, then blocks: threads exchange 32 decisions at a time.
    N: tl.constexpr = products.shape[1]
    bit = 1 << (tl.arange(0, N) % WORD)
    bits = tl.reshape(tl.where(keep, bit[None, :], 0), [LISTS, STEP_TILE, N // WORD, WORD])
    return tl.reduce_or(tl.sum(bits, 3), 1)


@triton.jit
def first_bits(n):
    """Words whose first n bits are set: none for n <= 0, all for n >= 32."""
    ones = tl.full(n.shape, 0xFFFFFFFF, tl.uint32) >> (32 - tl.minimum(tl.maximum(n, 1), 32))
    return tl.where(n > 0, ones, 0).to(tl.int32, bitcast=True)


@triton.jit
def count_bits(words):
    """Set bits of each word: of pairs, fours, eights, halves, and of it all."""
    x = words.to(tl.uint32, bitcast=True)
    x -= (x >> 1) & 0x55555555
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x += x >> 8
    x += x >> 16
    return (x & 63).to(tl.int32)


def prepare_compact(q: Tensor, tables: Tables, chunks: Chunks) -> Prepared:
    """The words as lists of keys, each from its offset on, and the lists' lengths."""
    return Prepared(
        compact_kernel,
        (q.shape[0] * q.shape[1] * chunks.n_slots,),
        (chunks.n_slots, tables.n_groups),
        {
            "MOST_SLOTS": triton.next_power_of_2(chunks.most),
            "WORDS": chunks.length // WORD.value,
        },
        {"num_warps": 4},
    )


@triton.jit
def compact_kernel(
    words,
    slot_counts,
    offsets,
    indices,
    counts,
    slots,
    n_slots,
    n_groups,
    MOST_SLOTS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """One program: one slot of one query head, its set bits written as key positions."""
    pid = tl.program_id(0).to(tl.int64)
    slots += pid % n_slots * SLOT_FIELDS
    first = tl.load(slots + SLOT_START)
    end = tl.load(slots + SLOT_END)
    n_before = tl.load(slots + SLOT_BEFORE)
    bhg = pid // n_slots * n_groups + tl.load(slots + SLOT_GROUP)
    # The slots of a list lie side by side: what those before this one hold stands before it.
    other = tl.arange(0, MOST_SLOTS)
    before = tl.load(slot_counts + pid - n_before + other, mask=other < n_before, other=0)
    start = tl.sum(before, 0)
    if tl.load(slots + SLOT_LAST) != 0:
        tl.store(counts + bhg, start + tl.load(slot_counts + pid))

    word = tl.arange(0, WORDS)
    lane = tl.arange(0, WORD)
    # A word after the last candidate was never written.
    packed = tl.load(words + pid * WORDS + word, mask=first + word * WORD < end, other=0)
    bits = (packed[:, None] >> lane[None, :]) & 1  # [WORDS, 32]
    within = tl.cumsum(bits, 1)
    in_word = tl.sum(bits, 1)
    earlier = tl.cumsum(in_word, 0) - in_word
    at = tl.load(offsets + bhg) + start + earlier[:, None] + within - 1
    key = first + word[:, None] * WORD + lane[None, :]
    tl.store(indices + at, key, mask=bits != 0)
