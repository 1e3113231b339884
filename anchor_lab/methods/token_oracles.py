"""Oracles that choose single keys for each row: by number, by mass, by difference."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from anchor_lab.methods.method import Method, integer, number
from anchor_lab.methods.ranking import largest, largest_share
from anchor_lab.methods.scores import SHARES, all_scored, scores_of_rows
from anchor_lab.methods.selection import ROWS, Selection, row_selection
from anchor_ref.stripes import passes_difference_test


@dataclass(frozen=True)
class TokenTopK(Method):
    """The k keys of each row with the largest scores.

    Args:
        k: keys of a row, at least 1; a row that sees fewer keeps them all.
    """

    k: int = integer(1024, least=1)

    @classmethod
    def sweep(cls) -> list["TokenTopK"]:
        """k from 16 to 4096, doubling; each keeps what the one before keeps."""
        return [cls(2**p) for p in range(4, 13)]

    @classmethod
    def small(cls) -> "TokenTopK":
        return cls(4)

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        return _select_by_scores(q, k, scale, lambda scores: largest(scores, self.k))


@dataclass(frozen=True)
class TokenTopCdf(Method):
    """The fewest keys of each row that hold a given mass.

    Args:
        mass: share of the row's softmax mass that is reached, in [0, 1]; a row keeps its largest
            key at least.
    """

    mass: float = number(0.95, 0.0, 1.0)

    @classmethod
    def sweep(cls) -> list["TokenTopCdf"]:
        """Masses from 0.5 to 0.999; each keeps what the one before keeps."""
        return [cls(share) for share in SHARES]

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        def keep(scores: Tensor) -> Tensor:
            weights = scores.softmax(-1)
            return largest_share(weights, self.mass) | largest(weights, 1)

        return _select_by_scores(q, k, scale, keep)


@dataclass(frozen=True)
class DifferenceOracle(Method):
    """The difference test without its approximations: each row's own maximum, its own scores.

    keep key j for query i   when   max_j' s_ij' − s_ij <= θ

    A dropped key weighs less than e^(−θ) of the row's largest.

    Args:
        theta: θ, natural-log units of the scaled score, at least 0; +inf keeps every key.
    """

    theta: float = number(12.0, 0.0, torch.inf)

    @classmethod
    def sweep(cls) -> list["DifferenceOracle"]:
        """θ from 1 to 16; each keeps what the one before keeps."""
        return [cls(float(theta)) for theta in (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)]

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        def keep(scores: Tensor) -> Tensor:
            return passes_difference_test(scores.amax(-1, keepdim=True) - scores, self.theta)

        return _select_by_scores(q, k, scale, keep)


def _select_by_scores(
    q: Tensor, k: Tensor, scale: float, keep: Callable[[Tensor], Tensor]
) -> Selection:
    """Each row decides by its own scores, when it is asked."""

    def keep_rows(rows: range) -> Bool[Tensor, "B Hq R M"]:
        ((_, scores),) = scores_of_rows(q, k, scale, rows, ROWS)
        return keep(scores)

    return row_selection(tuple(q.shape[:3]), keep_rows, all_scored(q.shape[2]))
