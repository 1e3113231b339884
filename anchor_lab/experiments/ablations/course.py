"""What the three numbers of the method do to single heads, as the notebook shows it."""

from collections.abc import Mapping, Sequence

from anchor_lab.analysis.curves import ThetaCurve, theta_curve
from anchor_lab.drawing import style
from anchor_lab.drawing.lessons.place import name_of, small_print
from anchor_lab.experiments.ablations.figure import data_theta_curves, draw_theta
from anchor_lab.experiments.course import columns
from anchor_models.capture import Captured
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import identification_cost

Lines = dict[str, dict[str, list[float]]]


def data_variants(
    x: Captured,
    place: int,
    variants: Mapping[str, AnchorConfig],
    thetas: Sequence[float],
    first: int,
) -> Lines:
    """Mean recall and density of one head over θ, for several configurations.

    Args:
        x, place: the head.
        variants: by name.
        thetas: ascending.
        first: the first row that counts for recall; the same for all, or long windows would win.

    Returns:
        By name "density", "recall" and "p10", a number for each θ.
    """
    q = x.q[:, place : place + 1]
    curves = {}
    for name, config in variants.items():
        curve = theta_curve(q, x.k, config, thetas, x.scaling)
        curves[name] = ThetaCurve(curve.thetas, curve.recall[..., first:], curve.density)
    return data_theta_curves(curves)


def show_theta(
    x: Captured, place: int, line: Mapping[str, Sequence[float]], thetas: Sequence[float]
) -> None:
    """What does each θ keep, and what does it find?"""
    figure, ax = style.panels(size=(6.6, 3.4))
    points = zip(thetas, line["recall"], line["p10"], line["density"], strict=True)
    draw_theta(list(points), ax)
    ax.set_ylabel("of this head")
    told = ", ".join(
        f"θ = {theta:g} {r:.3f} and {d:.2f}"
        for theta, r, d in list(zip(thetas, line["recall"], line["density"], strict=True))[::3]
    )
    style.finish(
        figure,
        show_theta.__doc__,
        f"Recall over the rows beyond the first group; {small_print(x, place)}.",
        f"Recall, its 10th percentile and density rise with θ. Recall and density: {told}.",
    )


def at_density(line: Mapping[str, Sequence[float]], density: float) -> float:
    """The recall where a line reaches a density; NaN where it begins above it."""
    import numpy as np

    return float(np.interp(density, line["density"], line["recall"], left=float("nan")))


def variants_table(
    heads: Sequence[tuple[Captured, int, Lines]],
    variants: Mapping[str, AnchorConfig],
    density: float,
) -> str:
    """Recall at one density of each head, with what each variant always keeps and pays to choose.

    Args:
        heads: layer, place of the query head in it, and its `data_variants`.
        variants: by name.
        density: at which recall is read off.
    """
    names = [name_of(x, place) for x, place, _ in heads]
    n = heads[0][0].q.shape[2]
    look = {"first": 12, "other": 18}
    lines = [columns("", *names, "least density", "cost of choosing", **look)]
    for name, config in variants.items():
        found = [at_density(of[name], density) for _, _, of in heads]
        words = ["–" if value != value else f"{value:.3f}" for value in found]
        floor = heads[0][2][name]["density"][0]
        cost = float(identification_cost(config, n, n))
        lines.append(columns(name, *words, f"{floor:.3f}", f"{cost:.4f}", **look))
    return "\n".join(lines)
