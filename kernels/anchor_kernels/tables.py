"""The regions as tables on the device: what a program reads to know its rows and keys.

`anchor_ref.regions` alone decides who may look at whom. Its groups are written into two integer
tables, so that the kernels need no rule of their own and packed sequences, chunks and odd sizes
are no special cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import torch
import triton.language as tl
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.outliers import even_rows
from anchor_ref.regions import Group, groups

# Columns of the table of groups; the names are those of `regions.Group`.
ROWS_START = tl.constexpr(0)
ROWS_END = tl.constexpr(1)
SHIFT = tl.constexpr(2)
INIT_START = tl.constexpr(3)
INIT_END = tl.constexpr(4)
WINDOW_START = tl.constexpr(5)
FIRST_BLOCK = tl.constexpr(6)
N_BLOCKS = tl.constexpr(7)
SPARSE_END = tl.constexpr(8)  # rows from here on are the tail's
GROUP_FIELDS = tl.constexpr(9)

# Columns of the table of slots, see `Chunks`.
SLOT_GROUP = tl.constexpr(0)
SLOT_START = tl.constexpr(1)
SLOT_END = tl.constexpr(2)
SLOT_BEFORE = tl.constexpr(3)
SLOT_LAST = tl.constexpr(4)
SLOT_FIELDS = tl.constexpr(5)


# In place of an initial region: not more than the rows and keys of a tile of the fast way on
# Hopper GPUs, where only the rows of a first tile may end before these keys do.
FIRST_KEYS = 128


@dataclass(frozen=True, eq=False)
class Tables:
    """Groups and query blocks of one call.

    Attributes:
        n_groups: G.
        n_blocks: number of query blocks in all groups.
        longest: rows of the longest group.
        groups: `[G, 9]` int32, one `Group` a row, with `first_keys`; columns as named above.
        blocks: `[n_blocks, 2]` int32: first row of each query block and the row after its last.
        asked: `[n_blocks, R]` int32: rows of each block that stage 2 asks by themselves, evenly
            spaced; a block of fewer than R rows has its last one again.
        by_work: `[G]` int32: groups, those with the most candidates first. A long list that
            started last would leave most of the device idle; what starts last here is short,
            whatever is selected.
        candidates: the candidates of each group, on the host.
        tile: rows t of which every group's blocks are its tiles: [0, t), [t, 2t), ... of its rows;
            0 where there is no such number.
    """

    n_groups: int
    n_blocks: int
    longest: int
    groups: Tensor
    blocks: Tensor
    asked: Tensor
    by_work: Tensor
    candidates: tuple[range, ...]
    tile: int


@dataclass(frozen=True, eq=False)
class Chunks:
    """Candidates of all groups, cut into chunks of keys.

    A *slot* is one chunk of one group, counted group by group; each group has at least one, if
    only an empty one.

    Attributes:
        length: of a chunk, in keys.
        n_slots: W.
        most: slots of the group that has most.
        slots: `[W, 5]` int32: group, first key, key after the last, how many slots of its group
            stand before it, and whether it is the last of them.
        order: `[P, S]` int32: slots that begin with the same key, up to S of them together, -1
            where there are fewer. Whoever takes them together reads a key once for S groups. Those
            of the same keys follow each other, so that the next ones find them in the cache.
        first_slot: `[G]` int64, of each group.
    """

    length: int
    n_slots: int
    most: int
    slots: Tensor
    order: Tensor
    first_slot: Tensor


def make_tables(
    config: AnchorConfig,
    n_queries: int,
    n_keys: int,
    cu_seqlens: Tensor | None,
    device: torch.device,
) -> Tables:
    """Tables for these sizes; the same sizes give the same tables without new work."""
    bounds = None if cu_seqlens is None else tuple(cu_seqlens.tolist())
    # Memory that is given up may be in use on the stream it was made for, and on no other.
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
    # Neither a threshold nor the tail changes a region.
    config = replace(config, theta=0.0, outlier_theta=None, tail=0)
    return _tables(config, n_queries, n_keys, bounds, device, stream)


@lru_cache(maxsize=32)
def _tables(config, n_queries, n_keys, bounds, device, stream) -> Tables:
    cu_seqlens = None if bounds is None else torch.tensor(bounds)
    return tables_of(groups(config, n_queries, n_keys, cu_seqlens), device, config.outliers)


def tables_of(found: Sequence[Group], device: torch.device, asked: int = 0) -> Tables:
    """Tables of these groups of queries, `asked` rows of each block asked by themselves."""
    rows, blocks, by_block = [], [], []
    for group in found:
        init, window_start = first_keys(group)
        rows.append(
            (
                group.rows.start,
                group.rows.stop,
                group.shift,
                init.start,
                init.stop,
                window_start,
                len(blocks),
                len(group.blocks),
                group.sparse_rows.stop,
            )
        )
        blocks += [(block.start, block.stop) for block in group.blocks]
        if asked:
            own = [even_rows(block, asked) for block in group.blocks]
            by_block += [places + places[-1:] * (asked - len(places)) for places in own]
    by_work = sorted(range(len(found)), key=lambda g: -len(found[g].candidates))
    return Tables(
        n_groups=len(found),
        n_blocks=len(blocks),
        longest=max(len(group.rows) for group in found),
        groups=torch.tensor(rows, dtype=torch.int32, device=device),
        blocks=torch.tensor(blocks, dtype=torch.int32, device=device),
        asked=torch.tensor(by_block, dtype=torch.int32, device=device).view(len(blocks), asked),
        by_work=torch.tensor(by_work, dtype=torch.int32, device=device),
        candidates=tuple(group.candidates for group in found),
        tile=_common_tile(found),
    )


def first_keys(group: Group) -> tuple[range, int]:
    """What stage 1 looks at first, and where the rest of its keys begins.

    That is the initial region. A window without one before it begins where its sequence does, and
    the first keys of the window take the place: to them many heads give most of their weight, and
    weights measured from the others would overflow.
    """
    if len(group.init):
        return group.init, group.window_start
    stop = min(group.window_start + FIRST_KEYS, group.rows.stop + group.shift)
    return range(group.window_start, stop), stop


def _common_tile(found: Sequence[Group]) -> int:
    """Rows of a tile that is a block in every group, see `Tables.tile`."""
    tile = max(len(block) for group in found for block in group.blocks)
    # Only the last block of a group may be shorter; the first of a chunk may be, too.
    whole = all(len(block) == tile for group in found for block in group.blocks[:-1])
    return tile if whole else 0


def chunks_of(tables: Tables, together: int, longest: int, shortest: int, wanted: int) -> Chunks:
    """The candidates of `tables` in chunks, visited `together` at a time.

    They are `longest` keys long, or that halved until there are `wanted` visits, but not below
    `shortest`: the candidates of a short prompt in long chunks would leave most of a GPU idle.
    """
    chunks = _chunks(tables, longest, together)
    while len(chunks.order) < wanted and chunks.length // 2 >= shortest:
        chunks = _chunks(tables, chunks.length // 2, together)
    return chunks


@lru_cache(maxsize=32)
def make_chunks(tables: Tables, together: int, longest: int, shortest: int, wanted: int) -> Chunks:
    """`chunks_of`; the same tables give the same chunks without new work."""
    return chunks_of(tables, together, longest, shortest, wanted)


def _chunks(tables: Tables, chunk: int, together: int) -> Chunks:
    slots, first, last = [], [], []
    for g, candidates in enumerate(tables.candidates):
        first.append(len(slots))
        # max: no candidates are one empty slot.
        starts = range(candidates.start, max(candidates.stop, candidates.start + 1), chunk)
        for n, start in enumerate(starts):
            end = min(start + chunk, candidates.stop)
            slots.append((g, start, end, n, n == len(starts) - 1))
        last.append(len(slots) - 1)
    order = []
    in_order = sorted(range(len(slots)), key=lambda slot: (slots[slot][1], slots[slot][0]))
    for _, same_keys in groupby(in_order, key=lambda slot: slots[slot][1]):
        same_keys = list(same_keys)
        for first_taken in range(0, len(same_keys), together):
            taken = same_keys[first_taken : first_taken + together]
            order.append([*taken, *[-1] * (together - len(taken))])
    device = tables.groups.device
    return Chunks(
        length=chunk,
        n_slots=len(slots),
        most=max(b - a for a, b in zip(first, last, strict=True)) + 1,
        slots=torch.tensor(slots, dtype=torch.int32, device=device),
        order=torch.tensor(order, dtype=torch.int32, device=device),
        first_slot=torch.tensor(first, device=device),
    )
