"""SpargeAttention (arXiv 2502.18137): pooled scores where a block's tokens are alike.

Its choice of blocks alone, 128 queries by 64 keys each; quantisation is left out, and so is its
skipping of products with values.

    1. k_j ← k_j − mean of all keys
    2. a block is self-similar when the mean cosine over all pairs of its tokens exceeds θ; that
       mean is ‖mean of the unit vectors‖²
    3. P_t = softmax over the self-similar causal key blocks u of
       scale · <mean query of block t, mean key of block u>
    4. keep the largest P_tu that hold no more than a mass of 0.98 together, or a fraction of all
       key blocks (causal or not) by falling P_tu; one at least
    5. keep every key block that is not self-similar, and every key block for a query block that
       is not

θ = 0.6 with mass 0.98 are the defaults of the public call by mass; its call by fraction takes θ =
−0.1, which no block fails, and its users are told 0.5. There a row may be left without any key,
when all that its query block keeps comes after it: here a query block keeps its own keys too.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anchor_lab.methods.method import Method, integer, number
from anchor_lab.methods.ranking import by_rank, largest
from anchor_lab.methods.selection import Selection, block_selection, token_blocks
from anchor_ref.heads import attention_scores
from anchor_ref.inputs import check_compute_dtype
from anchor_ref.stripes import block_means


@dataclass(frozen=True)
class SpargeAttention(Method):
    """Key blocks by pooled softmax, as far as pooling can be trusted, and all others.

    Of equal scores the earlier block is kept. A token of zeros or NaN is like no other: its block
    is kept, and NaN among the keys keeps all.

    Args:
        mass: share of P_t that is not exceeded, in [0, 1]; None to go by `fraction`.
        fraction: of all key blocks, in [0, 1]; None to go by `mass`.
        similarity: θ, in [-1, 1].
        q_block, k_block: queries and keys of a block, at least 1.

    Raises:
        ValueError: not exactly one of `mass` and `fraction` is given.
    """

    claim: ClassVar[str] = (
        "Mochi, a model of videos, 1.83 times faster as a whole on an L40 GPU at the same "
        "quality, with quantisation, which is not here (arXiv 2502.18137)."
    )
    mass: float | None = number(0.98, 0.0, 1.0, optional=True)
    fraction: float | None = number(None, 0.0, 1.0, optional=True)
    similarity: float = number(0.6, -1.0, 1.0)
    q_block: int = integer(128, least=1)
    k_block: int = integer(64, least=1)

    def __post_init__(self):
        super().__post_init__()
        if (self.mass is None) == (self.fraction is None):
            raise ValueError(
                "exactly one of mass and fraction must be given, "
                f"got mass {self.mass} and fraction {self.fraction}"
            )

    @classmethod
    def sweep(cls) -> list["SpargeAttention"]:
        """Masses from 0.3 to 0.99 with θ = −0.1; each keeps what the one before keeps."""
        masses = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
        return [cls(mass, similarity=-0.1) for mass in masses]

    @classmethod
    def small(cls) -> "SpargeAttention":
        return cls(0.5, similarity=-0.1, q_block=4, k_block=2)

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        heads, n = q.shape[1:3]
        q, k = (x.to(check_compute_dtype(None, q.dtype)) for x in (q, k))
        k = k - k.mean(2, keepdim=True)
        q_blocks, k_blocks = token_blocks(n, self.q_block), token_blocks(n, self.k_block)
        q_means, k_means = block_means(q, q_blocks, q.dtype), block_means(k, k_blocks, k.dtype)
        scores = attention_scores(q_means, k_means, scale)  # [B, Hq, T, U]
        alike_q = self._self_similar(q, q_blocks)[..., None]
        alike_k = self._self_similar(k, k_blocks).repeat_interleave(heads // k.shape[1], 1)
        alike_k = alike_k[:, :, None]
        first_key = torch.arange(scores.shape[3], device=q.device) * self.k_block
        first_query = torch.arange(scores.shape[2], device=q.device)[:, None] * self.q_block
        causal = first_key < first_query + self.q_block
        weights = scores.masked_fill(~(causal & alike_k), -torch.inf).softmax(-1)
        own = first_key + self.k_block > first_query  # later ones are no matter
        kept = self._pick(weights) | own | ~alike_k | ~alike_q
        return block_selection(kept, n, self.q_block, self.k_block, causal.sum().item() / 2)

    def _self_similar(
        self, x: Float[Tensor, "B H N D"], blocks: list[range]
    ) -> Bool[Tensor, "B H T"]:
        unit = x / x.norm(dim=-1, keepdim=True)
        return block_means(unit, blocks, x.dtype).square().sum(-1) > self.similarity

    def _pick(self, weights: Float[Tensor, "B Hq T U"]) -> Bool[Tensor, "B Hq T U"]:
        if self.mass is None:
            return largest(weights, max(1, int(self.fraction * weights.shape[-1])))
        return largest(weights, 1) | by_rank(weights, lambda x: x.cumsum(-1) <= self.mass)
