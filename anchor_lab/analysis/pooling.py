"""What each approximation of the difference test costs, one at a time."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.analysis.maxima import locate_maxima
from anchor_lab.methods.stripes import row_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_inputs
from anchor_ref.measure import block_scores, causal_share, kept_mass
from anchor_ref.regions import groups
from anchor_ref.stripes import passes_difference_test, pooled_difference

# What is compared with θ, and who keeps the key.
TESTS = {
    "exact": "row maximum − score, each row for itself",
    "anchor": "row anchor − score, each row for itself",
    "shared": "row maximum − score, a row keeps for its whole group",
    "pooled": "mean maximum − score of the mean query, a block keeps for its whole group",
    "method": "mean anchor − score of the mean query, a block keeps for its whole group",
}


@dataclass(frozen=True, eq=False)
class Kept:
    """What one test keeps, initial region and window included.

    Attributes:
        recall: of every row, `[B, Hq, Nq]`.
        density: of every head, `[B, Hq]` float64.
    """

    recall: Float[Tensor, "B Hq Nq"]
    density: Float[Tensor, "B Hq"]


def compare_tests(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    config: AnchorConfig,
    scale: float | None = None,
) -> dict[str, Kept]:
    """Recall and density of the exact difference test and of what stands in for it.

    Args:
        q, k, config, scale: as in `identify_stripes`.

    Returns:
        One `Kept` for each of `TESTS`, in float32 (float64 for float64 inputs). Costs three times
        what dense scores do; memory grows linearly in Nk.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`.
    """
    scale = check_inputs(q, k, None, scale)
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(dtype), k.to(dtype)
    anchor = row_anchor(q, k, config, scale)
    row_max = locate_maxima(q, k, config, scale).largest
    recall = {name: torch.empty_like(anchor) for name in TESTS}
    pairs = {name: anchor.new_zeros(q.shape[:2], dtype=torch.float64) for name in TESTS}
    layout = groups(config, q.shape[2], k.shape[2])
    for group in layout:
        columns = group.candidate_columns
        by_group = {
            # The same products as the maximum's: a row's largest score must equal itself.
            "shared": torch.stack(
                [
                    (row_max[:, :, rows, None] - scores[..., columns]).amin(2)
                    for rows, scores in block_scores(q, k, group, scale)
                ],
                2,
            ),
            "pooled": pooled_difference(q, k, row_max, group, scale),
            "method": pooled_difference(q, k, anchor, group, scale),
        }  # [B, Hq, T, C]
        least = {name: found.amin(2, keepdim=True) for name, found in by_group.items()}
        for rows, scores in block_scores(q, k, group, scale):
            weights, scores = scores.softmax(-1)[..., columns], scores[..., columns]
            by_row = {
                "exact": row_max[:, :, rows, None] - scores,
                "anchor": anchor[:, :, rows, None] - scores,
            }  # [B, Hq, b, C]
            dense = group.is_dense(torch.arange(rows.start, rows.stop, device=q.device))[:, None]
            for name, difference in (least | by_row).items():
                kept = passes_difference_test(difference, config.theta)
                recall[name][:, :, rows] = kept_mass(weights, kept | dense)
                pairs[name] += (kept & ~dense).expand_as(weights).sum((-2, -1))
    always = sum(group.always_pairs for group in layout)
    return {name: Kept(recall[name], causal_share(always + pairs[name], layout)) for name in TESTS}
