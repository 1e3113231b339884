"""The paper's ablations, one panel each: recall over density, each variant with its own mark."""

from anchor_lab.analysis.curves import ThetaCurve
from anchor_lab.drawing.shapes import label
from anchor_lab.drawing.style import ACCENT, INK, STRIPE

# Okabe and Ito's, the method itself first; marks tell curves apart in grey too.
COLOURS = (STRIPE, ACCENT, INK, "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v")


def data_ablation(means, ablation: str) -> dict[str, dict[str, list[float]]]:
    """Mean recall over mean density of each variant.

    Args:
        means: a pandas frame with "ablation" and the columns of `compare.equal.mean_curves`.
        ablation: one of `measure.QUESTIONS`.

    Returns:
        By variant "density", "recall" and "p10", by rising density.
    """
    part = means[means["ablation"] == ablation].sort_values("density", kind="stable")
    names = {"density": "density", "recall": "recall_mean", "p10": "recall_p10"}
    return {
        variant: {name: curve[column].tolist() for name, column in names.items()}
        for variant, curve in part.groupby("method", sort=False)
    }


def data_theta_curves(curves: dict[str, ThetaCurve]) -> dict[str, dict[str, list[float]]]:
    """The same of curves over θ: means over heads, and over rows or their 10th percentile.

    Args:
        curves: what `theta_curve` returned for each variant.
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
    names = [ours, *(name for name in data if name != ours)]
    palette = dict(zip(names, COLOURS, strict=False))
    # The names in the order of the curves.
    named = [] if apart else sorted(data, key=lambda name: _mean_loss(data, name))
    _draw_lines(
        {name: (curve["density"], curve["recall"]) for name, curve in data.items()},
        ax,
        palette=palette,
        markers=dict(zip(names, MARKERS, strict=False)),
        dashes=False,
        size="line",
        sizes={name: 2 if name == ours else 1.3 for name in names},
        named=named,
    )
    for line in ax.lines:  # the method itself above the others
        line.set_zorder(2 + (line.get_color() == palette[ours]))
    for name, curve in data.items() if apart else ():
        at = (curve["density"][0], curve["recall"][0])
        label(ax, name, at, color=palette[name])
    for text in ax.texts if apart else ax.get_legend().get_texts():
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
        (float(configuration.removeprefix("theta=")), *measures)
        for configuration, *measures in rows.itertuples(index=False, name=None)
    )


def draw_theta(points: list[tuple[float, float, float, float]], ax) -> None:
    """What does each θ keep, and what does it find?"""
    thetas, *measures = zip(*points, strict=True)
    names = ("recall, mean", "10th percentile", "density")
    _draw_lines(
        {name: (thetas, values) for name, values in zip(names, measures, strict=True)},
        ax,
        palette=dict(zip(names, (ACCENT, ACCENT, STRIPE), strict=True)),
        markers=dict(zip(names, "oos", strict=True)),
        dashes=dict(zip(names, ("", (3, 1.5), ""), strict=True)),
        named=names,
    )
    ax.set(xlabel="θ", ylabel="mean over heads", ylim=(0, 1.06))


def _draw_lines(lines: dict, ax, *, named, **looks) -> None:
    """Lines {name: (x, y)}; the names in the lower right corner, in the lines' colours."""
    import pandas as pd
    import seaborn as sns

    frame = pd.concat(
        [pd.DataFrame({"x": x, "y": y, "line": name}) for name, (x, y) in lines.items()]
    )
    hues = {"hue": "line", "style": "line", "hue_order": named or list(lines)}
    marks = {"markersize": 4, "markeredgewidth": 0}
    sns.lineplot(frame, x="x", y="y", ax=ax, estimator=None, sort=False, **hues, **marks, **looks)
    if named:
        sns.move_legend(ax, "lower right", title=None, labelcolor="linecolor", handlelength=2.6)
    else:
        ax.get_legend().remove()


def _mean_loss(data: dict, name: str) -> float:
    """How far a curve lies below 1 where all of them have points."""
    import numpy as np

    first = max(curve["density"][0] for curve in data.values())
    last = min(curve["density"][-1] for curve in data.values())
    at = np.linspace(first, last, 20) if first < last else np.array([first])
    loss = 1 - np.interp(at, data[name]["density"], data[name]["recall"]).mean()
    return float(np.nan_to_num(loss, nan=np.inf))
