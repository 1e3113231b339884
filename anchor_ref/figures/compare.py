"""Methods side by side: recall against what is spent, and who is ahead at one budget."""

from math import ceil

from anchor_ref.baselines import METHODS
from anchor_ref.figures.style import ACCENT, INK, STRIPE, caption, use_style
from anchor_ref.lab.equal import BUDGETS, at_equal

FAINT = "#CFCFCF"
OURS = "AnchorAttention"
ORACLES = (
    "TokenTopK",
    "TokenTopCdf",
    "DifferenceOracle",
    "BlockTopK",
    "BlockTopCdf",
    "StripeOracle",
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


def data_curves(curves, budget: str = "density") -> dict[str, dict[str, list[float]]]:
    """Each method's mean recall and its 10th percentile over what it spends.

    Args:
        curves: what `lab.equal.mean_curves` returned, of one text.
        budget: one of `lab.equal.BUDGETS`.

    Returns:
        By method, in the order of `METHODS`, "budget", "mean" and "p10", by rising budget.
    """
    found = {}
    for method, part in sorted(curves.groupby("method"), key=lambda pair: _place(pair[0])):
        part = part.sort_values([budget, "recall_mean"], kind="stable")
        found[method] = {
            "budget": part[budget].tolist(),
            "mean": part["recall_mean"].tolist(),
            "p10": part["recall_p10"].tolist(),
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


def data_budgets(curves, level: float) -> dict[str, dict[str, tuple[float, float]]]:
    """Each method's mean recall and 10th percentile at one level of each budget.

    Args:
        curves: as in `data_curves`.
        level: share of dense attention.

    Returns:
        {budget: {method: (mean, p10)}}, NaN where the method cannot spend so little; all in the
        order of the mean recall at equal density.
    """
    order = list(at_equal(curves, "density", level).index)
    found = {}
    for budget in BUDGETS:
        mean = at_equal(curves, budget, level)
        p10 = at_equal(curves, budget, level, "recall_p10")
        found[budget] = {name: (float(mean[name]), float(p10[name])) for name in order}
    return found


def draw_budgets(points: dict[str, tuple[float, float]], ax) -> None:
    """Who has most recall for the same budget?"""
    drawn = [p10 for mean, p10 in points.values() if mean == mean]
    least = min(drawn, default=0.0)
    for place, (method, (mean, p10)) in enumerate(points.items()):
        colour = colour_of(method)
        if mean != mean:  # NaN
            ax.text(least, place, "out of reach", color="#777777", va="center", size=7.5)
            continue
        ax.plot([p10, mean], [place, place], color=colour, lw=1, alpha=0.5, zorder=1)
        ax.scatter(p10, place, s=16, facecolor="white", edgecolor=colour, zorder=2)
        ax.scatter(mean, place, s=26, color=colour, zorder=3)
    ax.set(yticks=range(len(points)), yticklabels=list(points), ylim=(len(points) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="#EEEEEE", zorder=0)
    ax.set_xlim(right=1 + (1 - least) * 0.04)


def comparison_figure(curves, level: float, note: str):
    """All methods on one page: a panel each, then the budgets.

    Args:
        curves: as in `data_curves`.
        level: of each budget, share of dense attention.
        note: small print: model, text, heads.

    Returns:
        A matplotlib figure.
    """
    from matplotlib import pyplot as plt

    use_style()
    data = data_curves(curves)
    methods = [name for name, curve in data.items() if len(curve["budget"]) > 1]
    rows = ceil(len(methods) / COLUMNS)
    low = 0.16 + 0.25 * len(data)
    figure = plt.figure(figsize=(12, 2.1 * rows + low + 1.2))
    above, below = figure.subfigures(2, 1, height_ratios=[2.1 * rows + 0.3, low + 0.9])
    axes = above.subplots(max(rows, 1), COLUMNS, sharex=True, sharey=True, squeeze=False)
    for ax, method in zip(axes.flat, methods, strict=False):
        draw_method(data, method, ax)
    for ax in axes.flat[max(0, len(methods) - COLUMNS) : len(methods)]:
        ax.tick_params(labelbottom=True)  # also where the row below is not full
    for ax in axes.flat[len(methods) :]:
        ax.set_axis_off()
    if len(methods) < axes.size:
        axes.flat[-1].text(0, 0.5, KEY, va="center", size=8, linespacing=1.5)
    above.supylabel("recall, mean over heads", fontsize=9)
    above.supxlabel("density, mean over heads", fontsize=9)
    points = data_budgets(curves, level)
    for ax, budget in zip(below.subplots(1, 3, sharey=True), BUDGETS, strict=True):
        draw_budgets(points[budget], ax)
        ax.set_title(f"At {LABELS[budget]} {level:g}", fontsize=9)
        ax.set_xlabel("recall: mean (full), 10th percentile (open)")
    caption(figure, note)
    return figure
