"""Numbers behind the figures of notebook 06, against sets counted by hand."""

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.drawing import gather, style
from anchor_ref import AnchorConfig
from anchor_ref.plan import StripePlan


def test_keys_and_blocks_are_counted_over_all_groups_with_candidates():
    # Groups of 8 rows; candidates are 4..7 in group 1 and 4..15 in group 2, in blocks of 4.
    config = AnchorConfig(block_size=4, step=2)
    nothing = torch.tensor([], dtype=torch.int64)
    lists = [nothing, torch.tensor([5, 6]), torch.tensor([4, 12])]
    plan = StripePlan.from_lists(lists, (1, 1, 3))
    none = StripePlan.from_lists([nothing] * 3, (1, 1, 3))
    data = gather.data_touched([plan, none], config, 24)
    assert data["keys"].tolist() == pytest.approx([4 / 16, 0])
    assert data["blocks"].tolist() == pytest.approx([3 / 4, 0])


def test_every_figure_draws():
    style.use_style()
    figure, axes = plt.subplots(1, 2)
    gather.draw_touched({"keys": torch.rand(5), "blocks": torch.rand(5)}, axes[0])
    gather.draw_error({"a": ([0.1, 0.3], [0.5, 0.2]), "b": ([0.1, 0.3], [0.6, 0.4])}, axes[1])
    figure.canvas.draw()
    assert {text.get_text() for text in axes[1].texts} == {"a", "b"}
    plt.close(figure)
