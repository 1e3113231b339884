"""Extensions of AnchorAttention's choice: outlier rows, and what else could do their work.

None of these is the method of the paper, and none is in `METHODS`. All keep stripes as it does; a
key is kept for a group when one test of one block passes.

    OutlierRows     the mean of a block, and R of its rows that look elsewhere, each by itself
    TwoMeans        two means of a block, split by direction, in place of one
    StripeBudget    a share of the candidates, those that pass by most, in place of a threshold
    SharedStripes   what any query head of a kv head keeps, kept by all of them
    NearStripes     the keys right before a group, kept by all of its rows
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anchor_lab.methods.method import check_published, integer, number
from anchor_lab.methods.ranking import largest
from anchor_lab.methods.stripes import SWEEP_THETAS, StripeMethod, row_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import attention_scores
from anchor_ref.measure import identification_cost
from anchor_ref.outliers import even_rows, outlier_rows
from anchor_ref.plan import StripePlan
from anchor_ref.regions import Group, causal_pairs, groups
from anchor_ref.stripes import pooled_difference

BY = ("cosine", "group", "distance", "anchor", "random", "even")


class Extension(StripeMethod):
    """A method whose stripes each group's tests decide, and that the paper does not have."""

    extension: ClassVar[bool] = True

    @abstractmethod
    def kept(
        self,
        q: Float[Tensor, "B Hq Nq D"],
        k: Float[Tensor, "B Hkv Nk D"],
        anchor: Float[Tensor, "B Hq Nq"],
        group: Group,
        scale: float,
    ) -> Bool[Tensor, "B Hq C"]:
        """Which candidates of a group are stripes.

        Args:
            q, k, anchor, group, scale: as in `stripes.pooled_difference`.
        """

    def all_kept(self, q: Tensor, k: Tensor, scale: float) -> list[Bool[Tensor, "B Hq C"]]:
        """`kept` of each group of a whole prompt, in order."""
        anchor = row_anchor(q, k, self.config, scale)
        layout = groups(self.config, q.shape[2], k.shape[2])
        return [self.kept(q, k, anchor, group, scale) for group in layout]

    def scored_pairs(self, n: int) -> float:
        return float(identification_cost(self.config, n, n)) * causal_pairs(n)

    def stripes(self, q: Tensor, k: Tensor, scale: float) -> StripePlan:
        layout = groups(self.config, q.shape[2], k.shape[2])
        kept = self.all_kept(q, k, scale)
        return StripePlan.from_candidates(kept, [group.candidates for group in layout])


@dataclass(frozen=True)
class OutlierRows(Extension):
    """Outlier rows, an extension: as `anchor_ref.outliers` has them, or chosen otherwise.

    keep j when   ā_t − s̄_tj <= θ   for a block t, or   a_i − s_ij <= θ₂   for a row i that it asks

    Args:
        config: sizes, θ, R and θ₂; θ = −∞ leaves the rows alone to decide.
        by: which R rows of a block are asked, of equal ones the earlier: those of the least cosine
            to the block's mean ("cosine", as in the reference) or to the mean of its group
            ("group"), those furthest from the block's mean ("distance"), those of the lowest
            anchor ("anchor"), any ("random", the same in every call, head and layer), or one in
            the middle of each of R equal parts ("even").
        thetas: a threshold for each query head, in place of θ and θ₂; None means those.

    Raises:
        ValueError: `by` is another word, or `thetas` stand beside a θ₂.
    """

    config: AnchorConfig = field(default_factory=lambda: AnchorConfig(theta=5.0, outliers=4))
    by: Literal["cosine", "group", "distance", "anchor", "random", "even"] = "cosine"
    thetas: tuple[float, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.by not in BY:
            raise ValueError(f"by must be one of {', '.join(BY)}, got {self.by!r}")
        if self.thetas is not None and self.config.outlier_theta is not None:
            raise ValueError(
                "config.outlier_theta must be None with a threshold for each head, "
                f"got {self.config.outlier_theta}"
            )

    @classmethod
    def sweep(cls) -> list["OutlierRows"]:
        """θ from 1 to 17 with four rows of a block; each keeps what the one before keeps."""
        return [cls(AnchorConfig(theta=theta, outliers=4)) for theta in SWEEP_THETAS]

    def kept(self, q, k, anchor, group, scale):
        found = self.slack(q, k, anchor, group, scale)
        # What is not a number is kept, as in the reference.
        return ~(found < 0).all(2)

    def slack(self, q, k, anchor, group, scale) -> Float[Tensor, "B Hq T C"]:
        """θ − (anchor − score) of each test, natural-log units: at least 0 where it passes."""
        theta, row_theta = self.config.theta, self.config.row_theta
        if self.thetas is not None:
            theta = row_theta = anchor.new_tensor(self.thetas)[:, None, None]
        parts = [theta - pooled_difference(q, k, anchor, group, scale)]
        if self.config.outliers:
            rows = self.rows(q, anchor, group)
            queries = q.to(anchor.dtype).gather(2, rows[..., None].expand(-1, -1, -1, q.shape[-1]))
            candidates = k[:, :, group.candidates.start : group.candidates.stop].to(anchor.dtype)
            scores = attention_scores(queries, candidates, scale)
            parts.append(row_theta - (anchor.gather(2, rows).unsqueeze(-1) - scores))
        return torch.cat(parts, 2)

    def rows(self, q: Tensor, anchor: Tensor, group: Group) -> Int[Tensor, "B Hq R"]:
        """The rows that a group asks, those of one block after the other."""
        dtype, count = anchor.dtype, self.config.outliers
        if self.by == "cosine":
            return torch.cat([outlier_rows(q, rows, count, dtype) for rows in group.blocks], -1)
        if self.by == "even":
            places = [row for rows in group.blocks for row in even_rows(rows, count)]
            return torch.tensor(places, device=q.device).expand(*q.shape[:2], -1)
        strange = self._strangeness(q.to(dtype), anchor, group)
        ranked = (x.argsort(dim=-1, descending=True, stable=True) for x in strange)
        found = zip(group.blocks, ranked, strict=True)
        return torch.cat([rows.start + order[..., :count] for rows, order in found], -1)

    def _strangeness(self, q, anchor, group) -> Iterator[Float[Tensor, "B Hq b"]]:
        """Of each block's rows: the larger, the sooner a row is asked."""
        whole = q[:, :, group.rows.start : group.rows.stop].mean(2, keepdim=True)
        for rows in group.blocks:
            block = slice(rows.start, rows.stop)
            own = q[:, :, block]
            if self.by == "group":
                yield -torch.cosine_similarity(own, whole, dim=-1)
            elif self.by == "distance":
                yield (own - own.mean(2, keepdim=True)).norm(dim=-1)
            elif self.by == "anchor":
                yield -anchor[:, :, block]
            else:
                drawn = torch.rand(len(rows), generator=torch.Generator().manual_seed(rows.start))
                yield drawn.to(q).expand(*q.shape[:2], -1)


@dataclass(frozen=True)
class TwoMeans(Extension):
    """Two means of a block in place of one, an extension: its rows split by their direction.

    The row of the least cosine to the block's mean leads the second part; the rows that are nearer
    to it, by their cosine, than to the mean belong to that part.

    keep j when   mean of a_i − scale · <mean of q_i, k_j> <= θ   over the rows i of one part

    Args:
        config: sizes and θ; no outlier rows.
    """

    config: AnchorConfig = field(default_factory=AnchorConfig)

    def __post_init__(self):
        super().__post_init__()
        check_published(self.config)

    def kept(self, q, k, anchor, group, scale):
        dtype = anchor.dtype
        means, levels = [], []
        for rows in group.blocks:
            block = slice(rows.start, rows.stop)
            own, level = q[:, :, block].to(dtype), anchor[:, :, block]
            second = self.second_part(own)
            for part in (~second, second):
                # A part of no rows has NaN for a mean, which would keep every key: the whole
                # block stands in, and no key is kept that its mean does not want.
                weight = (part | ~part.any(-1, keepdim=True)).to(dtype)
                weight = weight / weight.sum(-1, keepdim=True)
                means.append((weight.unsqueeze(-1) * own).sum(2))
                levels.append((weight * level).sum(-1))
        candidates = k[:, :, group.candidates.start : group.candidates.stop].to(dtype)
        scores = attention_scores(torch.stack(means, 2), candidates, scale)
        below = torch.stack(levels, 2).unsqueeze(-1) - scores
        return ~(below > self.config.theta).all(2)

    @staticmethod
    def second_part(own: Float[Tensor, "B Hq b D"]) -> Bool[Tensor, "B Hq b"]:
        """Which rows of a block are nearer to its strangest row than to its mean."""
        strangest = outlier_rows(own, range(own.shape[2]), 1, own.dtype)
        leader = own.gather(2, strangest[..., None].expand(-1, -1, -1, own.shape[-1]))
        to_mean = torch.cosine_similarity(own, own.mean(2, keepdim=True), dim=-1)
        return torch.cosine_similarity(own, leader, dim=-1) > to_mean

    def scored_pairs(self, n: int) -> float:
        return 2 * super().scored_pairs(n)


@dataclass(frozen=True)
class StripeBudget(Extension):
    """A share of the candidates in place of a threshold, an extension.

    For each head and group the candidates that pass their best test by most; of equal ones the
    earlier. Only θ − θ₂ plays a part, as what a row's test is worth beside a mean's.

    Args:
        share: of the candidates, in [0, 1]; rounded up to whole ones.
        config: of the tests; with `outliers` of 0 those of the paper.
    """

    share: float = number(0.25, 0.0, 1.0)
    config: AnchorConfig = field(default_factory=lambda: AnchorConfig(outliers=4))

    @classmethod
    def sweep(cls) -> list["StripeBudget"]:
        """Shares from 0.05 to 0.9; each keeps what the one before keeps."""
        return [cls(share) for share in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)]

    def kept(self, q, k, anchor, group, scale):
        if not len(group.candidates):
            return torch.zeros(*q.shape[:2], 0, dtype=torch.bool, device=q.device)
        best = OutlierRows(self.config).slack(q, k, anchor, group, scale).amax(2)
        return largest(best, ceil(self.share * len(group.candidates)))


@dataclass(frozen=True)
class SharedStripes(Extension):
    """One list for the query heads that share a kv head, an extension: what any of them keeps.

    Args:
        config: of each head's own choice; with `outliers` of 0 that of the paper.
    """

    config: AnchorConfig = field(default_factory=lambda: AnchorConfig(theta=5.0, outliers=4))

    @classmethod
    def sweep(cls) -> list["SharedStripes"]:
        """Those of `OutlierRows`."""
        return [cls(method.config) for method in OutlierRows.sweep()]

    def kept(self, q, k, anchor, group, scale):
        kept = OutlierRows(self.config).kept(q, k, anchor, group, scale)
        of_kv_head = kept.unflatten(1, (k.shape[1], -1))
        return of_kv_head.any(2, keepdim=True).expand_as(of_kv_head).flatten(1, 2)


@dataclass(frozen=True)
class NearStripes(Extension):
    """The keys right before a group are stripes, whatever tests say: an extension.

    A group's first rows have a window of few keys; the keys before it, which lie as near to them,
    are far away for the group's last rows, and a mean over a block asks for those that all of its
    rows want.

    Args:
        choice: how other stripes are chosen.
        keys: kept before each group, at least 0.
    """

    choice: OutlierRows = field(default_factory=OutlierRows)
    keys: int = integer(256, 0)

    @property
    def config(self) -> AnchorConfig:
        return self.choice.config

    @classmethod
    def sweep(cls) -> list["NearStripes"]:
        """Those of `OutlierRows`."""
        return [cls(method) for method in OutlierRows.sweep()]

    def kept(self, q, k, anchor, group, scale):
        kept = self.choice.kept(q, k, anchor, group, scale)
        kept[..., max(0, kept.shape[-1] - self.keys) :] = True
        return kept
