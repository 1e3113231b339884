"""Skip-softmax, or BLASST (arXiv 2512.12087): the running maximum of dense attention as a judge.

Tiles of b = 128 queries by b keys, the key tiles of a query tile from left to right.

    1. b_iu = max of s_ij over the keys j <= i of key tile u
    2. c_iu = max of b_iw over the key tiles w <= u: what online softmax carries along anyway
    3. keep tile (t, u) when b_iu − c_iu > ln λ for one row i of query tile t at least

It is the difference test without pooling and without an anchor: θ = −ln λ (λ = 6.1e-6 is θ = 12),
and c_iu in the anchor's place, which is low in the first tiles and exact in the last. So the
direction of the loop matters: from the right, which many kernels take, the window would be judged
first and other tiles be kept. What a row drops weighs at most λ of its largest key each, since its
maximum only rises.

λ = 1e-3; the public code also has it calibrated to a share of skipped tiles, as a factor over N,
so that it falls with the length. q·k is formed for every pair: what is saved is exp, the product
with v and the loading of v, half of dense attention at best.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from anchor_lab.methods.method import Method, integer, number
from anchor_lab.methods.scores import all_scored, scores_of_rows
from anchor_lab.methods.selection import Selection, block_selection
from anchor_ref.regions import causal_pairs


@dataclass(frozen=True)
class SkipSoftmax(Method):
    """Tiles in which a row comes within a factor λ of the largest weight it has met so far.

    The first tile is always kept: all rows see it, and it sets their first maximum. From a NaN on
    a row keeps.

    Args:
        threshold: λ, a ratio of weights, in [0, 1); 0 keeps all.
        block_size: b, queries and keys of a tile, at least 1.

    Raises:
        ValueError: `threshold` is 1, which would keep nothing.
    """

    claim: ClassVar[str] = (
        "Of its speed no figure, model or hardware is on file (arXiv 2512.12087)."
    )
    threshold: float = number(1e-3, 0.0, 1.0)
    block_size: int = integer(128, least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.threshold == 1:
            raise ValueError("threshold must be below 1, which keeps nothing, got 1")

    @classmethod
    def sweep(cls) -> list["SkipSoftmax"]:
        """λ falls from 0.9 to e^−12; each keeps what the one before keeps."""
        return [cls(x) for x in (0.9, 0.5, 0.2, 0.1, 0.03, 0.01, 1e-3, 1e-4, math.exp(-12))]

    @classmethod
    def small(cls) -> "SkipSoftmax":
        return cls(0.2, block_size=4)

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        (batch, heads, n, _), b = q.shape, self.block_size
        size = -(-n // b)
        least = math.log(self.threshold) if self.threshold else -math.inf
        kept = torch.zeros(batch, heads, size, size, dtype=torch.bool, device=q.device)
        goes_on = torch.zeros(batch, heads, dtype=torch.float64, device=q.device)
        for t, (rows, scores) in enumerate(scores_of_rows(q, k, scale, range(n), b)):
            tiles = pad(scores, (0, -scores.shape[-1] % b), value=-torch.inf)
            largest = tiles.unflatten(-1, (-1, b)).amax(-1)  # [B, Hq, R, U]
            below = largest - largest.cummax(-1).values
            # Not "above", so that a NaN keeps.
            kept[:, :, t, : t + 1] = (~(below <= least)).any(2)
            goes_on += kept[:, :, t, :t].sum(-1) * len(rows) * b
            goes_on += kept[:, :, t, t] * causal_pairs(len(rows))
        found = block_selection(kept, n, b, b, all_scored(n))
        # Attention in a kept tile goes on from the scores that it was judged by.
        return replace(found, reused=goes_on / 2)
