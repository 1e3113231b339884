"""The numbers behind the figures of a model from inside; drawing must not fail."""

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.drawing import model as figures
from anchor_lab.drawing import style


def test_errors_are_relative_and_means_over_tokens():
    dense = [torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]), torch.ones(1, 2, 2)]
    other = [torch.tensor([[[3.0, 5.0], [0.0, 2.0]]]), torch.ones(1, 2, 2)]
    assert figures.data_layer_errors(dense, other) == pytest.approx([(1 / 5 + 0) / 2, 0.0])


def test_changes_of_rows_are_largest_entries():
    before = torch.zeros(3, 2)
    after = torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.5, 0.0]])
    assert figures.data_changed_rows(before, after).tolist() == [0.0, 2.0, 0.5]


def test_every_figure_draws():
    style.use_style()
    figure, ax = plt.subplots()
    together, alone = [0.0, 0.1, 0.2], {0: [0.0, 0.1, 0.05], 1: [0.0, 0.0, 0.12]}
    figures.draw_layer_errors(together, alone, ax)
    assert [text.get_text() for text in ax.texts] == ["in every layer", "in layer 1 alone"]
    plt.close(figure)
    figure, ax = plt.subplots()
    figures.draw_layer_errors(together, alone | {1: [0.0, 0.0, 1e-5]}, ax)
    assert ax.texts[-1].get_text() == "layer 1 alone: next to none"
    plt.close(figure)
    figures.show_layer_errors(together, alone, "here")
    rows = {"dense": torch.tensor([0.0, 0.0, 1.0]), "anchor": torch.tensor([0.0, 0.1, 1.0])}
    figure, ax = plt.subplots()
    figures.draw_changed_rows(rows, 2, 1, ax)
    assert [len(points.get_offsets()) for points in ax.collections] == [1, 2]
    plt.close(figure)
    figures.show_changed_rows(rows, 2, 1, "here")
    assert not plt.get_fignums()
