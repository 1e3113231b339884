"""Rows that stage 2 asks one by one, an extension: how like each other and the others they are."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anchor_lab.methods.outliers import OutlierRows
from anchor_lab.methods.stripes import row_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import density, recall, rows_beyond
from anchor_ref.regions import groups
from anchor_ref.stripes import identify_stripes


@dataclass(frozen=True, eq=False)
class Likeness:
    """Cosines between queries of one block, means over the blocks beyond the first group.

    Attributes:
        among: of two rows that are asked, mean over all such pairs, `[B, Hq]`; NaN where no block
            asks two.
        nearest: of a row that is not asked and the asked one that it is most like, `[B, Hq]`; NaN
            where all are asked.
    """

    among: Float[Tensor, "B Hq"]
    nearest: Float[Tensor, "B Hq"]


def likeness(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    method: OutlierRows,
    scale: float,
) -> Likeness:
    """Do the rows that a method asks resemble each other, and do they resemble the rest?

    Args:
        q, k: queries and keys.
        method: which rows of a block are asked.
        scale: factor of q·k.

    Raises:
        ValueError: there is no block beyond the first group.
    """
    layout = groups(method.config, q.shape[2], k.shape[2])[1:]
    if not layout:
        raise ValueError(
            f"q must have more than {method.config.group_size} rows, the first group, "
            f"got {q.shape[2]}"
        )
    anchor = row_anchor(q, k, method.config, scale)
    among, nearest = [], []
    for group in layout:
        counts = [min(method.config.outliers, len(block)) for block in group.blocks]
        by_block = method.rows(q, anchor, group).split(counts, -1)
        for block, rows in zip(group.blocks, by_block, strict=True):
            direction = F.normalize(q[:, :, block.start : block.stop], dim=-1)
            at = rows - block.start
            asked = direction.gather(2, at[..., None].expand(*at.shape, q.shape[-1]))
            others = torch.eye(at.shape[-1], dtype=torch.bool, device=q.device).logical_not()
            among.append((asked @ asked.mT)[..., others].mean(-1))
            best = (direction @ asked.mT).amax(-1)  # [B, Hq, b]
            own = torch.zeros_like(best, dtype=torch.bool).scatter(2, at, True)
            nearest.append(best.masked_fill(own, torch.nan).nanmean(-1))
    return Likeness(torch.stack(among).nanmean(0), torch.stack(nearest).nanmean(0))


def spent(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    config: AnchorConfig,
    scale: float,
) -> tuple[Float[Tensor, "B Hq"], Float[Tensor, "B Hq"]]:
    """Density of each head, and its recall beyond the first group; the reference chooses.

    Args:
        q, k, scale: as in `likeness`.
        config: the paper's method, or with rows that are asked.
    """
    n = q.shape[2]
    plan = identify_stripes(q, k, row_anchor(q, k, config, scale), config, scale)
    rows = recall(q, k, plan, config, scale)
    beyond = rows_beyond(config, n, n).to(rows.device)
    return density(plan, config, n, n), rows[..., beyond].mean(-1)
