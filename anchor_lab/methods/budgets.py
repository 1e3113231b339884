"""What becomes of AnchorAttention when its difference test is replaced by a budget.

    PooledTopK           the k largest p_tj
    PooledTopCdf         the largest p_tj until their softmax reaches a mass

with p_tj = scale · <q̄_t, k_j> for query block t and candidate j, and a key kept for a group when
one of its blocks picks it. Of equal scores the earlier key is taken.
"""

from dataclasses import dataclass, field

from torch import Tensor

from anchor_lab.methods.method import Method, check_count, check_number
from anchor_lab.methods.selection import (
    Selection,
    largest,
    largest_share,
)
from anchor_lab.methods.stripes import method_selection, pick_stripes
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_type


@dataclass(frozen=True)
class PooledTopK(Method):
    """A fixed number of candidates for each query block, those of the largest pooled scores.

    Args:
        k: candidates of a block, at least 1. A group keeps those of all its blocks.
        config: block, group and regions; its θ plays no part.

    Raises:
        TypeError: `config` is no `AnchorConfig`.
        ValueError: `k` is outside its range.
    """

    k: int = 256
    config: AnchorConfig = field(default_factory=AnchorConfig)

    def __post_init__(self):
        check_count("k", self.k, 1)
        check_type("config", self.config, AnchorConfig)

    @classmethod
    def sweep(cls) -> list["PooledTopK"]:
        """k from 16 to 4096, doubling; each keeps what the one before keeps."""
        return [cls(2**p) for p in range(4, 13)]

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        stripes = pick_stripes(q, k, self.config, scale, lambda s: largest(s, self.k))
        return method_selection(stripes, self.config, q.shape[2])


@dataclass(frozen=True)
class PooledTopCdf(Method):
    """The fewest candidates of each query block that hold a share of its pooled softmax.

    Args:
        mass: share of softmax_j(p_tj) over the candidates that is reached, in [0, 1]. A group
            keeps the candidates of all its blocks.
        config: block, group and regions; its θ plays no part.

    Raises:
        TypeError: `config` is no `AnchorConfig`.
        ValueError: `mass` is outside its range.
    """

    mass: float = 0.95
    config: AnchorConfig = field(default_factory=AnchorConfig)

    def __post_init__(self):
        check_number("mass", self.mass, 0.0, 1.0)
        check_type("config", self.config, AnchorConfig)

    @classmethod
    def sweep(cls) -> list["PooledTopCdf"]:
        """Masses from 0.1 to 0.99; each keeps what the one before keeps."""
        return [cls(mass) for mass in (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)]

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        def keep(scores: Tensor) -> Tensor:
            return largest_share(scores.softmax(-1), self.mass)

        stripes = pick_stripes(q, k, self.config, scale, keep)
        return method_selection(stripes, self.config, q.shape[2])
