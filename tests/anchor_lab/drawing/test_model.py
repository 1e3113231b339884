"""The numbers behind the figures of a model from inside; drawing must not fail."""

import math

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.drawing import model as figures
from anchor_lab.drawing import style


def test_errors_are_relative_and_means_over_tokens():
    dense = [torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]), torch.ones(1, 2, 2)]
    other = [torch.tensor([[[3.0, 5.0], [0.0, 2.0]]]), torch.ones(1, 2, 2)]
    assert figures.data_layer_errors(dense, other) == pytest.approx([(1 / 5 + 0) / 2, 0.0])


def test_divergence_is_from_dense_to_other_and_changes_are_counted():
    dense = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])  # 1/4, 3/4
    other = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # 3/4, 1/4
    found = figures.data_divergence([dense], [other])
    expected = 0.25 * math.log(1 / 3) + 0.75 * math.log(3.0)
    assert found["divergence"] == pytest.approx([expected / 2])
    assert found["changed"] == [0.5]
    uneven = torch.tensor([[0.0, math.log(7.0)]])  # 1/8, 7/8: the divergence is no distance
    there, back = (
        figures.data_divergence([a], [b])["divergence"][0]
        for a, b in ((dense[:1], uneven), (uneven, dense[:1]))
    )
    assert there == pytest.approx(0.25 * math.log(2.0) + 0.75 * math.log(6 / 7))
    assert back != pytest.approx(there, rel=0.05)


def test_changes_of_rows_are_largest_entries():
    before = torch.zeros(3, 2)
    after = torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.5, 0.0]])
    assert figures.data_changed_rows(before, after).tolist() == [0.0, 2.0, 0.5]


def test_every_figure_draws():
    style.use_style()
    figure, axes = plt.subplots(1, 5, figsize=(18, 3))
    figures.draw_layer_errors([0.0, 0.1, 0.2], {0: [0.0, 0.1, 0.05], 1: [0.0, 0.0, 0.12]}, axes[0])
    assert [text.get_text() for text in axes[0].texts] == ["in every layer", "in layer 1 alone"]
    figures.draw_divergence({"divergence": [0.0, 0.2], "changed": [0.0, 0.1]}, axes[1:3])
    for ax, said in zip(axes[1:3], ("0.100", "0.200"), strict=True):  # heights, as their axis says
        assert [text.get_text() for text in ax.texts] == ["0", said]
    figures.draw_digits({"dense": [("1", True)] * 6, "anchor": [("2", False)] * 6}, axes[3])
    squares = axes[3].patches
    assert len(squares) == 12
    assert squares[0].get_facecolor() != squares[6].get_facecolor()
    rows = {"dense": torch.tensor([0.0, 0.0, 1.0]), "anchor": torch.tensor([0.0, 0.1, 1.0])}
    figures.draw_changed_rows(rows, 2, 1, axes[4])
    assert [len(points.get_offsets()) for points in axes[4].collections] == [1, 2]
    figure.canvas.draw()
    plt.close(figure)
