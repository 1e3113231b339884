"""AnchorAttention as a selection, at stripe granularity (the method) and at block granularity."""

from dataclasses import dataclass, field

from torch import Tensor

from anchor_lab.methods.method import Method
from anchor_lab.methods.selection import (
    Selection,
)
from anchor_lab.methods.stripes import THETAS, method_selection, row_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_type
from anchor_ref.plan import StripePlan
from anchor_ref.stripes import identify_stripes


@dataclass(frozen=True)
class AnchorAttention(Method):
    """The method: stages 1 and 2 of the reference.

    Args:
        config: sizes and θ.

    Raises:
        TypeError: `config` is no `AnchorConfig`.
    """

    config: AnchorConfig = field(default_factory=AnchorConfig)

    def __post_init__(self):
        check_type("config", self.config, AnchorConfig)

    @classmethod
    def sweep(cls) -> list["AnchorAttention"]:
        """θ from 1 to 17; each keeps what the one before keeps."""
        return [cls(AnchorConfig(theta=theta)) for theta in THETAS]

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        stripes = identify_stripes(q, k, row_anchor(q, k, self.config, scale), self.config, scale)
        return method_selection(stripes, self.config, q.shape[2])


@dataclass(frozen=True)
class AnchorBlocks(Method):
    """The method at block granularity: a key block is kept whole when one of its keys passes.

    Args:
        config: sizes and θ; key blocks are as long as query blocks.

    Raises:
        TypeError: `config` is no `AnchorConfig`.
    """

    config: AnchorConfig = field(default_factory=AnchorConfig)

    def __post_init__(self):
        check_type("config", self.config, AnchorConfig)

    @classmethod
    def sweep(cls) -> list["AnchorBlocks"]:
        """θ from -5 to 11; each keeps what the one before keeps."""
        return [cls(AnchorConfig(theta=theta - 6)) for theta in THETAS]

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        n, block = q.shape[2], self.config.block_size
        stripes = identify_stripes(q, k, row_anchor(q, k, self.config, scale), self.config, scale)
        # Candidates begin and end on block boundaries, so a block lies inside or outside.
        blocks = stripes.to_mask(-(-n // block) * block).unflatten(-1, (-1, block)).any(-1)
        whole = StripePlan.from_mask(blocks.repeat_interleave(block, -1)[..., :n])
        return method_selection(whole, self.config, n, gather=block)
