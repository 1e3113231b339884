"""Figures of the comparison: their numbers, and that nothing asked for is missing."""

import math

import pandas as pd
import pytest
import torch

from anchor_lab.experiments.compare import figure as figures
from anchor_lab.experiments.compare.equal import mean_curves
from anchor_lab.experiments.compare.measure import MEASURES
from anchor_lab.methods import METHODS, TokenTopK


def curves(*methods):
    """Straight lines of two points: density 0.2 to 0.8, later methods start later."""
    rows = [
        {
            "text": "document",
            "method": method,
            "configuration": str(density),
            "layer": 0,
            "head": 0,
            "length": 100,
            **dict.fromkeys(MEASURES, density),
            "recall_mean": 1 - (1 - density) / 2 - place / 100,
            "recall_p10": density / 2,
            "executed_density": density + 0.1,
            "total_cost": density + 0.4,
        }
        for place, method in enumerate(methods)
        for density in (0.2 + place / 50, 0.8)
    ]
    return mean_curves(pd.DataFrame(rows))


def test_curves_come_in_the_order_of_the_methods_by_rising_budget():
    data = figures.data_curves(curves("AnchorAttention", "StreamingLLM"))
    assert list(data) == ["StreamingLLM", "AnchorAttention"]
    assert data["AnchorAttention"]["budget"] == [0.2, 0.8]
    assert data["AnchorAttention"]["mean"] == pytest.approx([0.6, 0.9])
    assert data["AnchorAttention"]["p10"] == pytest.approx([0.1, 0.4])
    assert figures.data_curves(curves("XAttention"), "total_cost")["XAttention"][
        "budget"
    ] == pytest.approx([0.6, 1.2])


def test_budgets_are_read_off_and_what_is_out_of_reach_is_nan():
    data = figures.data_budgets(curves("XAttention", "Dense", "TokenTopK"), 0.5)
    assert list(data) == ["density", "executed_density", "total_cost"]
    assert data["density"]["XAttention"] == pytest.approx((0.75, 0.25))
    assert data["executed_density"]["XAttention"] == pytest.approx((0.7, 0.2))
    assert math.isnan(data["total_cost"]["XAttention"][0])
    assert list(data["density"]) == ["XAttention", "Dense", "TokenTopK"]  # best first


def test_every_method_has_the_colour_of_its_kind():
    colours = {method: figures.colour_of(method) for method in METHODS}
    assert set(figures.ORACLES) | set(figures.VARIANTS) <= set(METHODS)
    assert colours["AnchorAttention"] == colours["AnchorBlocks"] != colours["XAttention"]
    assert colours["StripeOracle"] not in (colours["XAttention"], colours["AnchorBlocks"])


@pytest.mark.parametrize("count", [1, 7, len(METHODS)])
def test_a_page_has_a_panel_for_each_method_and_each_budget(count):
    from matplotlib import pyplot as plt

    names = list(METHODS)[:count]
    figure = figures.comparison_figure(curves(*names), 0.5, "made up")
    titles = [ax.get_title(loc="left") for ax in figure.get_axes()]
    assert [title for title in titles if title in METHODS] == names
    assert sum(title.startswith("At ") for title in titles) == 3
    figure.draw_without_rendering()
    plt.close(figure)


def test_a_dot_is_drawn_only_where_the_budget_is_in_reach():
    from matplotlib import pyplot as plt

    _, ax = plt.subplots()
    figures.draw_budgets({"Dense": (math.nan, math.nan), "XAttention": (0.9, 0.7)}, ax)
    dots = {tuple(dot) for line in ax.lines for dot in line.get_xydata() if not math.isnan(dot[0])}
    assert dots == {(0.7, 1.0), (0.9, 1.0)}
    assert [text.get_text() for text in ax.get_yticklabels()] == ["Dense", "XAttention"]
    assert [text.get_text() for text in ax.texts] == ["out of reach"]
    plt.close("all")


def test_a_method_of_one_configuration_has_no_curve_but_a_place_among_the_budgets():
    from matplotlib import pyplot as plt

    one = curves("Dense").head(1)
    titles = [ax.get_title(loc="left") for ax in figures.comparison_figure(one, 0.5, "").axes]
    assert "Dense" not in titles
    assert "At density 0.5" in titles
    plt.close("all")


def test_a_kept_map_is_the_share_of_each_cells_pairs():
    random = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 50, 8, generator=random)
    selection = TokenTopK(3).select(q, k)
    kept = figures.data_kept(selection, 0, pixels=16)  # cells of 4
    mask = torch.zeros(52, 52)
    mask[:50, :50] = selection.to_mask()[0, 0]
    expected = mask.unflatten(0, (13, 4)).unflatten(2, (13, 4)).mean((1, 3))
    torch.testing.assert_close(kept, expected)


def test_later_keys_are_not_drawn_as_dropped():
    from matplotlib import pyplot as plt

    _, ax = plt.subplots()
    figures.draw_kept(torch.ones(3, 3).tril(), ax)
    drawn = ax.images[0].get_array()
    assert drawn.mask.tolist() == [[False, True, True], [False, False, True], [False] * 3]
    plt.close("all")
