"""What AnchorAttention, its ablations and the stripe oracle share: stripes as a selection.

All attend to the same initial region and window; only the stripes between them differ.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anchor_lab.methods.method import Method, check_published
from anchor_lab.methods.selection import Selection, causal_mask
from anchor_ref.anchor import compute_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_compute_dtype, check_type
from anchor_ref.measure import executed_density
from anchor_ref.plan import StripePlan
from anchor_ref.regions import causal_pairs, groups
from anchor_ref.stripes import pooled_scores

SWEEP_THETAS = (1.0, 2.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0, 17.0)


class StripeMethod(Method):
    """A method that chooses stripes by the pooled scores of stage 2.

    Attributes:
        config: block, group and regions.
        gather: stripes loaded at a time, see `measure.executed_density`.
        passes: how often each pooled score is formed.
        extension: whether it goes beyond the paper, and may ask outlier rows.

    Raises:
        TypeError, ValueError: see `check_published`.
    """

    config: AnchorConfig
    gather: ClassVar[int] = 64
    passes: ClassVar[int] = 1
    extension: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        check_type("config", self.config, AnchorConfig)
        if not self.extension:
            check_published(self.config)

    @abstractmethod
    def stripes(self, q: Tensor, k: Tensor, scale: float) -> StripePlan:
        """The stripes of each group; arguments as in `choose`."""

    @classmethod
    def sweep(cls) -> list["StripeMethod"]:
        """θ from 1 to 17; each keeps what the one before keeps."""
        return [cls(config=AnchorConfig(theta=theta)) for theta in SWEEP_THETAS]

    @classmethod
    def small(cls) -> "StripeMethod":
        few = cls.sweep()[0]
        return replace(few, config=replace(few.config, block_size=4, step=2))

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        n = q.shape[2]
        stripes = self.stripes(q, k, scale)
        return stripe_selection(stripes, self.config, n, self.scored_pairs(n), self.gather)

    def scored_pairs(self, n: int) -> float:
        """Pairs scored to choose for n tokens, per head, x 1/2: only q·k is formed."""
        return self.passes * sum(group.pooled_pairs for group in groups(self.config, n, n)) / 2


def stripe_selection(
    stripes: StripePlan, config: AnchorConfig, n: int, scored: float, gather: int
) -> Selection:
    """Initial region, window and the stripes of a plan; in the tail every key.

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
    device, layout = stripes.indices.device, groups(config, n, n)
    executed = executed_density(stripes, config, n, n, gather=gather) * causal_pairs(n)
    kept = stripes.to_mask(n)  # [B, Hq, G, N]: a byte a key where the plan has four a stripe

    def keep(rows: range) -> Tensor:
        mask = causal_mask(rows, device).repeat(batch, heads, 1, 1)
        for g, group in enumerate(layout):
            first, last = max(rows.start, group.rows.start), min(rows.stop, group.rows.stop)
            if first < last:
                inside = slice(first - rows.start, last - rows.start)
                candidates = slice(group.candidates.start, group.candidates.stop)
                dense = group.is_dense(torch.arange(first, last, device=device))[:, None]
                mask[:, :, inside, candidates] &= kept[:, :, g, None, candidates] | dense
        return mask

    return Selection((batch, heads, n), keep, executed.to(device), scored)


def row_anchor(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    config: AnchorConfig,
    scale: float,
    cu_seqlens: Int[Tensor, "S"] | None = None,
) -> Float[Tensor, "B Hq Nq"]:
    """Row anchors of stage 1; values play no part in them, and the keys stand in."""
    return compute_anchor(q, k, k, config, scale, cu_seqlens).max


def pick_stripes(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    config: AnchorConfig,
    scale: float,
    keep: Callable[[Float[Tensor, "B Hq T C"]], Bool[Tensor, "B Hq T C"]],
) -> StripePlan:
    """Stripes by a rule on the pooled scores of each group; one block's choice is enough.

    Args:
        q, k, scale: as in `Method.choose`.
        config: block, group and regions.
        keep: which of T query blocks keeps which of C candidates, C at least 1.
    """
    layout = groups(config, q.shape[2], q.shape[2])
    dtype = check_compute_dtype(None, q.dtype)
    pooled = [pooled_scores(q, k, group, scale, dtype) for group in layout]
    kept = [keep(x) if x.numel() else torch.zeros_like(x, dtype=torch.bool) for x in pooled]
    return StripePlan.from_candidates(
        [x.any(2) for x in kept], [group.candidates for group in layout]
    )
