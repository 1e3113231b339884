"""Figures of notebook 07: what a larger θ adds to the map of one head."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO

from torch import Tensor

from anchor_lab.drawing import maps, style
from anchor_lab.drawing.lessons.place import small_print
from anchor_models.capture import Captured
from anchor_ref.anchor import compute_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import density, recall, rows_beyond
from anchor_ref.plan import StripePlan
from anchor_ref.stripes import identify_stripes


def at_theta(
    x: Captured, place: int, anchor: Tensor, config: AnchorConfig, theta: float
) -> tuple[StripePlan, float, float]:
    """Stripes of one head at θ, its mean recall beyond the first group, and its density.

    Args:
        x, place: the head.
        anchor: a_i of it, `[1, 1, N]`.
        config: all but θ.
        theta: θ.
    """
    n, at = x.q.shape[2], replace(config, theta=theta)
    q = x.q[:, place : place + 1]
    plan = identify_stripes(q, x.k, anchor, at, x.scaling)
    found = recall(q, x.k, plan, at, x.scaling)[0, 0, rows_beyond(at, n, n)]
    return plan, float(found.mean()), float(density(plan, at, n, n)[0, 0])


def show_thetas(
    x: Captured, place: int, config: AnchorConfig, thetas: Sequence[float]
) -> list[StripePlan]:
    """What does a larger θ add?"""
    anchor = _anchor(x, place, config)
    figure, axes = style.panels(1, len(thetas), (9.6, 3.8), sharey=True)
    plans, told = [], []
    for ax, theta in zip(axes, thetas, strict=True):
        plan, found, share = at_theta(x, place, anchor, config, theta)
        maps.draw_kept_share(maps.data_kept_map(plan, 0, config, x.q.shape[2]), ax)
        words = f"θ = {theta:g}: recall {found:.3f}, density {share:.2f}"
        ax.set_title(words, fontsize=9)
        ax.label_outer()
        plans.append(plan)
        told.append(words)
    style.finish(
        figure,
        show_thetas.__doc__,
        "Blue: window, yellow: initial region. Grey to red: the share of 32 neighbours that are "
        f"stripes; {small_print(x, place)}.",
        f"Maps of one head; more and more columns are kept. {'; '.join(told)}.",
    )
    return plans


def slider(x: Captured, place: int, config: AnchorConfig):
    """A slider for θ with the map under it; it redraws where a Jupyter kernel runs.

    Returns:
        An `ipywidgets.VBox` of the slider and the picture, which has no alternative text, since
        the widget takes none.
    """
    from ipywidgets import FloatSlider, Image, VBox
    from matplotlib import pyplot as plt

    anchor = _anchor(x, place, config)

    def picture(theta: float) -> bytes:
        figure, ax = style.panels(size=(4.4, 4.4))
        plan, found, share = at_theta(x, place, anchor, config, theta)
        maps.draw_kept_share(maps.data_kept_map(plan, 0, config, x.q.shape[2]), ax)
        ax.set_title(f"θ = {theta:g}: recall {found:.3f}, density {share:.2f}")
        file = BytesIO()
        figure.savefig(file)
        plt.close(figure)
        return file.getvalue()

    look = {"min": 0, "max": 20, "step": 0.5, "continuous_update": False, "description": "θ"}
    dial = FloatSlider(config.theta, **look)
    image = Image(value=picture(dial.value), format="png")
    dial.observe(lambda change: setattr(image, "value", picture(change.new)), "value")
    return VBox([dial, image])


def _anchor(x: Captured, place: int, config: AnchorConfig) -> Tensor:
    q = x.q[:, place : place + 1]
    return compute_anchor(q, x.k, x.v, config, x.scaling).max
