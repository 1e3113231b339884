"""The oracle that gives all heads of a layer one list of keys (arXiv 2606.07703)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from anchor_lab.methods.method import Method, integer
from anchor_lab.methods.ranking import largest
from anchor_lab.methods.scores import all_scored, scores_of_rows
from anchor_lab.methods.selection import ROWS, Selection, row_selection


@dataclass(frozen=True)
class HeadAveragedTopK(Method):
    """The k keys of each row that hold most attention on average over the heads.

    m_ij = mean over the query heads h of softmax_j(s^h)_ij;   each head keeps the k largest m_ij

    Its distance to `TokenTopK` is what a list of its own is worth to a head. The average is over
    the query heads that are given, which are the layer's where all were captured.

    Args:
        k: keys of a row, at least 1; a row that sees fewer keeps them all.
    """

    heads_decide_together: ClassVar[bool] = True
    claim: ClassVar[str] = (
        "Within 0.48 points of dense attention on RULER-like tasks of 4K to 100K tokens: "
        "Qwen3.5-9B, no hardware since it saves nothing (arXiv 2606.07703)."
    )
    k: int = integer(1024, least=1)

    @classmethod
    def sweep(cls) -> list["HeadAveragedTopK"]:
        """k from 16 to 4096, doubling; each keeps what the one before keeps."""
        return [cls(2**p) for p in range(4, 13)]

    @classmethod
    def small(cls) -> "HeadAveragedTopK":
        return cls(6)

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        def keep(rows: range) -> Bool[Tensor, "B Hq R M"]:
            ((_, scores),) = scores_of_rows(q, k, scale, rows, ROWS)
            mass = scores.softmax(-1).mean(1, keepdim=True)
            # Later keys hold no mass, and of equals the first is kept: they rank behind the row's.
            return largest(mass, self.k).expand_as(scores)

        return row_selection(tuple(q.shape[:3]), keep, all_scored(q.shape[2]))
