"""Figures of the ablations: their numbers, and the variant that is ours stands out."""

import pandas as pd
import pytest
import torch

from anchor_lab.analysis.curves import ThetaCurve
from anchor_lab.drawing.style import STRIPE
from anchor_lab.experiments.ablations import figure as figures

MEANS = pd.DataFrame(
    {
        "ablation": ablation,
        "method": method,
        "configuration": f"theta={theta}",
        "density": theta / 20,
        "recall_mean": 1 - (1 - theta / 20) ** 2 - loss,
        "recall_p10": theta / 30,
    }
    for ablation, method, loss in (
        ("granularity", "blocks", 0.1),
        ("granularity", "stripes", 0.0),
        ("theta", "AnchorAttention", 0.0),
    )
    for theta in (17, 9, 1)
)


def drawn(ax):
    """The curves; seaborn's legend is made of lines without points."""
    return [line for line in ax.lines if len(line.get_xdata())]


def test_each_variant_is_a_curve_by_rising_density():
    data = figures.data_ablation(MEANS, "granularity")
    assert set(data) == {"blocks", "stripes"}
    assert data["stripes"]["density"] == [0.05, 0.45, 0.85]
    assert data["blocks"]["recall"][0] == pytest.approx(data["stripes"]["recall"][0] - 0.1)
    assert data["blocks"]["p10"] == pytest.approx([1 / 30, 0.3, 17 / 30])


def test_thetas_rise_and_are_numbers():
    points = figures.data_theta(MEANS)
    assert [theta for theta, *_ in points] == [1.0, 9.0, 17.0]
    assert points[1][1:] == pytest.approx((1 - 0.55**2, 0.3, 0.45))


def test_curves_over_theta_are_means_over_heads():
    recall = torch.arange(40.0).reshape(2, 1, 2, 10)
    density = torch.tensor([[[0.1, 0.3]], [[0.5, 0.7]]], dtype=torch.float64)
    found = figures.data_theta_curves({"a": ThetaCurve((1.0, 2.0), recall, density)})["a"]
    assert found["density"] == pytest.approx([0.2, 0.6])
    assert found["recall"] == pytest.approx([9.5, 29.5])
    assert found["p10"] == pytest.approx([5.9, 25.9])


def test_the_better_curve_is_named_above_and_ours_in_its_colour():
    from matplotlib import pyplot as plt

    _, ax = plt.subplots()
    figures.draw_ablation(figures.data_ablation(MEANS, "granularity"), ax, "stripes")
    names = ax.get_legend().get_texts()
    assert [text.get_text() for text in names] == ["stripes", "blocks"]
    assert names[0].get_color() == STRIPE != names[1].get_color()
    assert names[0].get_weight() == "bold" != names[1].get_weight()
    assert len({line.get_marker() for line in drawn(ax)}) == 2  # told apart without colours
    plt.close("all")


def test_curves_that_begin_apart_are_named_where_they_begin():
    from matplotlib import pyplot as plt

    _, ax = plt.subplots()
    data = figures.data_ablation(MEANS, "granularity")
    figures.draw_ablation(data, ax, "stripes", apart=True)
    assert ax.get_legend() is None
    places = {label.get_text(): label.xy for label in ax.texts}
    assert places == {
        name: (curve["density"][0], curve["recall"][0]) for name, curve in data.items()
    }
    plt.close("all")


def test_theta_is_drawn_with_a_name_and_a_look_for_each_line():
    from matplotlib import pyplot as plt

    _, ax = plt.subplots()
    figures.draw_theta(figures.data_theta(MEANS), ax)
    names = ax.get_legend().get_texts()
    assert [text.get_text() for text in names] == ["recall, mean", "10th percentile", "density"]
    assert [text.get_color() for text in names] == [line.get_color() for line in drawn(ax)]
    assert len({(line.get_marker(), line.get_linestyle()) for line in drawn(ax)}) == 3
    assert ax.get_xlabel() == "θ"
    plt.close("all")
