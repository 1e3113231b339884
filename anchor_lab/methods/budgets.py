"""What becomes of AnchorAttention when its difference test is replaced by a budget.

    PooledTopK           the k largest s̄_tj
    PooledTopCdf         the largest s̄_tj until their softmax reaches a mass

with s̄_tj = scale · <q̄_t, k_j> for query block t and candidate j, and a key kept for a group when
one of its blocks picks it. Of equal scores the earlier key is taken.
"""

from dataclasses import dataclass, field

from torch import Tensor

from anchor_lab.methods.method import integer, number
from anchor_lab.methods.ranking import largest, largest_share
from anchor_lab.methods.stripes import StripeMethod, pick_stripes
from anchor_ref.config import AnchorConfig
from anchor_ref.plan import StripePlan


@dataclass(frozen=True)
class PooledTopK(StripeMethod):
    """A fixed number of candidates for each query block, those of the largest pooled scores.

    Args:
        k: candidates of a block, at least 1. A group keeps those of all its blocks.
        config: block, group and regions; its θ plays no part.
    """

    k: int = integer(256, least=1)
    config: AnchorConfig = field(default_factory=AnchorConfig)

    @classmethod
    def sweep(cls) -> list["PooledTopK"]:
        """k from 16 to 4096, doubling; each keeps what the one before keeps."""
        return [cls(2**p) for p in range(4, 13)]

    @classmethod
    def small(cls) -> "PooledTopK":
        return cls(4, AnchorConfig(4, 2))

    def stripes(self, q: Tensor, k: Tensor, scale: float) -> StripePlan:
        return pick_stripes(q, k, self.config, scale, lambda scores: largest(scores, self.k))


@dataclass(frozen=True)
class PooledTopCdf(StripeMethod):
    """The fewest candidates of each query block that hold a share of its pooled softmax.

    Args:
        mass: share of softmax_j(s̄_tj) over the candidates that is reached, in [0, 1]. A group
            keeps the candidates of all its blocks.
        config: block, group and regions; its θ plays no part.
    """

    mass: float = number(0.95, 0.0, 1.0)
    config: AnchorConfig = field(default_factory=AnchorConfig)

    @classmethod
    def sweep(cls) -> list["PooledTopCdf"]:
        """Masses from 0.1 to 0.99; each keeps what the one before keeps."""
        return [cls(mass) for mass in (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)]

    def stripes(self, q: Tensor, k: Tensor, scale: float) -> StripePlan:
        def keep(scores: Tensor) -> Tensor:
            return largest_share(scores.softmax(-1), self.mass)

        return pick_stripes(q, k, self.config, scale, keep)
