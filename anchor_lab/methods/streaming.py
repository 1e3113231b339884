"""StreamingLLM, or A-shape: the first keys and the nearest ones (arXiv 2309.17453).

The start of the prompt holds the attention sinks, the end the local context; what lies between is
never looked at. Nothing is scored, so the choice is the same for every head.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anchor_lab.methods.method import Method, integer
from anchor_lab.methods.selection import Selection, causal_mask, token_blocks


@dataclass(frozen=True)
class StreamingLLM(Method):
    """The first G and the last W keys of each row.

    keep key j for query i   when   j < G or i − j < W,   j <= i

    Args:
        init: G, at least 0.
        window: W, the query's own key included, at least 1.
        block_size: side of the tiles that are multiplied whole, at least 1.
    """

    claim: ClassVar[str] = (
        "Decodes streams of up to 4 million tokens, up to 22.2 times faster than with a window "
        "that is computed anew for each token: Llama-2, MPT, Falcon, Pythia, GPUs not named in "
        "what could be read here; of prefill it claims nothing (arXiv 2309.17453)."
    )
    init: int = integer(1024, least=0)
    window: int = integer(8192, least=1)
    block_size: int = integer(128, least=1)

    @classmethod
    def sweep(cls) -> list["StreamingLLM"]:
        """Windows that double, from 128 keys to the default, an eighth as many first keys."""
        return [cls(init=window // 8, window=window) for window in (2**p for p in range(7, 14))]

    @classmethod
    def small(cls) -> "StreamingLLM":
        return cls(2, 5, block_size=4)

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        batch, heads, n, _ = q.shape

        def keep(rows: range) -> Tensor:
            key = torch.arange(rows.stop, device=q.device)
            query = torch.arange(rows.start, rows.stop, device=q.device)[:, None]
            near = (key < self.init) | (query - key < self.window)
            return (near & causal_mask(rows, q.device)).expand(batch, heads, -1, -1)

        executed = torch.full((batch, heads), float(self._tiled_pairs(n)), dtype=torch.float64)
        return Selection((batch, heads, n), keep, executed.to(q.device), 0.0)

    def _tiled_pairs(self, n: int) -> int:
        """Pairs in the tiles that hold at least one kept pair."""
        block, tiles = self.block_size, 0
        for rows in token_blocks(n, block):
            first = range(0, min(self.init, rows.stop), block)
            near = range(max(0, rows.start - self.window + 1) // block * block, rows.stop, block)
            tiles += len({*first, *near})
        return tiles * block * block
