"""Numbers behind the figures of notebook 03, against plain figures."""

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.drawing import softmax as figures
from anchor_lab.drawing import style


@pytest.fixture(scope="module")
def scores():
    return 4 * torch.randn(7, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_parts_measured_from_one_maximum_add_up_to_the_whole_sum(scores):
    row, words = scores[0, :6], list("abcdef")
    data = figures.data_parts(row, {"x": [0, 4, 5], "y": [1, 2, 3]}, words)
    assert data["parts"]["x"][0] == ["a", "e", "f"]
    for keys, (_, own, largest, _) in zip(
        ([0, 4, 5], [1, 2, 3]), data["parts"].values(), strict=True
    ):
        assert largest == row[keys].max()
        torch.testing.assert_close(own, (row[keys] - row[keys].max()).exp())
    total = sum(common.sum() for *_, common in data["parts"].values())
    torch.testing.assert_close(total, (row - row.max()).exp().sum())


def test_a_visit_knows_the_maximum_and_the_mass_of_what_was_seen(scores):
    row = scores[0]
    order = [torch.arange(90, 96), torch.arange(0, 40), torch.arange(40, 90)]
    data = figures.data_visit(row, {"some": order})["some"]
    assert data["seen"].tolist() == [6, 46, 96]
    weights = row.softmax(0)
    expected = [weights[90:].sum(), weights[90:].sum() + weights[:40].sum(), weights.sum()]
    torch.testing.assert_close(data["mass"], torch.stack(expected))
    assert data["max"].tolist() == [row[90:].max(), max(row[90:].max(), row[:40].max()), row.max()]


@pytest.mark.parametrize("tile", [1, 5, 96, 200])
def test_softmax_in_tiles_is_softmax(scores, tile):
    before, v = scores.clone(), scores[:, :3].new_ones(96, 3).cumsum(0)
    out = figures.in_tiles(scores, v, tile)
    torch.testing.assert_close(out, scores.softmax(-1) @ v, rtol=1e-12, atol=1e-12)
    assert torch.equal(scores, before)


def test_errors_of_tiles_are_those_of_float32(scores):
    data = figures.data_tiles(scores, scores.T[:, :3].contiguous(), [1, 96])
    assert data["tile"] == [1, 96]
    assert all(2.0**-32 < error < 2.0**-18 for error in data["error"])


def test_every_figure_draws(scores):
    style.use_style()
    figure, axes = plt.subplots(2, 3)
    words = list("abcdef")
    figures.draw_parts(
        figures.data_parts(scores[0, :6], {"x": [0, 1], "y": [2, 3]}, words), axes[0]
    )
    tiles = list(torch.arange(96).split(32))
    figures.draw_visit(figures.data_visit(scores[0], {"a": tiles, "b": tiles[::-1]}), axes[1, :2])
    figures.draw_tiles({"tile": [1, 96], "error": [1e-6, 1e-7]}, axes[1, 2])
    figure.canvas.draw()
    titles = [ax.get_title(loc="left") for ax in axes[0]]
    assert titles[0].startswith("x: m = ")
    assert titles[2].startswith("Merged: m = ")
    plt.close(figure)
