"""Numbers behind the figures of notebook 05, against plain loops."""

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.drawing import pooling, style
from anchor_models import planted_stripes
from anchor_ref import AnchorConfig, compute_anchor, identify_stripes


@pytest.fixture(scope="module")
def difference():
    return 10 * torch.rand(20, 50, generator=torch.Generator().manual_seed(4))


def test_the_union_holds_what_some_row_so_far_wants(difference):
    data = pooling.data_union(difference, 1.0)
    wanted: set[int] = set()
    for row in range(20):
        own = {key for key in range(50) if difference[row, key] <= 1.0}
        wanted |= own
        assert float(data["one"][row]) == pytest.approx(len(own) / 50)
        assert float(data["union"][row]) == pytest.approx(len(wanted) / 50)


def test_the_mean_of_a_block_is_what_stage_2_compares():
    config = AnchorConfig(block_size=16, step=2)
    inputs = planted_stripes(96, q_heads=1, kv_heads=1)
    q, k = inputs.q[0, 0], inputs.k[0, 0]
    anchor = compute_anchor(inputs.q, inputs.k, inputs.v, config).max
    block = slice(64, 80)
    for key in (20, 33):
        scores = q[block] @ k[key] / 8
        data = pooling.data_block(scores, anchor[0, 0, block], 12.0)
        pooled = anchor[0, 0, block].mean() - q[block].mean(0) @ k[key] / 8
        assert data["mean"] == pytest.approx(float(pooled), abs=1e-4)
        # A group of this block alone keeps the key exactly from this θ on.
        for theta, kept in ((data["mean"] - 1e-3, False), (data["mean"] + 1e-3, True)):
            alone = AnchorConfig(block_size=16, step=1, theta=theta)
            plan = identify_stripes(inputs.q, inputs.k, anchor, alone)
            assert (key in plan.keys(0, 0, 4).tolist()) == kept


def test_the_share_of_a_block_counts_rows_within_the_threshold():
    data = pooling.data_block(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.full((4,), 3.0), 1.0)
    assert data["share"] == 0.5
    assert data["mean"] == 1.5


def test_every_figure_draws(difference):
    style.use_style()
    figure, axes = plt.subplots(1, 2)
    pooling.draw_union(pooling.data_union(difference, 1.0), 0.3, axes[0])
    pooling.draw_block(pooling.data_block(difference[:, 0], difference[:, 1], 2.0), axes[1])
    figure.canvas.draw()
    assert axes[1].yaxis_inverted()
    plt.close(figure)


def test_axes_end_with_the_rows_and_labels_of_near_lines_part(difference):
    figure, (union, block) = plt.subplots(1, 2)
    data = pooling.data_union(difference, 1.0)
    pooling.draw_union(data, 0.3, union)
    assert union.get_xlim() == (0, 20)
    heights = [float(line.get_segments()[0][0, 1]) for line in union.collections[1:]]
    assert heights == pytest.approx([float(data["one"].mean()), 0.3])
    for theta in (4.9, 5.1):  # the mean below it, the mean above it
        block.clear()
        data = pooling.data_block(torch.zeros(20), torch.full((20,), 5.0), theta)
        pooling.draw_block(data, block)
        up = {label.get_text(): label.xyann[1] for label in block.texts}
        # The axis points down: the label of the smaller number stands higher.
        assert (up[f"θ = {theta:g}"] > up["mean 5.0"]) == (theta < 5)
    plt.close(figure)


HEAD_CONFIG = AnchorConfig(block_size=8, step=2, theta=1.0)


@pytest.fixture(scope="module")
def head():
    random = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 1, 44, 8, generator=random) for _ in range(2))


def test_differences_of_a_key_are_those_of_rows_and_blocks(head):
    q, k = head
    anchor = compute_anchor(q, k, k, HEAD_CONFIG).max[0, 0]
    data = pooling.data_asked(q[0, 0], k[0, 0], anchor, 9, HEAD_CONFIG, 8**-0.5)
    assert data["row"].tolist() == list(range(32, 44))
    assert data["start"].tolist() == [32, 40]
    expected = [float(anchor[i] - q[0, 0, i] @ k[0, 0, 9] * 8**-0.5) for i in range(32, 44)]
    assert data["difference"].tolist() == pytest.approx(expected, abs=1e-5)
    means = [sum(expected[:8]) / 8, sum(expected[8:]) / 4]
    assert data["mean"].tolist() == pytest.approx(means, abs=1e-5)


def test_the_figure_of_a_key_draws(head):
    q, k = head
    anchor = compute_anchor(q, k, k, HEAD_CONFIG).max[0, 0]
    _, ax = plt.subplots()
    data = pooling.data_asked(q[0, 0], k[0, 0], anchor, 9, HEAD_CONFIG, 8**-0.5)
    pooling.draw_asked(data, HEAD_CONFIG.theta, ax)
    assert ax.get_xlabel()
    plt.close("all")
