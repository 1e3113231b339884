"""What becomes of AnchorAttention when its anchor is replaced.

The test stays ā_t − p_tj <= θ, with p_tj = scale · <q̄_t, k_j> for query block t and candidate j:

    PartialAnchor        ā_t from the initial region or from the window alone
    ConstantThreshold    no anchor: p_tj >= c
    PooledMaximum        no anchor: max_j' p_tj' − p_tj <= θ, two passes over the candidates
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from anchor_lab.methods.method import Method, check_number
from anchor_lab.methods.selection import (
    Selection,
)
from anchor_lab.methods.stripes import (
    THETAS,
    method_selection,
    pick_stripes,
    row_anchor,
)
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores, stack_heads, unstack_heads
from anchor_ref.inputs import check_compute_dtype, check_type
from anchor_ref.stripes import identify_stripes


@dataclass(frozen=True)
class PartialAnchor(Method):
    """The anchor of one region alone; both are still attended to.

    Args:
        region: "init" or "window": where the anchor's maximum is taken.
        config: sizes and θ.

    Raises:
        TypeError: `config` is no `AnchorConfig`.
        ValueError: `region` is another word, or "init" while there is no initial region.
    """

    region: Literal["init", "window"] = "init"
    config: AnchorConfig = field(default_factory=AnchorConfig)

    def __post_init__(self):
        check_type("config", self.config, AnchorConfig)
        if self.region not in ("init", "window"):
            raise ValueError(f"region must be 'init' or 'window', got {self.region!r}")
        if self.region == "init" and self.config.init_blocks == 0:
            raise ValueError("region must be 'window' where config.init_blocks is 0, got 'init'")

    @classmethod
    def sweep(cls) -> list["PartialAnchor"]:
        """θ from 1 to 17, the initial region's anchor; each keeps what the one before keeps."""
        return [cls(config=AnchorConfig(theta=theta)) for theta in THETAS]

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        if self.region == "window":
            anchor = row_anchor(q, k, replace(self.config, init_blocks=0), scale)
        else:
            anchor = _init_maximum(q, k, self.config, scale)
        stripes = identify_stripes(q, k, anchor, self.config, scale)
        return method_selection(stripes, self.config, q.shape[2])


@dataclass(frozen=True)
class ConstantThreshold(Method):
    """The naive test without an anchor: one threshold for all heads and rows.

    keep key j for group g   when   p_tj >= c   for some block t of g

    Args:
        threshold: c, natural-log units of the scaled score; -inf keeps every candidate.
        config: block, group and regions; its θ plays no part.

    Raises:
        TypeError: `config` is no `AnchorConfig`.
        ValueError: `threshold` is no number.
    """

    threshold: float = 0.0
    config: AnchorConfig = field(default_factory=AnchorConfig)

    def __post_init__(self):
        check_number("threshold", self.threshold, -torch.inf, torch.inf)
        check_type("config", self.config, AnchorConfig)

    @classmethod
    def sweep(cls) -> list["ConstantThreshold"]:
        """Thresholds from 8 down to -12; each keeps what the one before keeps."""
        return [cls(float(threshold)) for threshold in (8, 6, 4, 2, 1, 0, -1, -2, -4, -8, -12)]

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        # 0 − p <= −c is p >= c: stage 2 with an anchor of 0.
        anchor = q.new_zeros(q.shape[:3], dtype=check_compute_dtype(None, q.dtype))
        config = replace(self.config, theta=-self.threshold)
        return method_selection(identify_stripes(q, k, anchor, config, scale), config, q.shape[2])


@dataclass(frozen=True)
class PooledMaximum(Method):
    """The test against what the anchor stands in for: the largest pooled score itself.

    keep key j for group g   when   max_{j' in C_g} p_tj' − p_tj <= θ   for some block t of g

    A kernel has to form all scores of a block before it can judge the first, so each is formed
    twice.

    Args:
        config: sizes and θ; θ >= 0 keeps a candidate of every block.

    Raises:
        TypeError: `config` is no `AnchorConfig`.
    """

    config: AnchorConfig = field(default_factory=AnchorConfig)

    def __post_init__(self):
        check_type("config", self.config, AnchorConfig)

    @classmethod
    def sweep(cls) -> list["PooledMaximum"]:
        """θ from 1 to 17; each keeps what the one before keeps."""
        return [cls(AnchorConfig(theta=theta)) for theta in THETAS]

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        def keep(scores: Tensor) -> Tensor:
            return ~(scores.amax(-1, keepdim=True) - scores > self.config.theta)

        stripes = pick_stripes(q, k, self.config, scale, keep)
        return method_selection(stripes, self.config, q.shape[2], passes=2)


def _init_maximum(q: Tensor, k: Tensor, config: AnchorConfig, scale: float) -> Tensor:
    """Largest score on the initial region, `[B, Hq, N]`.

    Rows of groups without candidates may see later keys here; their anchors are never compared.
    """
    dtype = check_compute_dtype(None, q.dtype)
    k_init = k[:, :, : config.init_blocks * config.block_size].to(dtype)
    scores = scaled_scores(stack_heads(q.to(dtype), k.shape[1]), k_init, scale)
    return unstack_heads(scores.amax(-1), q.shape[1])
