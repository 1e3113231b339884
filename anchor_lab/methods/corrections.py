"""What is put in the place of dropped keys, or of their effect: switches on any method.

    MeanCorrection     a pseudo-key for what a row drops of each block of keys
    DeltaCorrection    some rows are computed densely too, and what they miss is added to others

Neither changes which keys a method keeps. What they multiply counts as executed.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anchor_lab.methods.method import check_knobs, integer
from anchor_lab.methods.selection import block_sums


class Correction:
    """How an output is formed from what is kept: here from that alone, without correction."""

    def weights(
        self, scores: Float[Tensor, "B Hq R M"], mask: Bool[Tensor, "B Hq R M"]
    ) -> Float[Tensor, "B Hq R M"]:
        """What each value is multiplied with.

        Args:
            scores: s_ij, -inf for later keys.
            mask: the keys kept.
        """
        return scores.masked_fill(~mask, -torch.inf).softmax(-1)

    def pairs(
        self, mask: Bool[Tensor, "B Hq R M"], causal: Bool[Tensor, "R M"]
    ) -> Float[Tensor, "B Hq"]:
        """Pairs of these rows that `weights` takes beyond the kept ones, float64."""
        return torch.zeros(mask.shape[:2], dtype=torch.float64, device=mask.device)

    def dense_rows(self, n: int) -> Bool[Tensor, "N"]:
        """Which of N rows are computed densely as well, on the CPU."""
        return torch.zeros(n, dtype=torch.bool)

    def correct(
        self,
        out: Float[Tensor, "B Hq N D"],
        dense: Float[Tensor, "B Hq N D"],
        exact: Bool[Tensor, "B Hq N"],
    ) -> Float[Tensor, "B Hq N D"]:
        """The output of all rows, corrected.

        Args:
            out: by `weights`.
            dense: of dense attention; `dense_rows` alone are read.
            exact: rows that keep all keys.
        """
        return out


@dataclass(frozen=True)
class MeanCorrection(Correction):
    """Each row sees the mean of what it drops of a block, weighted by how much that is.

    z_iu = mean of s_ij over the n_iu dropped keys j of block u, + ln n_iu
    out_i = softmax over kept s_ij and all z_iu, times v_j and the mean dropped v of block u

    The mean score is the score of the mean key. Published for methods that drop whole blocks
    (FlashPrefill V2, arXiv 2608.19758): there the mean key is the block's, formed once. Here it is
    taken of the dropped keys alone, so that a kept key is not counted again by the mean of its
    block. Where rows of one tile drop different keys of a block, a kernel would have to form that
    mean for each row: the count below is then too low, and the correction an upper bound.

    Args:
        block_size: keys of a block, at least 1.
    """

    claim: ClassVar[str] = (
        "Part of 27 times FlashAttention-2 in bfloat16 at 128K tokens and density 0.045, on an "
        "H20 (FlashPrefill V2, arXiv 2608.19758)."
    )
    block_size: int = integer(128, least=1)

    __post_init__ = check_knobs

    def weights(
        self, scores: Float[Tensor, "B Hq R M"], mask: Bool[Tensor, "B Hq R M"]
    ) -> Float[Tensor, "B Hq R M"]:
        """As in `Correction`; the share of a pseudo-key is split among the keys it stands for."""
        dropped = ~mask & (scores > -torch.inf)
        count = block_sums(dropped.to(scores.dtype), self.block_size)  # [B, Hq, R, U]
        total = block_sums(scores.masked_fill(~dropped, 0), self.block_size)
        pseudo = (total / count + count.log()).masked_fill(count == 0, -torch.inf)
        kept = scores.masked_fill(~mask, -torch.inf)
        both = torch.cat([kept, pseudo], -1).softmax(-1)
        own, shares = both.split([scores.shape[-1], pseudo.shape[-1]], -1)
        each = (shares / count.clamp(min=1)).repeat_interleave(self.block_size, -1)
        return own + each[..., : scores.shape[-1]] * dropped

    def pairs(
        self, mask: Bool[Tensor, "B Hq R M"], causal: Bool[Tensor, "R M"]
    ) -> Float[Tensor, "B Hq"]:
        """Pseudo-keys that these rows see: q·k and p·v, a pair each."""
        dropped = (~mask & causal).to(torch.float32)
        return (block_sums(dropped, self.block_size) > 0).sum((-2, -1)).double()


@dataclass(frozen=True)
class DeltaCorrection(Correction):
    """Every γ-th row is computed densely too; what it misses is added to the γ rows from it on.

    out_i ← out_i + dense_p − out_p   with p = ⌊i / γ⌋ · γ

    The rows from N − (N mod γ) − last on are dense and get nothing added. (arXiv 2505.11254, of
    whose public code γ = 64 and `last` are.) A row whose method keeps all keys is exact already
    and is left as it is: those of a tail, for which another row's error is not theirs.

    The dense rows count as kept: their output is that of dense attention. They are computed on top
    of the sparse ones, so their pairs add to those that the method executes, 1/γ of dense
    attention and twice what the last rows are of the prompt.

    Args:
        gamma: γ, at least 1; 1 is dense attention.
        last: rows at the end that are dense at least, at least 0.
    """

    claim: ClassVar[str] = (
        "StreamingLLM's accuracy rises by 36 points on average and reaches 88 % of dense "
        "attention's on RULER at 131K tokens, 32 times faster than FlashAttention-2 at 1M: "
        "Llama and Mistral models, GPUs not named in what could be read here (arXiv 2505.11254)."
    )
    gamma: int = integer(64, least=1)
    last: int = integer(128, least=0)

    __post_init__ = check_knobs

    def dense_rows(self, n: int) -> Bool[Tensor, "N"]:
        row = torch.arange(n)
        return (row % self.gamma == 0) | (row >= n - n % self.gamma - self.last)

    def correct(
        self,
        out: Float[Tensor, "B Hq N D"],
        dense: Float[Tensor, "B Hq N D"],
        exact: Bool[Tensor, "B Hq N"],
    ) -> Float[Tensor, "B Hq N D"]:
        n = out.shape[2]
        lead = torch.arange(n, device=out.device) // self.gamma * self.gamma
        added = out + (dense - out)[:, :, lead]
        found = torch.where(exact[..., None], out, added)
        return torch.where(self.dense_rows(n).to(out.device)[:, None], dense, found)


CORRECTIONS = {"mean": MeanCorrection, "delta": DeltaCorrection}
