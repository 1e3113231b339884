"""What a method hands over: the keys that each query keeps, a few query rows at a time.

Nothing here is as large as N x N. A mask over all pairs exists only on request, for small N.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from anchor_ref.config import AnchorConfig
from anchor_ref.regions import causal_pairs

LARGEST_MASK = 4096  # tokens for which `to_mask` builds all N x N pairs
ROWS = 128  # query rows looked at in one go


@dataclass(frozen=True, eq=False)
class Selection:
    """The pairs (query, key) that a method keeps, and what choosing and using them costs.

    Attributes:
        shape: (B, Hq, N).
        rows: for a range of query rows, not empty, the keys that each of them keeps, as a mask
            `[B, Hq, len(rows), rows.stop]` over the keys up to the last row's own. No row keeps a
            later key, and each keeps at least one.
        executed: pairs multiplied when only whole tiles of the method are, `[B, Hq]` float64; None
            where the method has no tiles: then those kept.
        scored: pairs scored to choose, per head, x 1/2 where only q·k is formed.
        reused: those of `scored` that attention goes on with in place of scoring its pairs again,
            in the same unit, `[B, Hq]` float64; they are in `executed` too, and a total counts
            them once. None where there are none.
    """

    shape: tuple[int, int, int]
    rows: Callable[[range], Bool[Tensor, "B Hq R M"]]
    executed: Float[Tensor, "B Hq"] | None
    scored: float
    reused: Float[Tensor, "B Hq"] | None = None

    def __iter__(self) -> Iterator[tuple[range, Bool[Tensor, "B Hq R M"]]]:
        """All query rows, `ROWS` at a time, with their masks."""
        for rows in token_blocks(self.shape[2], ROWS):
            yield rows, self.rows(rows)

    def of_heads(self, heads: Sequence[int]) -> "Selection":
        """The same for some of the query heads."""
        heads = list(heads)
        executed = None if self.executed is None else self.executed[:, heads]
        shape = (self.shape[0], len(heads), self.shape[2])
        return Selection(shape, lambda rows: self.rows(rows)[:, heads], executed, self.scored)

    def to_mask(self) -> Bool[Tensor, "B Hq N N"]:
        """All pairs.

        Raises:
            ValueError: N is larger than `LARGEST_MASK`.
        """
        batch, heads, n = self.shape
        if n > LARGEST_MASK:
            raise ValueError(
                f"to_mask holds all pairs of at most {LARGEST_MASK} tokens, got {n}; "
                "iterate over the selection for more"
            )
        parts = [pad(mask, (0, n - mask.shape[-1])) for _, mask in self]
        return torch.cat(parts, 2).view(batch, heads, n, n)


def with_tail(selection: Selection, tail: int) -> Selection:
    """The same, but the last `tail` queries keep every key up to their own.

    They are counted as a dense pass behind the method's own, which goes over all rows. Choosing
    costs what it did.

    Raises:
        ValueError: `tail` is no integer of at least 0.
    """
    tail = AnchorConfig(tail=tail).tail  # refuses what is none
    if not tail:
        return selection
    n = selection.shape[2]
    first = max(n - tail, 0)

    def keep(rows: range) -> Tensor:
        mask = selection.rows(rows)
        dense = torch.arange(rows.start, rows.stop, device=mask.device) >= first
        return mask | (dense[:, None] & causal_mask(rows, mask.device))

    executed = selection.executed
    if executed is not None:
        executed = executed + causal_pairs(n - first, n)
    return Selection(selection.shape, keep, executed, selection.scored, selection.reused)


def causal_mask(rows: range, device: torch.device | None = None) -> Bool[Tensor, "R M"]:
    """Keys up to each row's own, `[len(rows), rows.stop]`."""
    own = torch.arange(rows.start, rows.stop, device=device)
    return torch.arange(rows.stop, device=device) <= own[:, None]


def token_blocks(n: int, size: int) -> list[range]:
    """The tokens of each block of `size`; the last may be shorter."""
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def block_sums(x: Float[Tensor, "*batch M"], size: int) -> Float[Tensor, "*batch T"]:
    """Sums over blocks of the last dimension; the last block may be shorter."""
    return pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size)).sum(-1)


def block_selection(
    blocks: Bool[Tensor, "B Hq T U"], n: int, q_block: int, k_block: int, scored: float
) -> Selection:
    """The selection that keeps whole blocks, as far as they are causal.

    Args:
        blocks: which of the ceil(N / q_block) x ceil(N / k_block) blocks are kept; what lies
            after the diagonal does not matter.
        n: N.
        q_block, k_block: queries and keys of a block.
        scored: see `Selection`.
    """
    batch, heads, n_q_blocks, n_k_blocks = blocks.shape
    q_ends = (torch.arange(n_q_blocks, device=blocks.device) + 1) * q_block
    starts = torch.arange(n_k_blocks, device=blocks.device) * k_block
    blocks = blocks & (starts < q_ends[:, None].clamp(max=n))

    def keep(rows: range) -> Tensor:
        first, last = rows.start // q_block, (rows.stop - 1) // q_block
        wide = blocks[:, :, first : last + 1].repeat_interleave(k_block, -1)[..., : rows.stop]
        index = torch.arange(rows.start, rows.stop, device=blocks.device) // q_block - first
        return wide[:, :, index] & causal_mask(rows, blocks.device)

    executed = blocks.sum((-2, -1)).double() * (q_block * k_block)
    return Selection((batch, heads, n), keep, executed, scored)


def row_selection(
    shape: tuple[int, int, int],
    keep: Callable[[range], Bool[Tensor, "B Hq R M"]],
    scored: float,
) -> Selection:
    """The selection of a method that decides for each row when it is asked.

    Args:
        shape: (B, Hq, N).
        keep: for `ROWS` rows that start at a multiple of `ROWS` (the last ones may be fewer) what
            each keeps, `[B, Hq, len(rows), rows.stop]`; later keys are taken out here.
        scored: see `Selection`.
    """

    def rows(wanted: range) -> Tensor:
        parts = []
        # Scores of other shapes round differently, and near ties would depend on who asks.
        for start in range(wanted.start // ROWS * ROWS, wanted.stop, ROWS):
            run = range(start, min(start + ROWS, shape[2]))
            mask = keep(run)
            mask = mask & causal_mask(run, mask.device)
            inside = slice(max(wanted.start - start, 0), wanted.stop - start)
            parts.append(pad(mask[:, :, inside], (0, wanted.stop - run.stop)))
        return torch.cat(parts, 2)

    return Selection(shape, rows, None, scored)
