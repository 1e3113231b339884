"""The paper's ablations, one panel each: recall over density, variants labelled in their order."""

import math

from anchor_ref.figures.style import ACCENT, INK, STRIPE
from anchor_ref.lab.curves import ThetaCurve

# Okabe and Ito's, the method itself first.
COLOURS = (STRIPE, ACCENT, INK, "#009E73", "#CC79A7")


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


def draw_ablation(data: dict[str, dict[str, list[float]]], ax, ours: str) -> None:
    """Which variant has more recall at equal density?"""
    others = iter(COLOURS[1:])
    colours = {name: COLOURS[0] if name == ours else next(others) for name in data}
    for name, curve in data.items():
        ax.plot(
            curve["density"],
            curve["recall"],
            color=colours[name],
            lw=2 if name == ours else 1.3,
            marker="o",
            markersize=3,
            zorder=3 if name == ours else 2,
        )
    # Labels in the order of the curves, where all of them have left room.
    for place, name in enumerate(sorted(data, key=lambda name: _mean_loss(data, name))):
        ax.text(
            0.98,
            0.04 + 0.095 * (len(data) - 1 - place),
            name,
            color=colours[name],
            transform=ax.transAxes,
            ha="right",
            weight="bold" if name == ours else "normal",
        )
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
    named = (("recall, mean", ACCENT, "-"), ("10th percentile", ACCENT, "--"))
    named = (*named, ("density", STRIPE, "-"))
    for place, ((name, colour, dashes), line) in enumerate(zip(named, lines, strict=True)):
        ax.plot(thetas, line, color=colour, ls=dashes, marker="o", markersize=3)
        height = 0.04 + 0.095 * (len(named) - 1 - place)
        shown = f"{name}, dashed" if dashes == "--" else name
        ax.text(0.98, height, shown, color=colour, transform=ax.transAxes, ha="right")
    ax.set(xlabel="θ", ylabel="mean over heads", ylim=(0, 1.06))


def _mean_loss(data: dict, name: str) -> float:
    """How far a curve lies below 1 where all of them have points."""
    import numpy as np

    first = max(curve["density"][0] for curve in data.values())
    last = min(curve["density"][-1] for curve in data.values())
    at = np.linspace(first, last, 20) if first < last else np.array([first])
    curve = data[name]
    loss = 1 - float(np.interp(at, curve["density"], curve["recall"]).mean())
    return math.inf if math.isnan(loss) else loss
