"""The paper's ablations, one panel each: recall over density, each variant with its own mark."""

import math

from anchor_lab.analysis.curves import ThetaCurve
from anchor_lab.drawing.style import ACCENT, INK, STRIPE

# Okabe and Ito's, the method itself first.
COLOURS = (STRIPE, ACCENT, INK, "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v")  # curves are told apart in grey too


def data_ablation(means, ablation: str) -> dict[str, dict[str, list[float]]]:
    """Mean recall over mean density of each variant.

    Args:
        means: a pandas frame with "ablation" and the columns of `lab.equal.mean_curves`.
        ablation: one of `lab.ablations.QUESTIONS`.

    Returns:
        By variant "density", "recall" and "p10", by rising density.
    """
    part = means[means["ablation"] == ablation]
    return {
        variant: {
            "density": curve["density"].tolist(),
            "recall": curve["recall_mean"].tolist(),
            "p10": curve["recall_p10"].tolist(),
        }
        for variant, curve in part.sort_values("density", kind="stable").groupby(
            "method", sort=False
        )
    }


def data_theta_curves(curves: dict[str, ThetaCurve]) -> dict[str, dict[str, list[float]]]:
    """The same of curves over θ: means over heads, and over rows or their 10th percentile.

    Args:
        curves: what `lab.theta_curve` returned for each variant.
    """
    return {
        name: {
            "density": curve.density.mean((1, 2)).tolist(),
            "recall": curve.recall.double().mean((1, 2, 3)).tolist(),
            "p10": curve.recall.double().quantile(0.1, -1).mean((1, 2)).tolist(),
        }
        for name, curve in curves.items()
    }


def draw_ablation(
    data: dict[str, dict[str, list[float]]], ax, ours: str, *, apart: bool = False
) -> None:
    """Which variant has more recall at equal density?

    Args:
        data: from `data_ablation` or `data_theta_curves`.
        ax: where to draw.
        ours: the variant that stands out.
        apart: the curves begin far from one another, so that names stand where they begin.
    """
    others = iter(zip(COLOURS[1:], MARKERS[1:], strict=True))
    for name, curve in data.items():
        colour, marker = (COLOURS[0], MARKERS[0]) if name == ours else next(others)
        ax.plot(
            curve["density"],
            curve["recall"],
            color=colour,
            label=name,
            lw=2 if name == ours else 1.3,
            marker=marker,
            markersize=4,
            zorder=3 if name == ours else 2,
        )
        if apart:
            ax.annotate(
                name,
                (curve["density"][0], curve["recall"][0]),
                (7, -3),
                textcoords="offset points",
                color=colour,
                weight="bold" if name == ours else "normal",
            )
    if not apart:  # in the order of the curves, where all of them have left room
        lines = sorted(ax.lines, key=lambda line: _mean_loss(data, line.get_label()))
        for text in _name_lines(ax, lines):
            text.set_weight("bold" if text.get_text() == ours else "normal")
    ax.set(xlabel="density", ylabel="recall")


def data_theta(means) -> list[tuple[float, float, float, float]]:
    """(θ, recall, its 10th percentile, density) of the method itself, by rising θ.

    Args:
        means: as in `data_ablation`.
    """
    part = means[means["ablation"] == "theta"]
    rows = part[["configuration", "recall_mean", "recall_p10", "density"]]
    return sorted(
        (float(label.removeprefix("theta=")), *measures)
        for label, *measures in rows.itertuples(index=False, name=None)
    )


def draw_theta(points: list[tuple[float, float, float, float]], ax) -> None:
    """What does each θ keep, and what does it find?"""
    thetas, *lines = zip(*points, strict=True)
    looks = (
        {"label": "recall, mean", "color": ACCENT, "marker": "o"},
        {"label": "10th percentile", "color": ACCENT, "marker": "o", "ls": "--"},
        {"label": "density", "color": STRIPE, "marker": "s"},
    )
    for look, line in zip(looks, lines, strict=True):
        ax.plot(thetas, line, markersize=4, **look)
    _name_lines(ax, ax.lines)
    ax.set(xlabel="θ", ylabel="mean over heads", ylim=(0, 1.06))


def _name_lines(ax, lines) -> list:
    """Names in the lower right corner, in the colours of the lines and beside their marks."""
    legend = ax.legend(
        handles=list(lines), loc="lower right", labelcolor="linecolor", handlelength=2.6
    )
    return legend.get_texts()


def _mean_loss(data: dict, name: str) -> float:
    """How far a curve lies below 1 where all of them have points."""
    import numpy as np

    first = max(curve["density"][0] for curve in data.values())
    last = min(curve["density"][-1] for curve in data.values())
    at = np.linspace(first, last, 20) if first < last else np.array([first])
    curve = data[name]
    loss = 1 - float(np.interp(at, curve["density"], curve["recall"]).mean())
    return math.inf if math.isnan(loss) else loss
