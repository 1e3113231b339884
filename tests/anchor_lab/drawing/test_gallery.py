"""Profiles of heads, against loops."""

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.drawing import gallery, maps, style

N = 512


def test_a_profile_follows_its_definition_row_by_row():
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(4, N, 8, generator=generator), torch.randn(2, N, 8, generator=generator)
    rows = torch.tensor([300, 411, 511])
    found = gallery.data_profile(q, k, 0.7, rows)
    few = round(N * gallery.BEST)
    for head in range(4):
        expected = dict.fromkeys(gallery.KINDS, 0.0)
        by_key, by_distance = torch.zeros(N), torch.zeros(N)
        for i in rows.tolist():
            w = (0.7 * q[head, i] @ k[head // 2, : i + 1].T).softmax(0)
            expected["sink"] += float(w[0]) / 3
            expected["window"] += float(w[i - 127 :].sum()) / 3
            expected["diffuse"] += float((-(w * w.log()).sum()).exp()) / 3
            for j in range(128, i - 127):
                by_key[j] += w[j] / 3
                by_distance[i - j] += w[j] / 3
        expected["stripes"] = float(by_key.topk(few).values.sum())
        expected["slash"] = float(by_distance.topk(few).values.sum())
        for kind, value in expected.items():
            assert float(found[kind][head]) == pytest.approx(value, rel=1e-4), kind


def test_the_most_typical_head_is_found_in_its_layer():
    nothing = dict.fromkeys(gallery.KINDS, torch.zeros(3))
    profiles = {4: nothing, 6: nothing | {"slash": torch.tensor([0.1, 0.0, 0.3])}}
    layer, head, value = gallery.most_typical(profiles)["slash"]
    assert (layer, head) == (6, 2)
    assert value == pytest.approx(0.3)


def test_every_figure_draws():
    style.use_style()
    figure, axes = plt.subplots(2, 1)
    data = maps.data_attention_map(torch.randn(64, 4), torch.randn(64, 4), 0.5, pixels=32)
    gallery.draw_maps({"a": data}, axes[:1], axes[1:])
    figure.canvas.draw()
    plt.close(figure)
