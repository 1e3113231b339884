"""What selections keep and lose in some blocks of query rows: of a long prompt enough to tell.

`evaluate_all` looks at every row; here a few blocks stand for the others. Where a method has whole
tiles, executed pairs stay exact, and so does what choosing costs: both come with the selection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anchor_lab.methods import Selection
from anchor_lab.methods.evaluate import weighted_sum
from anchor_lab.methods.selection import ROWS, token_blocks
from anchor_ref.heads import causal_scores
from anchor_ref.inputs import check_compute_dtype
from anchor_ref.measure import kept_mass, output_error
from anchor_ref.regions import causal_pairs

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class Sampled:
    """What one selection keeps and loses.

    Attributes:
        recall: of each row looked at beyond the first group, `[B, Hq, R]`.
        density: kept pairs of all rows looked at over their causal pairs, `[B, Hq]` float64.
        executed_density: of all rows, exact, where the method has tiles; else `density`.
        identification_cost, reused: shares of all causal pairs, exact, `[B, Hq]` float64.
        output_error: over the rows looked at beyond the first group, `[B, Hq]` float64.
    """

    recall: Float[Tensor, "B Hq R"]
    density: Float[Tensor, "B Hq"]
    executed_density: Float[Tensor, "B Hq"]
    identification_cost: Float[Tensor, "B Hq"]
    reused: Float[Tensor, "B Hq"]
    output_error: Float[Tensor, "B Hq"]

    @property
    def total_cost(self) -> Float[Tensor, "B Hq"]:
        """Executed and scored to choose; scores that attention goes on with count once."""
        return self.executed_density + self.identification_cost - self.reused

    @property
    def recall_p10(self) -> Float[Tensor, "B Hq"]:
        """10th percentile of rows."""
        return self.recall.quantile(0.1, -1)


def spread_blocks(n: int, count: int, phase: float = 0.0) -> list[range]:
    """Blocks of 128 query rows, one from each of `count` equal parts of the prompt.

    Where in its part moves by the golden ratio from part to part: blocks with an equal step would
    all have the same place in their group of queries, and see windows of one size. The last block
    is none of them: some methods keep it whole, and it would stand for many that they do not.

    Args:
        n: N.
        count: at least 1; as many as there are blocks, or more, take them all, the last too.
        phase: moves all of them inside their parts, in [0, 1): with phases evenly spread, as of
            several layers, each place in a group is looked at about equally often.

    Raises:
        ValueError: `count` is below 1, or `phase` is outside its range.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if not 0 <= phase < 1:
        raise ValueError(f"phase must be in [0, 1), got {phase}")
    blocks = token_blocks(n, ROWS)
    if count >= len(blocks):
        return blocks
    edges = [len(blocks) * part // count for part in range(count + 1)]
    places = [
        low + int(((part + 1) * GOLDEN + phase) % 1 * (high - low))
        for part, (low, high) in enumerate(pairwise(edges))
    ]
    return [blocks[place] for place in sorted({min(x, len(blocks) - 2) for x in places})]


@torch.no_grad()
def evaluate_rows(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    v: Float[Tensor, "B Hkv N D"],
    selections: Sequence[Selection],
    scale: float,
    blocks: Sequence[range],
    first: int,
) -> list[Sampled]:
    """What each selection keeps and loses in these rows; dense attention is formed once for all.

    Args:
        q, k, v, scale: as in `anchor_attention`, with as many queries as keys.
        selections: what any methods' `select` returned for q and k.
        blocks: query rows to look at.
        first: rows of the first group, whose recall and error are not looked at.

    Raises:
        ValueError: no row of `blocks` lies beyond the first group.
    """
    if not any(rows.stop > first for rows in blocks):
        raise ValueError(f"blocks must have a row beyond the first {first}, got {list(blocks)}")
    n, dtype = q.shape[2], check_compute_dtype(None, q.dtype)
    k, v = k.to(dtype), v.to(dtype)
    dense, found = [], [_Rows(q) for _ in selections]
    causal = sum(causal_pairs(len(rows), rows.stop) for rows in blocks)
    for rows in blocks:
        values = v[:, :, : rows.stop]
        scores = causal_scores(
            q[:, :, rows.start : rows.stop].to(dtype), k[:, :, : rows.stop], scale
        )
        weights = scores.softmax(-1)
        beyond = slice(max(0, first - rows.start), None)
        dense.append(weighted_sum(weights, values)[:, :, beyond])
        for selection, one in zip(selections, found, strict=True):
            one.add(selection.rows(rows), scores, weights, values, beyond)
    whole = torch.cat(dense, 2)
    return [
        one.sampled(selection, whole, causal, causal_pairs(n))
        for selection, one in zip(selections, found, strict=True)
    ]


class _Rows:
    """What one selection kept so far."""

    def __init__(self, q: Tensor):
        self.kept = torch.zeros(q.shape[:2], dtype=torch.float64, device=q.device)
        self.recall, self.out = [], []

    def add(
        self, mask: Bool[Tensor, "B Hq R M"], scores: Tensor, weights: Tensor, values, beyond
    ) -> None:
        self.kept += mask.sum((-2, -1))
        mask = mask[:, :, beyond]
        if not mask.shape[2]:
            return
        self.recall.append(kept_mass(weights[:, :, beyond], mask))
        # A softmax of its own: kept weights may all underflow beside a larger dropped one.
        alone = scores[:, :, beyond].masked_fill(~mask, -torch.inf).softmax(-1)
        self.out.append(weighted_sum(alone, values))

    def sampled(self, selection: Selection, dense: Tensor, causal: int, every: int) -> Sampled:
        density = self.kept / causal
        executed, reused = selection.executed, selection.reused
        return Sampled(
            torch.cat(self.recall, 2),
            density,
            density if executed is None else executed / every,
            torch.full_like(density, selection.scored / every),
            torch.zeros_like(density) if reused is None else reused / every,
            output_error(torch.cat(self.out, 2), dense),
        )
