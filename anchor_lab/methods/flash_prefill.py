"""FlashPrefill (arXiv 2603.06199): exact queries against pooled keys, and a threshold by maximum.

Blocks of b = 128 tokens; k̄_u = mean key of block u.

    1. s_iu = scale · <q_i, k̄_u> for the rows i that see all of key block u: i >= (u + 1) · b − 1
    2. w_tu = Σ over the rows i of query block t of exp(s_iu)
    3. keep block (t, u) when w_tu >= α · max_u w_tu
    4. keep the first 2 key blocks, the 4 nearest ones with the query block's own, and everything
       for the last 2 query blocks

Nothing is sorted or summed up along a row. A block's own keys are seen by its last row alone, and
not at all when N leaves the block short. α = 0.7 and the regions are the defaults of the public
code.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anchor_lab.methods.method import Method, integer, number
from anchor_lab.methods.selection import Selection, block_selection, token_blocks
from anchor_ref.heads import attention_scores
from anchor_ref.inputs import check_compute_dtype
from anchor_ref.stripes import block_means


@dataclass(frozen=True)
class FlashPrefill(Method):
    """Key blocks whose weight comes near the largest of their query block, and fixed regions.

    A query block with NaN among its scores keeps all.

    Args:
        alpha: α, in [0, 1]; 0 keeps all.
        init_blocks: key blocks kept from the start, at least 0.
        window_blocks: key blocks kept up to the query block's own, which counts, at least 1.
        dense_blocks: query blocks at the end that keep all, at least 0.
        block_size: b, at least 1.
    """

    claim: ClassVar[str] = (
        "Attention 27.78 times faster at 256K tokens and 1.71 times at 4K: "
        "Qwen3-30B-A3B-Instruct, GPUs not named in what could be read here (arXiv 2603.06199)."
    )
    alpha: float = number(0.7, 0.0, 1.0)
    init_blocks: int = integer(2, least=0)
    window_blocks: int = integer(4, least=1)
    dense_blocks: int = integer(2, least=0)
    block_size: int = integer(128, least=1)

    @classmethod
    def sweep(cls) -> list["FlashPrefill"]:
        """Regions grow to the default's, then α falls; each keeps what the one before does."""
        few = [cls(0.9, 1, 1, 0), cls(0.7, 1, 2, 1)]
        return few + [cls(alpha) for alpha in (0.7, 0.5, 0.3, 0.1, 0.03, 0.01, 0.001)]

    @classmethod
    def small(cls) -> "FlashPrefill":
        return cls(0.5, 1, 1, 1, block_size=4)

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        (batch, heads, n, _), b = q.shape, self.block_size
        dtype = check_compute_dtype(None, q.dtype)
        blocks = token_blocks(n, b)
        k_means, size = block_means(k, blocks, dtype), len(blocks)
        u = torch.arange(size, device=q.device)
        distance = u[:, None] - u
        fixed = (u < self.init_blocks) | (distance < self.window_blocks)
        fixed |= u[:, None] >= size - self.dense_blocks
        kept = fixed.repeat(batch, heads, 1, 1)
        for t, rows in enumerate(q.split(b, 2)):
            scores = attention_scores(rows.to(dtype), k_means[:, :, : t + 1], scale)
            # Earlier blocks lie before every row; its own ends with the last row of a whole one.
            scores[:, :, : b - 1, t] = -torch.inf
            # One maximum for the whole block of rows: they are weighed against each other.
            weights = (scores - scores.amax((-2, -1), keepdim=True)).exp().sum(2)
            # Not "at least", so that a NaN keeps.
            kept[:, :, t, : t + 1] |= ~(weights < self.alpha * weights.amax(-1, keepdim=True))
        seen = sum((i + 1) // b for i in range(n))
        return block_selection(kept, n, b, b, seen / 2)
