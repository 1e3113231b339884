"""Numbers behind the figures of notebook 04, against plain counts."""

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.analysis import locate_maxima
from anchor_lab.drawing import anchors, style
from anchor_ref import AnchorConfig

CONFIG = AnchorConfig(block_size=8, step=4)


@pytest.fixture(scope="module")
def maxima():
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, heads, 128, 8, generator=generator) for heads in (4, 2))
    return locate_maxima(q, k, CONFIG)


def test_gaps_are_counted_in_bars_and_the_last_bar_takes_the_rest():
    gap = torch.tensor([0.0, 0.0, 0.1, 0.26, 0.27, 3.9, 40.0, 0.0])
    data = anchors.data_gaps(gap, reach=4.0)
    assert data["exact"] == 3 / 8
    shares = dict(zip(data["edge"].tolist(), data["share"].tolist(), strict=True))
    assert {edge: share for edge, share in shares.items() if share} == {
        0.0: 1 / 8,
        0.25: 2 / 8,
        3.75: 2 / 8,
    }


def test_bars_and_exact_rows_are_all_rows(maxima):
    data = anchors.data_gaps(maxima.gap[0, 0, maxima.rows])
    assert data["exact"] + float(data["share"].sum()) == pytest.approx(1)


def test_misses_are_counted_by_the_place_in_the_group(maxima):
    data = anchors.data_missed([maxima, maxima], CONFIG.group_size, parts=4)
    assert data["place"].tolist() == [4, 12, 20, 28]
    for part in range(4):
        rows = [g * 32 + i for g in (1, 2, 3) for i in range(8 * part, 8 * part + 8)]
        expected = (maxima.region[..., rows] == 2).double().mean()
        torch.testing.assert_close(data["share"][part], expected)


def test_every_figure_draws(maxima):
    style.use_style()
    figure, axes = plt.subplots(1, 2)
    anchors.draw_gaps(anchors.data_gaps(maxima.gap[0, 0, maxima.rows]), axes[0])
    data = anchors.data_missed([maxima], CONFIG.group_size, parts=4)
    anchors.draw_missed({"all layers": data, "layer 1": data}, axes[1])
    figure.canvas.draw()
    plt.close(figure)
