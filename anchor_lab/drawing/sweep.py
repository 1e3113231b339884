"""θ from −∞ to +∞ over one head, for the animation of the front page."""

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from anchor_lab.analysis.curves import theta_curve
from anchor_lab.drawing import maps
from anchor_lab.drawing.style import ACCENT, INIT, INK, MUTED, STRIPE, WINDOW
from anchor_ref.anchor import compute_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.stripes import identify_stripes


def data_sweep(
    q: Float[Tensor, "1 1 N D"],
    k: Float[Tensor, "1 1 N D"],
    config: AnchorConfig,
    thetas: Sequence[float],
    scale: float,
) -> list[dict]:
    """What one head keeps at each threshold.

    Args:
        q, k: one head's queries and keys.
        config: sizes; its θ plays no part.
        thetas: thresholds, ascending.
        scale: factor of q·k.

    Returns:
        For each θ: theta, density, recall (mean over the rows beyond the first group, which keeps
        everything), and map as of `maps.data_kept_map`.
    """
    curve = theta_curve(q, k, config, thetas, scale)
    anchor = compute_anchor(q, k, k, config, scale).max  # values play no part
    steps = []
    for i, theta in enumerate(thetas):
        at = replace(config, theta=theta)
        plan = identify_stripes(q, k, anchor, at, scale)
        steps.append(
            {
                "theta": theta,
                "density": float(curve.density[i, 0, 0]),
                "recall": float(curve.recall[i, 0, 0, config.group_size :].double().mean()),
                "map": maps.data_kept_map(plan, 0, at, q.shape[2]),
            }
        )
    return steps


def draw_step(steps: Sequence[dict], i: int, left, right) -> None:
    """What does θ keep, and how much of the attention is that?"""
    step = steps[i]
    left.clear()
    right.clear()
    maps.draw_kept_pairs(step["map"], left)
    left.set_title(f"θ = {name_of(step['theta'])}: which pairs are computed?")
    for word, colour, place in (
        ("initial region", INIT, 0.98),
        ("window", WINDOW, 0.91),
        ("stripes", STRIPE, 0.84),
    ):
        at = {"transform": left.transAxes, "ha": "right", "va": "top", "weight": "bold"}
        left.text(0.98, place, "■", color=colour, **at)
        left.text(0.93, place, word, color=INK, **at)
    density, recall = ([one[what] for one in steps] for what in ("density", "recall"))
    right.plot(density, recall, color=MUTED, lw=1)
    right.plot(density[: i + 1], recall[: i + 1], color=ACCENT, lw=2)
    right.plot(density[i], recall[i], "o", color=ACCENT, ms=8)
    right.set(xlim=(0, 1.02), ylim=(min(recall) - 0.05, 1.01))
    right.set(xlabel="share of the pairs computed", ylabel="attention mass on them")
    right.set_title(f"{step['density']:.0%} of pairs, {step['recall']:.0%} of attention")


def name_of(theta: float) -> str:
    """−∞, 7.5, +∞."""
    return {-float("inf"): "−∞", float("inf"): "+∞"}.get(theta, f"{theta:g}")
