"""Who is ahead at equal budget: mean curves of methods, read off at the same place."""

from anchor_lab.experiments.compare.measure import MEASURES

BUDGETS = ("density", "executed_density", "total_cost")


def mean_curves(frame):
    """Means over heads: one row for each text, method and configuration.

    One configuration for all heads, as it would be used: both recall and budget are means over
    heads at the same setting.

    Args:
        frame: pandas frame with `measure.COLUMNS`.

    Returns:
        A frame with "text", "method", "configuration", "heads" (how many) and the mean of each
        measure, each method's rows by rising density.

    Raises:
        ValueError: the configurations were not all measured on the same heads: means over others
            would compare heads, not methods.
    """
    groups = frame.groupby(["text", "method", "configuration"], sort=False)
    heads = {key: set(zip(part["layer"], part["head"], strict=True)) for key, part in groups}
    for (text, method, configuration), there in heads.items():
        elsewhere = set().union(*(found for key, found in heads.items() if key[0] == text))
        if lacking := sorted(elsewhere - there):
            raise ValueError(
                "frame must have the same heads for every configuration, but that of text "
                f"{text!r} lacks (layer, head) {lacking[0]} for {method} with {configuration}"
            )
    # Tables of before rows beyond the first group were looked at have no such column.
    means = groups[[name for name in MEASURES if name in frame]].mean()
    means.insert(0, "heads", groups.size())
    return means.reset_index().sort_values(
        ["text", "method", "density"], kind="stable", ignore_index=True
    )


def at_equal(curves, budget: str, level: float, measure: str = "recall_mean"):
    """Each method's measure where its curve crosses a budget.

    Between two configurations the curve is a straight line: what one gets who uses the one for
    some heads and the other for the rest.

    Args:
        curves: what `mean_curves` returned, of one text.
        budget: one of `BUDGETS`.
        level: of the budget, above 0.
        measure: a column that does not fall as the budget grows.

    Returns:
        A pandas series by method, the largest first; NaN for a method whose sparsest
        configuration takes more, and the densest's value for one that cannot take as much.

    Raises:
        ValueError: `budget` is none of `BUDGETS`, `level` is not positive, or there are several
            texts.
    """
    if not level > 0:
        raise ValueError(f"level must be above 0, got {level}")
    found = _cross(curves, budget, budget, measure, level, left=float("nan"), right=None)
    return found.sort_values(ascending=False, kind="stable")


def budget_for(curves, budget: str, recall: float):
    """The budget at which each method's curve reaches a mean recall.

    Args:
        curves, budget: as in `at_equal`, and the line between two configurations too.
        recall: in (0, 1].

    Returns:
        A pandas series by method, the smallest first; NaN where no configuration has that recall,
        and the sparsest's budget where all have more.

    Raises:
        ValueError: `recall` is outside its range, or see `at_equal`.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be in (0, 1], got {recall}")
    found = _cross(curves, budget, "recall_mean", budget, recall, left=None, right=float("nan"))
    return found.sort_values(kind="stable")


def _cross(curves, budget: str, x: str, y: str, level: float, left, right):
    import numpy as np

    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {', '.join(BUDGETS)}, got {budget!r}")
    if curves["text"].nunique() > 1:
        raise ValueError(f"curves must be of one text, got {', '.join(curves['text'].unique())}")

    def read_off(curve) -> float:
        # Several configurations may cost the same: the one that finds most speaks for them.
        best = curve.sort_values([budget, "recall_mean"], kind="stable")
        best = best.drop_duplicates(budget, keep="last").sort_values(x, kind="stable")
        best = best.drop_duplicates(x)  # of equal recall the cheapest
        return float(np.interp(level, best[x], best[y], left=left, right=right))

    columns = list(dict.fromkeys(["recall_mean", budget, x, y]))
    return curves.groupby("method", sort=False)[columns].apply(read_off)
