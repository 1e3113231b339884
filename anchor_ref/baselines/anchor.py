"""AnchorAttention as a selection, and what becomes of it when one of its choices is replaced.

Every variant attends to the same initial region and window and has the same pooled queries; only
the rule that picks stripes among the candidates differs:

    AnchorAttention      ā_t − p_tj <= θ, the anchor from initial region and window (the method)
    PartialAnchor        the same, the anchor from one of the two regions alone
    ConstantThreshold    p_tj >= c: no anchor
    PooledMaximum        max_j' p_tj' − p_tj <= θ: no anchor, two passes over the candidates
    PooledTopK           the k largest p_tj
    PooledTopCdf         the largest p_tj until their softmax reaches a mass
    AnchorBlocks         whole key blocks in which one key passes the test of AnchorAttention

with p_tj = scale · <q̄_t, k_j> for query block t and candidate j, and a key kept for a group when
one of its blocks picks it. Of equal scores the earlier key is taken.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_ref.anchor import compute_anchor
from anchor_ref.baselines.selection import (
    Selection,
    causal_mask,
    causal_pairs,
    check_count,
    check_number,
    check_prompt,
    largest,
    largest_share,
)
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores, stack_heads, unstack_heads
from anchor_ref.inputs import check_compute_dtype, check_type
from anchor_ref.measure import dropped_candidates, executed_density, identification_cost
from anchor_ref.plan import StripePlan
from anchor_ref.regions import Group, groups
from anchor_ref.stripes import identify_stripes

THETAS = (1.0, 2.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0, 17.0)
GATHER = 64  # stripes that stage 3 loads at a time


@dataclass(frozen=True)
class AnchorAttention:
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

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """Initial region, window and stripes.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """
        scale = check_prompt(q, k, scale)
        stripes = identify_stripes(q, k, _anchor(q, k, self.config, scale), self.config, scale)
        return _method_selection(stripes, self.config, q.shape[2])


@dataclass(frozen=True)
class PartialAnchor:
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

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """Initial region, window and the stripes that pass against the partial anchor.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """
        scale = check_prompt(q, k, scale)
        if self.region == "window":
            anchor = _anchor(q, k, replace(self.config, init_blocks=0), scale)
        else:
            anchor = _init_maximum(q, k, self.config, scale)
        stripes = identify_stripes(q, k, anchor, self.config, scale)
        return _method_selection(stripes, self.config, q.shape[2])


@dataclass(frozen=True)
class ConstantThreshold:
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

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """Initial region, window and the stripes above the threshold.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """
        scale = check_prompt(q, k, scale)
        # 0 − p <= −c is p >= c: stage 2 with an anchor of 0.
        anchor = q.new_zeros(q.shape[:3], dtype=check_compute_dtype(None, q.dtype))
        config = replace(self.config, theta=-self.threshold)
        return _method_selection(identify_stripes(q, k, anchor, config, scale), config, q.shape[2])


@dataclass(frozen=True)
class PooledMaximum:
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

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """Initial region, window and the stripes near the largest pooled score.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """

        def keep(scores: Tensor) -> Tensor:
            return ~(scores.amax(-1, keepdim=True) - scores > self.config.theta)

        stripes = _pick_stripes(q, k, self.config, scale, keep)
        return _method_selection(stripes, self.config, q.shape[2], passes=2)


@dataclass(frozen=True)
class PooledTopK:
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

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """Initial region, window and the stripes of the largest pooled scores.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """
        stripes = _pick_stripes(q, k, self.config, scale, lambda s: largest(s, self.k))
        return _method_selection(stripes, self.config, q.shape[2])


@dataclass(frozen=True)
class PooledTopCdf:
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
        check_number("mass", self.mass, 0, 1)
        check_type("config", self.config, AnchorConfig)

    @classmethod
    def sweep(cls) -> list["PooledTopCdf"]:
        """Masses from 0.1 to 0.99; each keeps what the one before keeps."""
        return [cls(mass) for mass in (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)]

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """Initial region, window and the stripes that hold the pooled mass.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """

        def keep(scores: Tensor) -> Tensor:
            return largest_share(scores.softmax(-1), self.mass)

        stripes = _pick_stripes(q, k, self.config, scale, keep)
        return _method_selection(stripes, self.config, q.shape[2])


@dataclass(frozen=True)
class AnchorBlocks:
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

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """Initial region, window and whole blocks around the stripes of AnchorAttention.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """
        scale = check_prompt(q, k, scale)
        n, block = q.shape[2], self.config.block_size
        stripes = identify_stripes(q, k, _anchor(q, k, self.config, scale), self.config, scale)
        # Candidates begin and end on block boundaries, so a block lies inside or outside.
        blocks = stripes.to_mask(-(-n // block) * block).unflatten(-1, (-1, block)).any(-1)
        whole = StripePlan.from_mask(blocks.repeat_interleave(block, -1)[..., :n])
        return _method_selection(whole, self.config, n, gather=block)


def stripe_selection(
    stripes: StripePlan, config: AnchorConfig, n: int, scored: float, gather: int = GATHER
) -> Selection:
    """Initial region, window and the stripes of a plan.

    Args:
        stripes: keys kept among the candidates of each group.
        config: block, group and regions.
        n: N.
        scored: see `Selection`.
        gather: stripes loaded at a time, see `measure.executed_density`.

    Raises:
        TypeError, ValueError: see `inputs.check_plan`.
    """
    batch, heads, _ = stripes.counts.shape
    device, all_groups = stripes.indices.device, groups(config, n, n)

    def keep(rows: range) -> Tensor:
        mask = causal_mask(rows, device).repeat(batch, heads, 1, 1)
        for g, group in enumerate(all_groups):
            first, last = max(rows.start, group.rows.start), min(rows.stop, group.rows.stop)
            if first < last:
                inside = slice(first - rows.start, last - rows.start)
                candidates = slice(group.candidates.start, group.candidates.stop)
                dropped = dropped_candidates(stripes, g, group)  # [B, Hq, C]
                mask[:, :, inside, candidates] &= ~dropped.unsqueeze(2)
        return mask

    executed = executed_density(stripes, config, n, n, gather=gather) * causal_pairs(n)
    return Selection((batch, heads, n), keep, executed.to(device), scored)


def _method_selection(
    stripes: StripePlan, config: AnchorConfig, n: int, passes: int = 1, gather: int = GATHER
) -> Selection:
    """The selection of a method that forms the pooled scores of stage 2 `passes` times."""
    scored = passes * identification_cost(config, n, n).item() * causal_pairs(n)
    return stripe_selection(stripes, config, n, scored, gather)


def _anchor(q: Tensor, k: Tensor, config: AnchorConfig, scale: float) -> Tensor:
    """Row anchors of stage 1; values play no part in them, and the keys stand in."""
    return compute_anchor(q, k, k, config, scale).max


def _init_maximum(q: Tensor, k: Tensor, config: AnchorConfig, scale: float) -> Tensor:
    """Largest score on the initial region, `[B, Hq, N]`.

    Rows of groups without candidates may see later keys here; their anchors are never compared.
    """
    dtype = check_compute_dtype(None, q.dtype)
    k_init = k[:, :, : config.init_blocks * config.block_size].to(dtype)
    scores = scaled_scores(stack_heads(q.to(dtype), k.shape[1]), k_init, scale)
    return unstack_heads(scores.amax(-1), q.shape[1])


def _pick_stripes(
    q: Tensor,
    k: Tensor,
    config: AnchorConfig,
    scale: float | None,
    keep: Callable[[Tensor], Tensor],
) -> StripePlan:
    """Stripes by a rule on the pooled scores `[B, Hq, blocks, C]` of each group."""
    scale = check_prompt(q, k, scale)
    batch, heads, n, _ = q.shape
    all_groups = groups(config, n, n)
    chosen = torch.zeros(batch, heads, len(all_groups), n, dtype=torch.bool, device=q.device)
    for g, group in enumerate(all_groups):
        if group.candidates:
            candidates = slice(group.candidates.start, group.candidates.stop)
            picked = keep(_pooled_scores(q, k, group, scale))
            chosen[:, :, g, candidates] = picked.any(2)
    return StripePlan.from_mask(chosen)


def _pooled_scores(q: Tensor, k: Tensor, group: Group, scale: float) -> Tensor:
    dtype = check_compute_dtype(None, q.dtype)
    means = [q[:, :, rows.start : rows.stop].to(dtype).mean(2) for rows in group.blocks]
    pooled = stack_heads(torch.stack(means, 2), k.shape[1])
    keys = k[:, :, group.candidates.start : group.candidates.stop].to(dtype)
    return unstack_heads(scaled_scores(pooled, keys, scale), q.shape[1])
