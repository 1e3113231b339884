"""Outlier rows: stage 2 asks some queries of a block one by one (an extension, not the paper's).

The mean query of a block speaks for all its queries. Those that look elsewhere than their block
does are outvoted, and the keys that they need are dropped. So `config.outliers` queries of each
block are asked as well, each with its own anchor: those whose direction is least that of the mean,
or rows at equal distances, which need not be looked for and lose less (`results/outliers`). A key
is kept when the mean of some block wants it, as published, or one of these rows. Groups, lists and
stage 3 stay what they are.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.heads import attention_scores
from anchor_ref.regions import Group


def outlier_rows(
    q: Float[Tensor, "B Hq Nq D"], block: range, count: int, dtype: torch.dtype
) -> Int[Tensor, "B Hq R"]:
    """The queries of a block that point least where its mean query q̄_t points.

    the R smallest of   cos_i = <q_i, q̄_t> / (‖q_i‖ ‖q̄_t‖);   of equal ones the earlier query

    Args:
        q: queries.
        block: rows of q, as `Group.blocks` has them.
        count: R; a block of fewer queries gives all of them.
        dtype: to compute in.

    Returns:
        Rows of q, int64, the least cosine first. A query of zeros has cosine 0.
    """
    queries = q[:, :, block.start : block.stop].to(dtype)
    along = (queries * queries.mean(2, keepdim=True)).sum(-1)  # ‖q̄_t‖ is the same for all
    length = queries.norm(dim=-1)
    cosine = (along / length).masked_fill(length == 0, 0.0)
    return block.start + cosine.argsort(dim=-1, stable=True)[..., :count]


def even_rows(block: range, count: int) -> list[int]:
    """A row in the middle of each of `count` equal parts of a block; all where there are fewer.

    i_r = first row + ⌊(2r + 1) · rows / 2R⌋   for r = 0 … R − 1

    Args:
        block: rows of q, as `Group.blocks` has them.
        count: R, at least 1.
    """
    count = min(count, len(block))
    return [block[(2 * part + 1) * len(block) // (2 * count)] for part in range(count)]


def asked_rows(
    q: Float[Tensor, "B Hq Nq D"], block: range, config: AnchorConfig, dtype: torch.dtype
) -> Int[Tensor, "B Hq R"]:
    """The queries of a block that are asked by themselves, as `config.outlier_choice` says.

    Args:
        q, block, dtype: as in `outlier_rows`.
        config: with `outliers` of at least 1.
    """
    if config.outlier_choice == "cosine":
        return outlier_rows(q, block, config.outliers, dtype)
    rows = torch.tensor(even_rows(block, config.outliers), device=q.device)
    return rows.expand(*q.shape[:2], -1)


def outlier_difference(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    row_anchor: Float[Tensor, "B Hq Nq"],
    group: Group,
    scale: float,
    config: AnchorConfig,
) -> Float[Tensor, "B Hq R C"]:
    """How far each candidate of a group lies below the anchor of each outlier row.

    a_i − scale · <q_i, k_j>   for the outlier rows i of all blocks

    Args:
        q, k, row_anchor, group, scale: as in `stripes.pooled_difference`.
        config: how many rows of a block, and which.

    Returns:
        `[B, Hq, R, C]` in the dtype of `row_anchor`, natural-log units; R of all blocks together.
    """
    dtype = row_anchor.dtype
    rows = torch.cat([asked_rows(q, block, config, dtype) for block in group.blocks], -1)
    asked = q.to(dtype).gather(2, rows.unsqueeze(-1).expand(*rows.shape, q.shape[-1]))
    candidates = k[:, :, group.candidates.start : group.candidates.stop].to(dtype)
    anchor = row_anchor.gather(2, rows).unsqueeze(-1)
    return anchor - attention_scores(asked, candidates, scale)
