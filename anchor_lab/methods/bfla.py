"""BFLA (arXiv 2605.12193): blocks are compared token by token, where they stand.

Blocks of b = 256 tokens in groups of 64.

    1. z_gr = scale · Σ_t <q_{g,t}, k_{r,t}> over the t-th tokens of a group of queries g and a
       group of keys r
    2. score of block (t, u) = the largest z_gr of the groups in it
    3. P_t = softmax of the scores over the causal blocks, u <= t
    4. keep the largest P_tu until they hold a share of 0.99
    5. what one query head keeps, all that share its key head keep
    6. keep block 0, a query block's own, and the one before it

z is a sum of 64 scores, not their mean, so P is nearly all on one block and the share decides
little. Groups of a query block's own hold later keys too, and a ragged last block is filled up
with zeros; both as published, and no later key is attended to. Block, group, share and local band
are what the public code's page advises: 8 local tiles of the 32 keys that its kernel takes, one
block. Its random rescue of dropped blocks, off by that advice, is not here; nor is its rule that
prompts up to 256 tokens are dense, which one block is anyway.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from anchor_lab.methods.method import Method, integer, number
from anchor_lab.methods.ranking import largest_share
from anchor_lab.methods.selection import Selection, block_selection
from anchor_ref.heads import attention_scores
from anchor_ref.inputs import check_compute_dtype
from anchor_ref.regions import causal_pairs


@dataclass(frozen=True)
class BFLA(Method):
    """The fewest key blocks that reach a share of the softmax over aligned token products.

    Of equal scores the earlier block is kept. A query block with NaN among its scores keeps all,
    and so do those of the heads that share its key head.

    Args:
        mass: the share, in [0, 1]; 0 leaves the fixed blocks.
        local_blocks: blocks before a query block's own that are kept, at least 0.
        block_size: b, a multiple of `group`.
        group: tokens that are compared one by one, at least 1.
    """

    heads_decide_together: ClassVar[bool] = True
    claim: ClassVar[str] = (
        "2 to 3 times faster prefill of long prompts than FlashAttention-2: Gemma 4, Llama 3.1, "
        "Qwen 3.5 and 3.6 in vLLM, GPUs not named in what could be read here (arXiv 2605.12193 "
        "and its code's page)."
    )
    mass: float = number(0.99, 0.0, 1.0)
    local_blocks: int = integer(1, least=0)
    block_size: int = integer(256, least=1)
    group: int = integer(64, least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.block_size % self.group:
            raise ValueError(
                f"block_size must be a multiple of group ({self.group}), got {self.block_size}"
            )

    @classmethod
    def sweep(cls) -> list["BFLA"]:
        """The share rises, then the local band; each keeps what the one before keeps."""
        few = [cls(mass, 0) for mass in (0.0, 0.5, 0.99)]
        return [*few, cls(), *(cls(0.999, local) for local in (1, 2, 4, 8, 16, 32))]

    @classmethod
    def small(cls) -> "BFLA":
        return cls(0.5, local_blocks=0, block_size=6, group=3)

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        (_, heads, n, _), b = q.shape, self.block_size
        dtype = check_compute_dtype(None, q.dtype)
        groups_q, groups_k = (self._in_groups(x.to(dtype)) for x in (q, k))
        parts, size = b // self.group, groups_q.shape[2] * self.group // b
        u = torch.arange(size, device=q.device)
        distance = u[:, None] - u
        kept = torch.zeros(*q.shape[:2], size, size, dtype=torch.bool, device=q.device)
        for t, rows in enumerate(groups_q.split(parts, 2)):
            scores = attention_scores(rows, groups_k[:, :, : (t + 1) * parts], scale)
            best = scores.unflatten(-1, (-1, parts)).amax((2, 4))  # [B, Hq, t + 1]
            kept[:, :, t, : t + 1] = largest_share(best.softmax(-1), self.mass)
        together = kept.unflatten(1, (k.shape[1], -1)).any(2)
        kept = together.repeat_interleave(heads // k.shape[1], 1)
        kept |= (u == 0) | (distance >= 0) & (distance <= self.local_blocks)
        # A pair of groups takes as many products of length D as a group has tokens.
        scored = causal_pairs(size) * parts**2 * self.group / 2
        return block_selection(kept, n, b, b, scored)

    def _in_groups(self, x: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H G gD"]:
        """The tokens of each group behind one another, whole blocks filled up with zeros."""
        whole = pad(x, (0, 0, 0, -x.shape[2] % self.block_size))
        return whole.unflatten(2, (-1, self.group)).flatten(3)
