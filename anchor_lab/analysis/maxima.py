"""Where do the largest scores lie? The premise of the method, looked at on real heads."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_inputs
from anchor_ref.measure import block_scores
from anchor_ref.regions import groups

REGIONS = ("initial region", "window", "candidates")


@dataclass(frozen=True, eq=False)
class Maxima:
    """Where each row's largest score lies, and what the anchor misses of it.

    Attributes:
        region: index into `REGIONS`, `[B, Hq, Nq]` int64. Of equal scores the first region's
            counts.
        largest: the row's largest score, `[B, Hq, Nq]`, natural-log units.
        gap: `largest` minus the row's anchor, `[B, Hq, Nq]`, natural-log units; 0 where
            the largest lies in the initial region or the window.
        rows: queries that have candidates at all, so that the question is open, `[rows]` int64.
    """

    region: Int[Tensor, "B Hq Nq"]
    largest: Float[Tensor, "B Hq Nq"]
    gap: Float[Tensor, "B Hq Nq"]
    rows: Int[Tensor, "R"]

    @property
    def shares(self) -> Float[Tensor, "B Hq 3"]:
        """Share of the rows with candidates whose largest score lies in each region; float64."""
        region = self.region[..., self.rows]
        return torch.stack([(region == i).double().mean(-1) for i in range(len(REGIONS))], -1)


def locate_maxima(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
) -> Maxima:
    """Find the region of each row's largest score: max_j s_ij over all j <= i.

    Args:
        q, k, config, scale, cu_seqlens: as in `identify_stripes`.

    Returns:
        `Maxima`, computed in float32 (float64 for float64 inputs), a block of queries at a time.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`.
    """
    scale = check_inputs(q, k, None, scale, cu_seqlens)
    dtype = torch.promote_types(q.dtype, torch.float32)
    k = k.to(dtype)
    region = torch.empty(q.shape[:3], dtype=torch.int64, device=q.device)
    best = torch.empty(q.shape[:3], dtype=dtype, device=q.device)
    gap = torch.empty_like(best)
    open_rows = []
    for group in groups(config, q.shape[2], k.shape[2], cu_seqlens):
        if group.candidates:
            open_rows += group.rows
        between = group.candidate_columns
        for rows, scores in block_scores(q, k, group, scale):
            initial, candidates, window = scores.tensor_split((between.start, between.stop), -1)
            # In the order of REGIONS: `max` names the first of equals.
            largest = torch.stack([_row_max(x) for x in (initial, window, candidates)])
            best[:, :, rows], region[:, :, rows] = largest.max(0)
            gap[:, :, rows] = best[:, :, rows] - largest[:2].amax(0)
    return Maxima(region, best, gap, torch.tensor(open_rows, dtype=torch.int64, device=q.device))


def _row_max(scores: Tensor) -> Tensor:
    empty = scores.new_full((*scores.shape[:-1], 1), -torch.inf)
    return torch.cat([scores, empty], -1).amax(-1)
