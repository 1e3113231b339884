"""Which blocks of 128 x 128 pairs are multiplied, and what they hold: one map for every executor.

A selection becomes a map by rounding up: a block is kept whole where it holds a kept pair. The
block on the diagonal always is, under the causal mask. Recall and density are those of the map,
so of what is executed, not of the selection that it came from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from anchor_lab.experiments.attention.jobs import Case, block_pairs, kept_blocks, tables_of
from anchor_lab.methods import Selection
from anchor_lab.methods.scores import scores_of_rows
from anchor_lab.methods.selection import block_sums, token_blocks
from anchor_ref.regions import causal_pairs

BLOCK = 128  # what every executor here can do


@dataclass(frozen=True, eq=False)
class BlockMap:
    """Blocks that are multiplied.

    Attributes:
        before: query block by key block, those before the diagonal; the diagonal's are kept too,
            and not marked.
        n: N.

    Raises:
        ValueError: a block on or after the diagonal is marked, or there are not ceil(N / 128).
    """

    before: Bool[Tensor, "B Hq T T"]
    n: int

    def __post_init__(self):
        size = -(-self.n // BLOCK)
        if self.before.shape[-2:] != (size, size):
            raise ValueError(
                f"before must be {size} x {size} blocks for {self.n} tokens, "
                f"got {tuple(self.before.shape[-2:])}"
            )
        if bool(self.before.triu().any()):
            raise ValueError("before must mark no block on the diagonal or after it, but does")

    @cached_property
    def whole(self) -> Bool[Tensor, "B Hq T T"]:
        """With the diagonal."""
        eye = torch.eye(self.before.shape[-1], dtype=torch.bool, device=self.before.device)
        return self.before | eye

    @property
    def density(self) -> float:
        """Causal pairs in the blocks over all causal pairs, mean over batch and heads."""
        batch, heads = self.before.shape[:2]
        pairs = block_pairs(self.before.sum(-1), BLOCK, self.n)
        return pairs / (batch * heads * causal_pairs(self.n))

    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As in `jobs.tables_of`."""
        return tables_of(self.before)

    def flattened(self, kv_heads: int) -> tuple[Int[Tensor, "R"], Int[Tensor, "K"]]:
        """All heads of one prompt under each other, as a sparse matrix of blocks.

        Row block h·T + t is query block t of query head h; column block u of its kv head g is
        g·T + u. The diagonal comes last in its row.

        Args:
            kv_heads: Hkv.

        Returns:
            Where the list of each row block begins and, at last, ends, and the lists; int32.

        Raises:
            ValueError: there is more than one prompt.
        """
        batch, heads, size, _ = self.before.shape
        if batch != 1:
            raise ValueError(f"the map must be of one prompt, got {batch}")
        head, _, column = self.whole[0].nonzero(as_tuple=True)  # in rising order
        starts = pad(self.whole[0].sum(-1).flatten().cumsum(0), (1, 0))
        lists = head // (heads // kv_heads) * size + column
        return starts.int(), lists.int()

    def recall(self, mass: Float[Tensor, "B Hq N T"]) -> Float[Tensor, "B Hq N"]:
        """Dense softmax mass of each row in its blocks.

        Args:
            mass: of `block_mass`.
        """
        rows = self.whole.repeat_interleave(BLOCK, 2)[:, :, : self.n]
        return (mass * rows).sum(-1)


def everything(batch: int, heads: int, n: int, device: torch.device | str) -> BlockMap:
    """Dense attention as a map."""
    size = -(-n // BLOCK)
    lower = torch.ones(size, size, dtype=torch.bool, device=device).tril(-1)
    return BlockMap(lower.expand(batch, heads, -1, -1).contiguous(), n)


def of_selection(selection: Selection) -> BlockMap:
    """The blocks that hold a kept pair of any method's selection."""
    n = selection.shape[2]
    size, rows_of = -(-n // BLOCK), []
    for rows in token_blocks(n, BLOCK):
        keys = pad(selection.rows(rows).any(2), (0, size * BLOCK - rows.stop))  # [B, Hq, T·128]
        rows_of.append(keys.unflatten(-1, (size, BLOCK)).any(-1))
    return BlockMap(torch.stack(rows_of, 2).tril(-1), n)


def of_ours(case: Case) -> BlockMap:
    """The blocks that hold a pair that AnchorAttention keeps, without a tail.

    Raises:
        ValueError: the method's own blocks are of another size.
    """
    if case.config.block_size != BLOCK:
        raise ValueError(f"block_size must be {BLOCK}, got {case.config.block_size}")
    return BlockMap(kept_blocks(case.stripes, case.config, case.n), case.n)


def block_mass(q: Tensor, k: Tensor, scale: float) -> Float[Tensor, "B Hq N T"]:
    """Dense softmax mass of each row on each key block, in float32, float64 for such inputs.

    With it the recall of any map costs a product: 0.3 GB for nine heads at 32 768 tokens.

    Args:
        q, k, scale: as in `Method.choose`.
    """
    n = q.shape[2]
    size, parts = -(-n // BLOCK), []
    for _, scores in scores_of_rows(q, k, scale, range(n), BLOCK):
        held = block_sums(scores.softmax(-1), BLOCK)
        parts.append(pad(held, (0, size - held.shape[-1])))
    return torch.cat(parts, 2)


def first_that(reaches: Callable[[int], bool], count: int) -> int | None:
    """The first of 0, ..., count − 1 that reaches something, by bisection.

    Args:
        reaches: from some place on true.
        count: at least 1.

    Returns:
        The place; None where the last does not reach it.
    """
    if not reaches(count - 1):
        return None
    low, high = -1, count - 1  # high reaches; low does not, or is before the first
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high
