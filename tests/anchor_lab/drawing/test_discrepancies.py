"""The numbers behind the figures of the discrepancies; drawing must not fail."""

import math

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.analysis.discrepancies import RoundedTest, published_groups, times_counted
from anchor_lab.drawing import discrepancies as figures
from anchor_lab.drawing import style
from anchor_ref import AnchorConfig


@pytest.fixture(scope="module")
def counted():
    config = AnchorConfig(block_size=4, step=4, theta=math.inf)
    x = torch.randn(1, 1, 64, 8, generator=torch.Generator().manual_seed(0))
    return times_counted(x, x, config, published_groups(config, 64))[0, 0]


TEST = RoundedTest(torch.tensor([11.0, 11.9, 12.1, 14.0]), torch.tensor([11.0, 12.2, 12.2, 14.0]))


def test_a_square_shows_its_lower_left_pair(counted):
    data = figures.data_counted(counted, pixels=32)
    names = list(figures.COUNTS)
    assert data["cell"] == 2
    for row, column in ((0, 0), (5, 3), (24, 3), (24, 21), (31, 31), (3, 20)):
        i, j = 2 * row + 1, 2 * column
        expected = "later" if j > i else ("never", "once", "twice")[counted[i, j]]
        assert names[data["index"][row, column]] == expected
    causal = [int(counted[i, j]) for i in range(64) for j in range(i + 1)]
    shares = [causal.count(times) / len(causal) for times in range(3)]
    assert data["shares"].tolist() == pytest.approx(shares)


def test_infinity_is_drawn_one_step_beyond_the_last_threshold():
    data = figures.data_theta_error([6.0, 9.0, math.inf], {"a": [3.0, 2.0, 1.0]})
    assert data == {"x": [6, 9, 12], "a": [3, 2, 1]}


def test_a_decision_is_turned_over_when_its_side_of_theta_changes():
    data = figures.data_rounding({"x": TEST}, theta=12.0, reach=1.5)["x"]
    assert data["flipped"].tolist() == [False, True, False]
    torch.testing.assert_close(data["exact"], torch.tensor([-1.0, -0.1, 0.1]))


def test_whole_groups_have_no_dense_share_because_nothing_is_written():
    data = figures.data_tail([16, 24, 31, 32], 16)
    assert data["share"].isnan().tolist() == [True, False, False, True]
    assert data["share"][1] == pytest.approx(sum(range(17, 25)) / sum(range(1, 25)))


def test_memory_by_length_lists_every_part_of_both_sides():
    data = figures.data_memory([4096, 8192], 32, 8, 128, 0.1)
    assert data["selection, published"][1] == 4 * data["selection, published"][0]
    assert data["keys and values, project"][0] * 4 == data["keys and values, published"][0]


def test_every_figure_draws(counted):
    style.use_style()
    figures.show_counted({"a": counted, "b": counted.clamp(max=1)}, "here")
    errors = {"a": [3.0, 2.0, 1.0], "b": [4.0, 3.0, 3.0]}
    figures.show_theta_error(figures.data_theta_error([6.0, 9.0, math.inf], errors), "here")
    rounding = figures.data_rounding({"x": TEST, "y": TEST}, 12.0, 1.5)
    _, axes = plt.subplots(1, 2)
    figures.draw_rounding(rounding, axes)
    assert axes[0].get_title(loc="left") == "x: 1 of 3 turned over"
    plt.close("all")
    figures.show_rounding(rounding, "here")
    figures.show_tail(figures.data_tail([16, 24, 31, 32], 16))
    figures.show_memory(figures.data_memory([4096, 8192], 32, 8, 128, 0.1))
    assert not plt.get_fignums()
