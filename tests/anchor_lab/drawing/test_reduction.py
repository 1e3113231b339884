"""What pictures show of stripes, on maps made for it."""

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.drawing import reduction, style

N, CELLS = 512, 64


@pytest.fixture(scope="module")
def striped():
    """A map with stripes of 3 % on an even ground, and their keys, no two in one cell."""
    places = torch.arange(10) * 47 + 30
    weights = torch.ones(N, N).tril()
    weights /= weights.sum(-1, keepdim=True)
    weights[:, places] = 0.03
    return weights.tril(), places


def test_pooling_takes_the_largest_or_the_mean_of_each_square():
    weights = torch.arange(16.0).view(4, 4)
    assert reduction.pool(weights, 2, "max").tolist() == [[5, 7], [13, 15]]
    assert reduction.pool(weights, 2, "mean").tolist() == [[2.5, 4.5], [10.5, 12.5]]


@pytest.mark.parametrize(
    ("rgb", "expected"), [((0, 0, 0), 0.0), ((255, 255, 255), 100.0), ((119, 119, 119), 50.03)]
)
def test_lightness_is_that_of_cielab(rgb, expected):
    assert float(reduction.lightness(torch.tensor(rgb))) == pytest.approx(expected, abs=0.01)


def test_a_picture_is_the_colours_of_imshow():
    rgb = reduction.picture(torch.tensor([[0.0, 1.0]]), 60, cmap="gray", aspect="auto")
    assert rgb.shape == (60, 60, 3)
    assert rgb[30, 5].tolist() == [0, 0, 0]
    assert rgb[30, 55].tolist() == [255, 255, 255]


def test_a_column_is_seen_where_it_is_lighter_and_only_there():
    rgb = torch.full((200, 200, 3), 100)
    rgb[:, 120] = 110
    found = reduction.data_seen(rgb, torch.tensor([60, 120, 160]), 200)
    assert found["seen"].tolist() == [False, True, False]
    darker = reduction.data_seen(200 - rgb, torch.tensor([120]), 200)
    assert not darker["seen"].any()


def test_plain_imshow_hides_stripes_that_max_pooling_shows(striped):
    weights, places = striped
    plain = reduction.picture(weights, 128)
    assert not reduction.data_seen(plain, places, N)["seen"].any()
    largest = reduction.pool(weights, CELLS, "max").clamp(min=1e-5).log10()
    pooled = reduction.picture(largest, 128, vmin=-5, vmax=0, interpolation="nearest")
    assert reduction.data_seen(pooled, places, N)["seen"].all()


def test_every_figure_draws(striped):
    weights, _ = striped
    style.use_style()
    figure, ax = plt.subplots()
    reduction.draw_pictures({"a": reduction.picture(weights, 50)}, [ax])
    figure.canvas.draw()
    plt.close(figure)
