"""AnchorAttention as a selection, at stripe granularity (the method) and at block granularity."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from anchor_lab.methods.stripes import SWEEP_THETAS, StripeMethod, row_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.plan import StripePlan
from anchor_ref.stripes import identify_stripes


@dataclass(frozen=True)
class AnchorAttention(StripeMethod):
    """The method: stages 1 and 2 of the reference.

    Args:
        config: sizes and θ.
    """

    claim: ClassVar[str] = (
        "1.44 times faster than the best before it at 128k tokens, at a higher recall; its "
        "abstract names no model and no GPU (arXiv 2505.23520)."
    )
    config: AnchorConfig = field(default_factory=AnchorConfig)

    def stripes(self, q: Tensor, k: Tensor, scale: float) -> StripePlan:
        return identify_stripes(q, k, row_anchor(q, k, self.config, scale), self.config, scale)


@dataclass(frozen=True)
class AnchorBlocks(AnchorAttention):
    """The method at block granularity: a key block is kept whole when one of its keys passes.

    Args:
        config: sizes and θ; key blocks are as long as query blocks.
    """

    claim: ClassVar[str] = ""

    @property
    def gather(self) -> int:
        return self.config.block_size

    @classmethod
    def sweep(cls) -> list["AnchorBlocks"]:
        """θ from -5 to 11; each keeps what the one before keeps."""
        return [cls(AnchorConfig(theta=theta - 6)) for theta in SWEEP_THETAS]

    def stripes(self, q: Tensor, k: Tensor, scale: float) -> StripePlan:
        n, block = q.shape[2], self.config.block_size
        mask = super().stripes(q, k, scale).to_mask(-(-n // block) * block)
        # Candidates begin and end on block boundaries, so a block lies inside or outside.
        whole = mask.unflatten(-1, (-1, block)).any(-1).repeat_interleave(block, -1)
        return StripePlan.from_mask(whole[..., :n])
