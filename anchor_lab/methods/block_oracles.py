"""Oracles that choose key blocks for each query block: by number or by mass."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anchor_lab.methods.method import Method, integer, number
from anchor_lab.methods.ranking import largest, largest_share
from anchor_lab.methods.scores import SHARES, all_scored, scores_of_rows
from anchor_lab.methods.selection import Selection, block_selection, block_sums


@dataclass(frozen=True)
class BlockTopK(Method):
    """The key blocks that hold most dense mass, a fixed number for each query block.

    The mass of a block is Σ softmax weight over its rows and keys.

    Args:
        blocks: key blocks of a query block, at least 1.
        block_size: queries and keys of a block, at least 1.
    """

    blocks: int = integer(16, least=1)
    block_size: int = integer(128, least=1)

    @classmethod
    def sweep(cls) -> list["BlockTopK"]:
        """1 to 64 blocks, doubling; each keeps what the one before keeps."""
        return [cls(2**p) for p in range(7)]

    @classmethod
    def small(cls) -> "BlockTopK":
        return cls(2, block_size=4)

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        return _select_by_blocks(q, k, scale, self.block_size, lambda m: largest(m, self.blocks))


@dataclass(frozen=True)
class BlockTopCdf(Method):
    """The fewest key blocks of each query block that hold a given share of its dense mass.

    Args:
        mass: share that is reached, in [0, 1]; a query block keeps its heaviest block at least.
        block_size: queries and keys of a block, at least 1.
    """

    mass: float = number(0.95, 0.0, 1.0)
    block_size: int = integer(128, least=1)

    @classmethod
    def sweep(cls) -> list["BlockTopCdf"]:
        """Masses from 0.5 to 0.999; each keeps what the one before keeps."""
        return [cls(share) for share in SHARES]

    @classmethod
    def small(cls) -> "BlockTopCdf":
        return cls(0.7, block_size=4)

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        def keep(mass: Tensor) -> Tensor:
            return largest_share(mass, self.mass) | largest(mass, 1)

        return _select_by_blocks(q, k, scale, self.block_size, keep)


def _select_by_blocks(
    q: Tensor, k: Tensor, scale: float, block: int, keep: Callable[[Tensor], Tensor]
) -> Selection:
    """Each query block decides by the dense mass of its key blocks, the causal ones."""
    batch, heads, n, _ = q.shape
    size = -(-n // block)
    kept = torch.zeros(batch, heads, size, size, dtype=torch.bool, device=q.device)
    for t, (_, scores) in enumerate(scores_of_rows(q, k, scale, range(n), block)):
        kept[:, :, t, : t + 1] = keep(block_sums(scores.softmax(-1).sum(2), block))
    return block_selection(kept, n, block, block, all_scored(n))
