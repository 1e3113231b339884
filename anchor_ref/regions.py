"""Who may look at whom: initial region, candidates, window (arXiv 2505.23520, component 1).

For a query at position i of group g, with S = `config.group_size` and b = `config.block_size`:

    initial region   keys [0, init_blocks·b)
    window           keys [g·S − window_blocks·b, i]
    candidates       every key between the two

The three hold each of the keys 0..i exactly once. All other files ask this one.
"""

from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Bool, Int
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_cu_seqlens, check_type


@dataclass(frozen=True)
class Group:
    """One group of queries, with the keys of its three regions.

    Every number indexes the tensors that were passed in, also for packed sequences and chunks.

    Attributes:
        rows: queries of the group, as a range of rows of q.
        shift: the key of row r is key r + shift: its own token.
        init: keys of the initial region, as far as they precede the window.
        candidates: keys that stage 2 chooses from; all of them precede every query of the group.
        window_start: row r sees keys window_start, ..., r + shift.
        blocks: the query blocks of the group, as ranges of rows of q. Blocks start at multiples of
            the block size counted from the start of the sequence, so the first block of a chunk
            and the last of a sequence may be shorter.
        tail: the last of these queries that lie in the tail of their sequence and see every key
            up to their own; empty where none does.
    """

    rows: range
    shift: int
    init: range
    candidates: range
    window_start: int
    blocks: tuple[range, ...]
    tail: range

    @property
    def candidate_columns(self) -> slice:
        """The candidates among keys counted from the first of the initial region."""
        return slice(len(self.init), len(self.init) + len(self.candidates))

    @property
    def causal_pairs(self) -> int:
        """Pairs of a query of the group and a key up to its own."""
        return causal_pairs(len(self.rows), self.rows.stop + self.shift - self.init.start)

    @property
    def sparse_rows(self) -> range:
        """The queries before the tail: of the candidates they see what was selected."""
        return range(self.rows.start, self.tail.start)

    @property
    def always_pairs(self) -> int:
        """Pairs that are kept whatever is selected: initial region, window, and the tail's."""
        window = causal_pairs(len(self.rows), self.rows.stop + self.shift - self.window_start)
        tail = len(self.tail) * len(self.candidates)
        return len(self.rows) * len(self.init) + window + tail

    def is_dense(self, rows: Int[Tensor, "R"]) -> Bool[Tensor, "R"]:
        """Which of these queries of the group see every key up to their own."""
        return rows >= self.tail.start

    @property
    def pooled_pairs(self) -> int:
        """Pairs of a block's mean query and a candidate: what stage 2 scores."""
        return len(self.blocks) * len(self.candidates)

    def outlier_pairs(self, outliers: int) -> int:
        """Pairs of an outlier row and a candidate, with so many of these rows in a block."""
        return sum(min(outliers, len(rows)) for rows in self.blocks) * len(self.candidates)


def causal_pairs(n_queries: int, n_keys: int | None = None) -> int:
    """Pairs (query, key) with the key no later than the query: N(N + 1) / 2 for N of each.

    Args:
        n_queries: Nq, at least 0; the queries are the last Nq tokens.
        n_keys: Nk, at least Nq; None means Nq.
    """
    earlier = 0 if n_keys is None else n_keys - n_queries
    return n_queries * earlier + n_queries * (n_queries + 1) // 2


def groups(
    config: AnchorConfig,
    n_queries: int,
    n_keys: int,
    cu_seqlens: Int[Tensor, "S"] | None = None,
) -> tuple[Group, ...]:
    """All groups that hold at least one query, in order; packed sequences one after the other.

    Args:
        config: sizes of block, group and regions.
        n_queries: Nq, at least 1. The queries are the last Nq tokens (chunked prefill when
            Nq < Nk).
        n_keys: Nk, at least Nq.
        cu_seqlens: boundaries 0 = c_0 <= c_1 <= ... = Nk of packed sequences; none attends to
            another. An empty sequence has no group. Needs Nq = Nk.

    Returns:
        A tuple of `Group`.

    Raises:
        TypeError: `config` is no `AnchorConfig`, or see `inputs.check_cu_seqlens`.
        ValueError: the numbers do not fit together.
    """
    check_type("config", config, AnchorConfig)
    if not 1 <= n_queries <= n_keys:
        raise ValueError(f"n_queries must be in 1..n_keys = 1..{n_keys}, got {n_queries}")
    if cu_seqlens is None:
        return _sequence_groups(config, 0, n_keys, n_keys - n_queries)
    return tuple(
        group
        for start, end in pairwise(check_cu_seqlens(cu_seqlens, n_queries, n_keys))
        for group in _sequence_groups(config, start, end, 0)
    )


def _sequence_groups(config: AnchorConfig, start: int, end: int, shift: int) -> tuple[Group, ...]:
    """Groups of one sequence: its keys are [start, end), its first query is key start + shift."""
    size, block = config.group_size, config.block_size
    init_end = min(start + config.init_blocks * block, end)
    first_query = start + shift
    found = []
    for g in range((first_query - start) // size, -(-(end - start) // size)):
        group_start = start + g * size
        tokens = range(max(group_start, first_query), min(group_start + size, end))
        window_start = max(start, group_start - config.window_blocks * block)
        found.append(
            Group(
                rows=_moved(tokens, -shift),
                shift=shift,
                init=range(start, min(init_end, window_start)),
                candidates=range(min(init_end, window_start), window_start),
                window_start=window_start,
                blocks=tuple(
                    _moved(range(max(b, tokens.start), min(b + block, tokens.stop)), -shift)
                    for b in range(group_start, tokens.stop, block)
                    if b + block > tokens.start
                ),
                tail=_moved(
                    range(min(max(end - config.tail, tokens.start), tokens.stop), tokens.stop),
                    -shift,
                ),
            )
        )
    return tuple(found)


def _moved(indices: range, by: int) -> range:
    return range(indices.start + by, indices.stop + by)


def even_rows(block: range, count: int) -> list[int]:
    """A row in the middle of each of `count` equal parts of a block; all where there are fewer.

    i_r = first row + ⌊(2r + 1) · rows / 2R⌋   for r = 0 … R − 1

    Args:
        block: one of `Group.blocks`.
        count: R, at least 1.
    """
    count = min(count, len(block))
    return [block[(2 * part + 1) * len(block) // (2 * count)] for part in range(count)]
