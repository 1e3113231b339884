"""Methods side by side: recall against what is spent, and who is ahead at one budget."""

from math import ceil, isnan

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing.style import ACCENT, DIM, INK, MAGNITUDE, STRIPE, caption, use_style
from anchor_lab.experiments.compare.equal import BUDGETS, at_equal
from anchor_lab.methods import METHODS, Selection

FAINT = "#CFCFCF"
OURS = "AnchorAttention"
ORACLES = (
    "TokenTopK",
    "TokenTopCdf",
    "DifferenceOracle",
    "BlockTopK",
    "BlockTopCdf",
    "StripeOracle",
    "HeadAveragedTopK",
)
VARIANTS = (
    "AnchorBlocks",
    "PartialAnchor",
    "ConstantThreshold",
    "PooledMaximum",
    "PooledTopK",
    "PooledTopCdf",
)
LABELS = {
    "density": "density",
    "executed_density": "executed density",
    "total_cost": "total cost: executed + identification",
}
NAMES = {budget: label.split(":")[0] for budget, label in LABELS.items()}
COLUMNS = 5  # panels in a row
KEY = """dots: configurations, mean over heads
band: down to the 10th percentile of rows
grey: the other methods
dotted: AnchorAttention

blue: published methods
red: AnchorAttention and its variants
black: oracles, which save nothing"""


def colour_of(method: str) -> str:
    """AnchorAttention and its variants, oracles (which save nothing), all others."""
    if method == OURS or method in VARIANTS:
        return STRIPE
    return INK if method in ORACLES else ACCENT


def _place(method: str) -> int:
    names = list(METHODS)
    return names.index(method) if method in names else len(names)


def data_curves(
    curves, budget: str = "density", recall: str = "recall"
) -> dict[str, dict[str, list[float]]]:
    """Each method's mean recall and its 10th percentile over what it spends.

    Args:
        curves: what `mean_curves` returned, of one text.
        budget: one of `BUDGETS`.
        recall: "recall" of all rows, or "recall_beyond" the first group.

    Returns:
        By method, in the order of `METHODS`, "budget", "mean" and "p10", by rising budget.
    """
    found = {}
    for method, part in sorted(curves.groupby("method"), key=lambda pair: _place(pair[0])):
        part = part.sort_values([budget, "recall_mean"], kind="stable")
        found[method] = {
            "budget": part[budget].tolist(),
            "mean": part[f"{recall}_mean"].tolist(),
            "p10": part[f"{recall}_p10"].tolist(),
        }
    return found


def draw_method(data: dict[str, dict[str, list[float]]], method: str, ax) -> None:
    """How much recall does this method have at each budget, and the others?"""
    for name, curve in data.items():
        ax.plot(curve["budget"], curve["mean"], color=FAINT, lw=0.8, zorder=1)
        if name == OURS != method:
            ax.plot(curve["budget"], curve["mean"], color=STRIPE, lw=1, ls=":", zorder=2)
    curve, colour = data[method], colour_of(method)
    ax.fill_between(
        curve["budget"], curve["p10"], curve["mean"], color=colour, alpha=0.16, lw=0, zorder=2
    )
    ax.plot(
        curve["budget"], curve["mean"], color=colour, lw=1.8, marker="o", markersize=3, zorder=3
    )
    ax.set_title(method, color=colour, fontsize=9)


def data_kept(selection: Selection, head: int, pixels: int = 256) -> Float[Tensor, "C C"]:
    """Share of the pairs of each cell that a head keeps, later keys counted as not kept.

    Args:
        selection: what a method keeps; its first prompt is shown.
        head: query head.
        pixels: cells to a side, at most.

    Returns:
        Shares in [0, 1]; a ragged last cell is divided by a whole one's pairs.
    """
    cell = -(-selection.shape[2] // pixels)
    cells = -(-selection.shape[2] // cell)
    kept = torch.zeros(cells, cells)
    for start in range(cells):
        rows = range(start * cell, min((start + 1) * cell, selection.shape[2]))
        mask = selection.rows(rows)[0, head].float()
        padded = torch.nn.functional.pad(mask, (0, cells * cell - rows.stop))
        kept[start] = padded.unflatten(1, (cells, cell)).sum((0, 2)) / cell**2
    return kept


def draw_kept(kept: Float[Tensor, "C C"], ax) -> None:
    """Which pairs does this method keep?"""
    later = torch.ones_like(kept).triu(1).bool()
    ax.imshow(
        kept.masked_fill(later, torch.nan).numpy(),
        cmap=MAGNITUDE,
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    ax.set(xlabel="key", ylabel="query", xticks=[], yticks=[])


def data_budgets(
    curves, level: float, recall: str = "recall"
) -> dict[str, dict[str, tuple[float, float]]]:
    """Each method's mean recall and 10th percentile at one level of each budget.

    Args:
        curves: as in `data_curves`.
        level: share of dense attention.
        recall: as in `data_curves`.

    Returns:
        {budget: {method: (mean, p10)}}, NaN where the method cannot spend so little; all in the
        order of the mean recall at equal density.
    """
    order = list(at_equal(curves, "density", level, f"{recall}_mean").index)
    found = {}
    for budget in BUDGETS:
        mean = at_equal(curves, budget, level, f"{recall}_mean")
        p10 = at_equal(curves, budget, level, f"{recall}_p10")
        found[budget] = {name: (float(mean[name]), float(p10[name])) for name in order}
    return found


def draw_budgets(points: dict[str, tuple[float, float]], ax) -> None:
    """Who has most recall for the same budget?"""
    import seaborn as sns

    names, (means, p10s) = list(points), zip(*points.values(), strict=True)
    colours = [colour_of(name) for name in names]
    one = {"y": names, "order": names, "hue": names, "palette": colours, "errorbar": None}
    look = {"linestyle": "none", "legend": False, "zorder": 3, "markeredgewidth": 1}
    sns.pointplot(x=p10s, markersize=4, markerfacecolor="white", ax=ax, **one, **look)
    sns.pointplot(x=means, markersize=5, ax=ax, **one, **look)
    ax.hlines(range(len(names)), p10s, means, colours, lw=1, alpha=0.5)
    for place, mean in enumerate(means):
        if isnan(mean):
            ax.text(
                0.02,
                place,
                "out of reach",
                color=DIM,
                va="center",
                size=8.5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                transform=ax.get_yaxis_transform(),
            )
    ax.set(ylabel="", ylim=(len(names) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="#EEEEEE", zorder=0)
    ax.margins(x=0.04)


def comparison_figure(curves, level: float, note: str, recall: str = "recall"):
    """All methods on one page: a panel each, then the budgets.

    Args:
        curves: as in `data_curves`.
        level: of each budget, share of dense attention.
        note: small print: what was compared, on how many tokens and heads.
        recall: as in `data_curves`.

    Returns:
        A matplotlib figure.
    """
    from matplotlib import pyplot as plt

    use_style()
    data = data_curves(curves, recall=recall)
    panels = [name for name, curve in data.items() if len(curve["budget"]) > 1]
    high = 2.1 * ceil(len(panels) / COLUMNS) + 0.4
    low = max(2.2, 1.2 + 0.25 * len(data))
    if panels:
        figure = plt.figure(figsize=(12, high + low))
        above, below = figure.subfigures(2, 1, height_ratios=[high, low])
        _draw_panels(data, panels, above)
    else:
        figure = below = plt.figure(figsize=(12, low))
    points = data_budgets(curves, level, recall)
    for ax, budget in zip(below.subplots(1, 3, sharex=True, sharey=True), BUDGETS, strict=True):
        draw_budgets(points[budget], ax)
        ax.set_title(f"At {LABELS[budget]} {level:g}", fontsize=9)
        ax.set_xlabel("recall: mean (full), 10th percentile (open)")
    caption(figure, note)
    return figure


def _draw_panels(data: dict, methods: list[str], figure) -> None:
    rows = ceil(len(methods) / COLUMNS)
    axes = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for ax, method in zip(axes.flat, methods, strict=False):
        draw_method(data, method, ax)
    for ax in axes.flat[max(0, len(methods) - COLUMNS) : len(methods)]:
        ax.tick_params(labelbottom=True)  # also where the row below is not full
    for ax in axes.flat[len(methods) :]:
        ax.set_axis_off()
    if len(methods) < axes.size:
        axes.flat[-1].text(0, 0.5, KEY, va="center", size=8, linespacing=1.5)
    figure.supylabel("recall, mean over heads", fontsize=9)
    figure.supxlabel("density, mean over heads", fontsize=9)
