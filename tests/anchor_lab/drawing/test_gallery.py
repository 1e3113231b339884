"""Profiles of heads and what pictures show of stripes, against loops and maps made for it."""

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.drawing import gallery, maps, style

N, CELLS = 512, 64


@pytest.fixture(scope="module")
def striped():
    """A map with stripes of 3 % on an even ground, and their keys, no two in one cell."""
    places = torch.arange(10) * 47 + 30
    weights = torch.ones(N, N).tril()
    weights /= weights.sum(-1, keepdim=True)
    weights[:, places] = 0.03
    return weights.tril(), places


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


def test_pooling_takes_the_largest_or_the_mean_of_each_square():
    weights = torch.arange(16.0).view(4, 4)
    assert gallery.pool(weights, 2, "max").tolist() == [[5, 7], [13, 15]]
    assert gallery.pool(weights, 2, "mean").tolist() == [[2.5, 4.5], [10.5, 12.5]]


@pytest.mark.parametrize(
    ("rgb", "expected"), [((0, 0, 0), 0.0), ((255, 255, 255), 100.0), ((119, 119, 119), 50.03)]
)
def test_lightness_is_that_of_cielab(rgb, expected):
    assert float(gallery.lightness(torch.tensor(rgb))) == pytest.approx(expected, abs=0.01)


def test_a_picture_is_the_colours_of_imshow():
    rgb = gallery.picture(torch.tensor([[0.0, 1.0]]), 60, cmap="gray", aspect="auto")
    assert rgb.shape == (60, 60, 3)
    assert rgb[30, 5].tolist() == [0, 0, 0]
    assert rgb[30, 55].tolist() == [255, 255, 255]


def test_a_column_is_seen_where_it_is_lighter_and_only_there():
    rgb = torch.full((200, 200, 3), 100)
    rgb[:, 120] = 110
    found = gallery.data_seen(rgb, torch.tensor([60, 120, 160]), 200)
    assert found["seen"].tolist() == [False, True, False]
    darker = gallery.data_seen(200 - rgb, torch.tensor([120]), 200)
    assert not darker["seen"].any()


def test_plain_imshow_hides_stripes_that_max_pooling_shows(striped):
    weights, places = striped
    plain = gallery.picture(weights, 128)
    assert not gallery.data_seen(plain, places, N)["seen"].any()
    largest = gallery.pool(weights, CELLS, "max").clamp(min=1e-5).log10()
    pooled = gallery.picture(largest, 128, vmin=-5, vmax=0, interpolation="nearest")
    assert gallery.data_seen(pooled, places, N)["seen"].all()


def test_a_mean_fades_as_computed_and_a_maximum_does_not(striped):
    weights, places = striped
    ground = float(weights[-1, 1])
    data = gallery.data_fading(weights, places, [1, 8])
    assert data["max"] == pytest.approx([0.03 / ground] * 2, rel=0.05)
    assert data["mean"] == pytest.approx([0.03 / ground, (0.03 / ground + 7) / 8], rel=0.05)


def test_every_figure_draws(striped):
    weights, places = striped
    style.use_style()
    figure, axes = plt.subplots(2, 3)
    data = maps.data_attention_map(torch.randn(64, 4), torch.randn(64, 4), 0.5, pixels=32)
    gallery.draw_heads({"a": data}, axes[0, :1], axes[1, :1])
    gallery.draw_pictures({"a": gallery.picture(weights, 50)}, axes[0, 1:2])
    gallery.draw_fading(gallery.data_fading(weights, places, [1, 8]), axes[1, 1])
    figure.canvas.draw()
    plt.close(figure)
