"""Thresholds that reach a recall: one for each head, or for each layer."""

from anchor_lab.analysis.curves import MeanCurves
from anchor_models.calibration import Calibration
from anchor_models.thresholds import check_target


def choose_thetas(curves: MeanCurves, target_recall: float, per: str = "head") -> Calibration:
    """The smallest threshold on each curve that reaches the recall asked for.

    Args:
        curves: of the calibration texts.
        target_recall: mean over the rows beyond the first group, in (0, 1).
        per: "head"; "layer" gives all heads of a layer the largest threshold any of them needs.

    Returns:
        A `Calibration`. A head that no threshold satisfies gets the last; `reached` shows it.

    Raises:
        ValueError: an argument is outside what is described.
    """
    check_target(target_recall)
    check_per(per)
    chosen, reached, kept = {}, {}, {}
    for layer, recall in curves.recall.items():
        # Recall never falls as θ rises.
        at = (recall < target_recall).sum(0).clamp(max=len(recall) - 1)  # [Hq]
        at = at if per == "head" else at.amax().expand_as(at)
        chosen[layer] = tuple(curves.thetas[i] for i in at.tolist())
        reached[layer] = tuple(recall.gather(0, at[None])[0].tolist())
        kept[layer] = tuple(curves.density[layer].gather(0, at[None])[0].tolist())
    return Calibration(chosen, target_recall, reached, kept, curves.config, curves.lengths)


def check_per(per: str) -> None:
    """Refuse what is neither "head" nor "layer" with a ValueError."""
    if per not in ("head", "layer"):
        raise ValueError(f"per must be 'head' or 'layer', got {per!r}")
