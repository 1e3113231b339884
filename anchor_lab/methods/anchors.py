"""What becomes of AnchorAttention when its anchor is replaced.

The test stays ā_t − s̄_tj <= θ, with s̄_tj = scale · <q̄_t, k_j> for query block t and candidate j:

    PartialAnchor        ā_t from the initial region or from the window alone
    ConstantThreshold    no anchor: s̄_tj >= c
    PooledMaximum        no anchor: max_j' s̄_tj' − s̄_tj <= θ, two passes over the candidates
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from anchor_lab.methods.method import number
from anchor_lab.methods.stripes import StripeMethod, pick_stripes, row_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import attention_scores
from anchor_ref.inputs import check_compute_dtype
from anchor_ref.plan import StripePlan
from anchor_ref.stripes import identify_stripes, passes_difference_test


@dataclass(frozen=True)
class PartialAnchor(StripeMethod):
    """The anchor of one region alone; both are still attended to.

    Args:
        region: "init" or "window": where the anchor's maximum is taken.
        config: sizes and θ.

    Raises:
        ValueError: `region` is another word, or "init" while there is no initial region.
    """

    region: Literal["init", "window"] = "init"
    config: AnchorConfig = field(default_factory=AnchorConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.region not in ("init", "window"):
            raise ValueError(f"region must be 'init' or 'window', got {self.region!r}")
        if self.region == "init" and self.config.init_blocks == 0:
            raise ValueError("region must be 'window' where config.init_blocks is 0, got 'init'")

    def stripes(self, q: Tensor, k: Tensor, scale: float) -> StripePlan:
        if self.region == "window":
            anchor = row_anchor(q, k, replace(self.config, init_blocks=0), scale)
        else:
            # Rows of groups without candidates may see later keys here; their anchors are never
            # compared.
            dtype = check_compute_dtype(None, q.dtype)
            init = k[:, :, : self.config.init_blocks * self.config.block_size].to(dtype)
            anchor = attention_scores(q.to(dtype), init, scale).amax(-1)
        return identify_stripes(q, k, anchor, self.config, scale)


@dataclass(frozen=True)
class ConstantThreshold(StripeMethod):
    """The naive test without an anchor: one threshold for all heads and rows.

    keep key j for group g   when   s̄_tj >= c   for some block t of g

    Args:
        threshold: c, natural-log units of the scaled score; -inf keeps every candidate.
        config: block, group and regions; its θ plays no part.
    """

    threshold: float = number(0.0, -torch.inf, torch.inf)
    config: AnchorConfig = field(default_factory=AnchorConfig)

    @classmethod
    def sweep(cls) -> list["ConstantThreshold"]:
        """Thresholds from 8 down to -12; each keeps what the one before keeps."""
        return [cls(float(threshold)) for threshold in (8, 6, 4, 2, 1, 0, -1, -2, -4, -8, -12)]

    def stripes(self, q: Tensor, k: Tensor, scale: float) -> StripePlan:
        # 0 − s̄ <= −c is s̄ >= c: stage 2 with an anchor of 0.
        anchor = q.new_zeros(q.shape[:3], dtype=check_compute_dtype(None, q.dtype))
        return identify_stripes(q, k, anchor, replace(self.config, theta=-self.threshold), scale)


@dataclass(frozen=True)
class PooledMaximum(StripeMethod):
    """The test against what the anchor stands in for: the largest pooled score itself.

    keep key j for group g   when   max_{j' in C_g} s̄_tj' − s̄_tj <= θ   for some block t of g

    A kernel has to form all scores of a block before it can judge the first, so each is formed
    twice.

    Args:
        config: sizes and θ; θ >= 0 keeps a candidate of every block.
    """

    passes: ClassVar[int] = 2
    config: AnchorConfig = field(default_factory=AnchorConfig)

    def stripes(self, q: Tensor, k: Tensor, scale: float) -> StripePlan:
        def keep(scores: Tensor) -> Tensor:
            below = scores.amax(-1, keepdim=True) - scores
            return passes_difference_test(below, self.config.theta)

        return pick_stripes(q, k, self.config, scale, keep)
