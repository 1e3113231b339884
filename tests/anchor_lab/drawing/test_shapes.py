"""What figures share puts its words and points where the data are."""

import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from anchor_lab.drawing import shapes, style


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    figure.canvas.draw()
    plt.close(figure)


def test_a_curve_is_named_at_its_last_point(ax):
    shapes.curve(
        ax, [1, 2, 4], torch.tensor([3.0, 5.0, 9.0]), "recall", style.STRIPE, weight="bold"
    )
    (name,), (line,) = ax.texts, ax.lines
    assert name.xy == (4, 9)
    assert (name.get_text(), name.get_weight()) == ("recall", "bold")
    assert name.get_color() == line.get_color() == style.STRIPE


def test_chosen_points_are_drawn_above_the_others(ax):
    chosen = torch.tensor([True, False, True])
    shapes.mark(ax, torch.arange(3), torch.tensor([5.0, 6.0, 7.0]), chosen, sizes=(1, 9))
    others, marked = ax.collections
    assert others.get_offsets().tolist() == [[1, 6]]
    assert marked.get_offsets().tolist() == [[0, 5], [2, 7]]
    assert to_hex(marked.get_facecolor()[0]).upper() == style.STRIPE
    assert marked.get_sizes().tolist() == [9]


def test_a_threshold_is_a_line_with_its_value(ax):
    shapes.threshold(ax, 7.5)
    assert [text.get_text() for text in ax.texts] == ["θ = 7.5"]
    assert list(ax.lines[0].get_ydata()) == [7.5, 7.5]


def test_logarithmic_axes_have_the_named_ticks_alone(ax):
    ax.set(xscale="log", xlim=(1, 100))
    shapes.name_ticks(ax.xaxis, [1, 4, 64], ["1", "4", "64"])
    assert ax.get_xticks().tolist() == [1, 4, 64]
    assert len(ax.get_xticks(minor=True)) == 0


def test_bars_say_their_heights_with_a_minus_sign(ax):
    shapes.bars(ax, [0, 1], [2.0, -3.0], style.ACCENT, "{:.1f}".format)
    assert [text.get_text() for text in ax.texts] == ["2.0", "−3.0"]
