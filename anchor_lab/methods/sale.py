"""SALE (arXiv 2505.24179): every score, but in four bits, against what sink and window sum up to.

Tiles of 64 queries by 32 keys. Keys are centred first, k_j ← k_j − mean of all keys, which shifts
all scores of a row alike and changes no weight.

    1. exact softmax of row i over the first key tile and the 4 nearest ones with the query tile's
       own: its maximum m_i and its sum l_i = Σ exp(s_ij − m_i)
    2. ŝ_ij = s_ij from q and k in 4 bits, for the keys in between
    3. keep tile (t, u) when ŝ_ij >= m_i + ln(τ · l_i) for one pair of it at least: a key that
       would weigh a share τ of what the row has already
    4. first tile and window are kept, and prompts of up to 1024 tokens are dense

Of all methods here the nearest to AnchorAttention: sink and window are its anchor, τ = e^−θ its
threshold. It does not pool, takes the sum in place of the maximum, and keeps tiles in place of
columns.

4 bits, as in the public code: each token's vector is divided by a seventh of its largest
coordinate and rounded to −7 ... 7, queries after the mean query q̄ is taken out; <q̄, k_j> is added
back exactly. That mean, like that of the keys, is over the whole prompt. There the window grows by
up to three tiles so that whole segments of 128 keys remain, scale factors are those of 16 tokens
in another mode, and τ may be calibrated for each head; here it is 4 tiles, a token, and 0.004.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.methods.method import Method, integer, number
from anchor_lab.methods.scores import scores_of_rows
from anchor_lab.methods.selection import Selection, block_selection, causal_mask, token_blocks
from anchor_ref.heads import attention_scores
from anchor_ref.inputs import check_compute_dtype

LEVEL = 7  # the largest of the signed 4-bit numbers that are used


@dataclass(frozen=True)
class SALE(Method):
    """Tiles with a pair whose 4-bit score comes within τ of what sink and window weigh.

    A product of 4-bit numbers is counted as a quarter of one of 16 bits: what it costs where the
    hardware has it, and a pair of which only q·k is formed then counts as 1/8. The exact scores of
    sink and window are those that attention goes on with, and cost nothing more. NaN among the
    keys keeps all.

    Args:
        threshold: τ, beside a row's weight on sink and window, at least 0; 0 keeps all, +inf those
            two alone.
        init_blocks: key tiles kept from the start, at least 1.
        window_blocks: key tiles kept up to that of a query tile's last row, at least 1.
        q_block, k_block: queries and keys of a tile, at least 1.
        dense_up_to: prompts of so many tokens are dense, at least 0.
    """

    claim: ClassVar[str] = (
        "Choosing takes about 11 % of the time of dense attention, on hardware with 4-bit "
        "products (arXiv 2505.24179); of which model, and on which hardware, is not on file."
    )
    pair_cost: ClassVar[float] = 1 / 8  # in pairs of dense attention
    threshold: float = number(0.004, 0.0, math.inf)
    init_blocks: int = integer(1, least=1)
    window_blocks: int = integer(4, least=1)
    q_block: int = integer(64, least=1)
    k_block: int = integer(32, least=1)
    dense_up_to: int = integer(1024, least=0)

    @classmethod
    def sweep(cls) -> list["SALE"]:
        """τ falls from +inf to 4e-5, no length is dense; each keeps what the one before keeps."""
        taus = (math.inf, 100.0, 10.0, 1.0, 0.1, 0.03, 0.01, 0.004, 4e-4, 4e-5)
        return [cls(tau, dense_up_to=0) for tau in taus]

    @classmethod
    def small(cls) -> "SALE":
        return cls(0.1, 1, 2, 4, 2, dense_up_to=0)

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        batch, heads, n, _ = q.shape
        q, k = (x.to(check_compute_dtype(None, q.dtype)) for x in (q, k))
        k = k - k.mean(2, keepdim=True)
        q_blocks, size = token_blocks(n, self.q_block), -(-n // self.k_block)
        kept = torch.ones(batch, heads, len(q_blocks), size, dtype=torch.bool, device=q.device)
        scored = 0
        if n > self.dense_up_to:
            estimate, share = self.estimate(q, k, scale), self.threshold
            least = math.log(share) if share else -math.inf
            for t, (rows, scores) in enumerate(
                scores_of_rows(q, k, scale, range(n), self.q_block)
            ):
                between = self._between(rows)
                inside = slice(between.start * self.k_block, between.stop * self.k_block)
                causal = causal_mask(rows, q.device)[:, inside]
                guess = estimate(rows, inside)
                scores[..., inside] = -torch.inf  # leaves sink and window
                weight = scores.logsumexp(-1, keepdim=True)  # m_i + ln l_i
                # Not "at least", so that a NaN keeps.
                passes = (~(guess < weight + least) & causal).unflatten(-1, (-1, self.k_block))
                kept[:, :, t, between.start : between.stop] = passes.any(-1).any(2)
                scored += causal.sum().item()
        return block_selection(kept, n, self.q_block, self.k_block, scored * self.pair_cost)

    def _between(self, rows: range) -> range:
        """Key tiles between the sink and the window of a query tile, whole ones all."""
        end = -(-rows.stop // self.k_block)
        return range(self.init_blocks, max(self.init_blocks, end - self.window_blocks))

    def estimate(self, q: Tensor, k: Tensor, scale: float) -> Callable[[range, slice], Tensor]:
        """What gives ŝ of a range of rows and a slice of keys, `[B, Hq, R, M]`."""
        mean = q.mean(2, keepdim=True)
        low_q, low_k = four_bits(q - mean), four_bits(k)
        offset = attention_scores(mean, k, scale)  # [B, Hq, 1, N]

        def scores(rows: range, keys: slice) -> Tensor:
            low = attention_scores(low_q[:, :, rows.start : rows.stop], low_k[:, :, keys], scale)
            return low + offset[..., keys]

        return scores


@dataclass(frozen=True)
class SALEFloat(SALE):
    """Tiles with a pair whose exact score comes within τ of what sink and window weigh.

    SALE without its four bits: what rounding loses. A pair counts 1/2, as wherever only q·k is
    formed.
    """

    claim: ClassVar[str] = "None: SALE is published with 4 bits (arXiv 2505.24179)."
    pair_cost: ClassVar[float] = 1 / 2

    def estimate(self, q: Tensor, k: Tensor, scale: float) -> Callable[[range, slice], Tensor]:
        def scores(rows: range, keys: slice) -> Tensor:
            return attention_scores(q[:, :, rows.start : rows.stop], k[:, :, keys], scale)

        return scores


def four_bits(x: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H N D"]:
    """Each token's vector as integers from −7 to 7 times a factor of its own; zeros stay zeros."""
    unit = x.abs().amax(-1, keepdim=True) / LEVEL
    return torch.where(unit == 0, x, (x / unit).round() * unit)
