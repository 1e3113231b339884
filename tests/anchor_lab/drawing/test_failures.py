"""The numbers behind the figures of the failures; drawing must not fail."""

import math

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.analysis.failures import blame, try_config
from anchor_lab.drawing import failures as figures
from anchor_lab.drawing import pooling, style
from anchor_ref import AnchorConfig, compute_anchor

CONFIG = AnchorConfig(block_size=8, step=2, theta=1.0)


@pytest.fixture(scope="module")
def head():
    random = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 1, 44, 8, generator=random) for _ in range(2))


def test_the_bound_is_the_share_of_light_keys_beside_one_heavy_key():
    data = figures.data_bound([2.0, 12.0], [1, 1000])
    for theta in (2.0, 12.0):
        for count, lost in zip(data["count"], data["lost"][theta], strict=True):
            light = count * math.exp(-theta)
            assert lost == pytest.approx(light / (1 + light))


def test_shares_of_a_bar_are_means_over_the_rows_asked_about(head):
    lost = blame(*head, CONFIG)
    shares = figures.data_causes({"case": lost}, 16)["case"]
    assert sum(shares.values()) == pytest.approx(1)
    for cause, x in lost.items():
        assert shares[cause] == pytest.approx(float(x[0, 0, 16:].mean()))
    assert shares["kept"] < 0.99


def test_a_cause_that_is_grey_as_another_is_hatched():
    _, ax = plt.subplots()
    figures.draw_causes({"case": dict.fromkeys(figures.COLOURS, 0.125) | {"kept": 0.5}}, ax)
    bars = zip(figures.COLOURS, ax.patches, strict=True)
    hatches = {name: bar.get_hatch() for name, bar in bars}
    assert [name for name, hatch in hatches.items() if hatch] == ["threshold"]
    shown = {text.get_text(): patch.get_hatch() for text, patch in _legend(ax)}
    assert shown == hatches
    plt.close("all")


def test_every_figure_draws(head):
    style.use_style()
    q, k = head
    figures.show_bound(figures.data_bound([2.0, 12.0], [1, 1000]))
    figures.show_causes(figures.data_causes({"case": blame(q, k, CONFIG)}, 16), "here")
    reach = {"reach": [0.1, 0.2], "found": [0.5, 0.1], "random": [1.0, 0.9]}
    figures.show_reach(reach, "here")
    anchor = compute_anchor(q, k, k, CONFIG).max[0, 0]
    asked = pooling.data_asked(q[0, 0], k[0, 0], anchor, 9, CONFIG, 8**-0.5)
    figures.show_asked(asked, CONFIG.theta, "here")
    tried = {"as it is": try_config(q, k, CONFIG, 8**-0.5, torch.tensor([43]))}
    figures.show_remedies(tried, "here")
    assert not plt.get_fignums()


def _legend(ax):
    legend = ax.get_legend()
    return zip(legend.get_texts(), legend.get_patches(), strict=True)
