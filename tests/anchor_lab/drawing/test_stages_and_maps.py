"""The numbers behind the figures, against the plain N x N computation; drawing must not fail."""

from dataclasses import replace

import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from anchor_lab.drawing import maps, stages, style, sweep
from anchor_models import planted_stripes
from anchor_ref import AnchorConfig, anchor_attention
from anchor_ref.measure import density, recall
from anchor_ref.plan import StripePlan

N = 300  # no multiple of the cells or blocks used below
CONFIG = AnchorConfig(block_size=16, step=4, theta=12.0)
SCALE = 0.125


@pytest.fixture(scope="module")
def head():
    """One head's q and k, its trace, and its dense attention weights."""
    inputs = planted_stripes(N, q_heads=2, kv_heads=1, density=0.05)
    _, trace = anchor_attention(inputs.q, inputs.k, inputs.v, CONFIG, return_trace=True)
    q, k = inputs.q[0, 1], inputs.k[0, 0]
    scores = (q @ k.T * SCALE).masked_fill(~torch.ones(N, N).tril().bool(), -torch.inf)
    return q, k, trace, scores


def test_map_cells_hold_the_largest_weight_and_the_mass(head):
    q, k, _, scores = head
    data = maps.data_attention_map(q, k, SCALE, pixels=50)
    cell = int(data["cell"])
    weights = scores.softmax(-1)
    assert cell == 6
    for i, j in ((0, 0), (10, 3), (49, 0), (49, 49), (20, 30)):
        part = weights[i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]
        torch.testing.assert_close(data["heaviest"][i, j], part.max())
        torch.testing.assert_close(data["mass"][i, j], part.sum() / len(part))


def test_map_loses_no_mass_and_keeps_a_one_key_stripe(head):
    q, k, trace, _ = head
    data = maps.data_attention_map(q, k, SCALE, pixels=50)
    torch.testing.assert_close(data["mass"].sum(1), torch.ones(50))
    last_row = data["heaviest"][-1]
    seen = {int(key) // int(data["cell"]) for key in trace.stripes.keys(0, 1, 4)}
    others = set(range(3, 42)) - seen  # cells of candidates that hold no stripe
    assert min(last_row[list(seen)]) > max(last_row[list(others)])


def test_a_map_of_fewer_tokens_than_pixels_shows_each_pair(head):
    q, k, _, scores = head
    data = maps.data_attention_map(q[:40], k[:40], SCALE, pixels=64)
    torch.testing.assert_close(data["heaviest"], scores[:40, :40].softmax(-1))


def test_kept_map_draws_the_plan_itself(head):
    _, _, trace, _ = head
    data = maps.data_kept_map(trace.stripes, 1, CONFIG, N)
    assert [len(keys) for keys in data["keys"]] == trace.stripes.counts[0, 1].tolist()
    assert data["groups"][-1] == (256, 300, 16, 256)


def test_anchor_gap_is_true_maximum_minus_anchor(head):
    q, k, trace, scores = head
    data = stages.data_anchor_gap(q, k, trace.row_anchor[0, 1], SCALE)
    expected = scores.amax(-1) - trace.row_anchor[0, 1]
    torch.testing.assert_close(data["gap"], expected.clamp(min=0), atol=1e-4, rtol=0)
    assert (data["gap"][:64] < 1e-4).all()  # the first group sees everything


def test_difference_of_the_figure_selects_what_the_plan_holds(head):
    q, k, trace, _ = head
    data = stages.data_difference(q, k, trace.row_anchor[0, 1], CONFIG, 4, SCALE)
    selected = data["key"][data["difference"] <= data["theta"]]
    assert selected.tolist() == trace.stripes.keys(0, 1, 4).tolist()


def test_a_row_is_tested_against_its_anchor():
    scores = torch.tensor([9.0, 1.0, 5.0, 7.0])
    data = stages.data_row_test(scores, 8.0, 2.0, range(1, 4))
    assert data["key"].tolist() == [1, 2, 3]
    assert data["difference"].tolist() == [7, 3, 1]
    assert float(data["theta"]) == 2


def test_keys_and_blocks_are_counted_over_all_groups_with_candidates():
    # Groups of 8 rows; candidates are 4..7 in group 1 and 4..15 in group 2, in blocks of 4.
    config = AnchorConfig(block_size=4, step=2)
    nothing = torch.tensor([], dtype=torch.int64)
    lists = [nothing, torch.tensor([5, 6]), torch.tensor([4, 12])]
    plan = StripePlan.from_lists(lists, (1, 1, 3))
    none = StripePlan.from_lists([nothing] * 3, (1, 1, 3))
    data = stages.data_touched([plan, none], config, 24)
    assert data["keys"].tolist() == pytest.approx([4 / 16, 0])
    assert data["blocks"].tolist() == pytest.approx([3 / 4, 0])


def test_recall_is_summed_up_by_blocks():
    data = stages.data_recall(torch.linspace(0, 1, 256), block=128)
    assert data["position"].tolist() == [0, 128]
    assert data["median"][0] < data["p10"][1] < data["median"][1]
    torch.testing.assert_close(data["mean"], torch.tensor(0.5, dtype=torch.float64))


def test_heads_that_keep_all_are_counted_by_layer():
    densities = ((0, 1.0), (0, 0.991), (0, 0.99), (2, 0.3), (3, 1.0))
    rows = [
        {"layer": layer, "head": h, "recall": 0.9, "density": density}
        for h, (layer, density) in enumerate(densities)
    ]
    data = stages.data_heads(rows)
    assert data["full"].tolist() == [2, 0, 0, 1]
    assert data["density"].tolist() == pytest.approx([density for _, density in densities])


def test_a_sweep_shows_what_each_threshold_keeps(head):
    q, k, _, _ = head
    q, k = q[None, None], k[None, None]
    thetas = [-torch.inf, 10.0, 20.0, torch.inf]
    steps = sweep.data_sweep(q, k, CONFIG, thetas, SCALE)
    assert [step["theta"] for step in steps] == thetas
    for step in steps:
        at = replace(CONFIG, theta=step["theta"])
        _, trace = anchor_attention(q, k, k, at, SCALE, return_trace=True)
        expected = float(density(trace.stripes, at, N, N))
        assert step["density"] == pytest.approx(expected)
        assert step["recall"] == pytest.approx(
            float(recall(q, k, trace.stripes, at, SCALE)[..., CONFIG.group_size :].mean()),
            abs=1e-5,
        )
        kept = [len(keys) for keys in step["map"]["keys"]]
        assert kept == trace.stripes.counts[0, 0].tolist()
    assert steps[0]["density"] < steps[1]["density"] < steps[2]["density"] <= 1
    assert steps[-1]["density"] == steps[-1]["recall"] == 1


def test_a_step_names_its_threshold_and_shares(head):
    q, k, _, _ = head
    steps = sweep.data_sweep(q[None, None], k[None, None], CONFIG, [-torch.inf, 10.0], SCALE)
    style.use_style()
    figure, (left, right) = plt.subplots(1, 2)
    sweep.draw_step(steps, 1, left, right)
    sweep.draw_step(steps, 0, left, right)  # a frame is drawn over the one before
    assert left.get_title(loc="left").startswith("θ = −∞")
    assert right.get_title(loc="left").startswith(f"{steps[0]['density']:.0%} of pairs")
    figure.canvas.draw()
    plt.close(figure)


@pytest.mark.parametrize("theta", [-torch.inf, 5.0, 12.0, torch.inf])
@pytest.mark.parametrize("n", [50, N])  # one group, and five
def test_each_word_of_the_kept_map_points_at_a_pair_of_its_kind(head, n, theta):
    q, k, _, _ = head
    config = replace(CONFIG, theta=theta)
    one = [x[None, None, :n] for x in (q, k, k)]
    _, trace = anchor_attention(*one, config, return_trace=True)
    figure, ax = plt.subplots()
    maps.draw_kept_map(maps.data_kept_map(trace.stripes, 0, config, n), ax)
    plt.close(figure)

    stripes = trace.stripes.to_mask(n)[0, 0].repeat_interleave(config.group_size, 0)[:n]
    rows, keys = torch.arange(n)[:, None], torch.arange(n)
    window_start = rows // config.group_size * config.group_size
    kinds = {
        "window": (keys >= window_start) & (keys <= rows),
        "initial region": (keys < config.block_size) & (keys < window_start),
        "stripes": stripes,
    }
    candidate = (keys >= config.block_size) & (keys < window_start)
    kinds["skipped"] = candidate & ~stripes
    for word in ax.texts:
        key, row = (int(x) for x in word.xy)
        assert kinds[word.get_text()][row, key], word.get_text()
    start = n // config.group_size // 2 * config.group_size
    middle = slice(start, start + config.group_size)
    there = {kind for kind, mask in kinds.items() if mask[middle].any()}
    assert there == {word.get_text() for word in ax.texts}


def test_every_figure_draws(head):
    q, k, trace, _ = head
    style.use_style()
    anchor = trace.row_anchor[0, 1]
    rows = [{"layer": 0, "head": h, "recall": 0.9 + h / 20, "density": 0.5} for h in range(2)]
    figure, axes = plt.subplots(2, 3, figsize=(12, 8))
    maps.draw_kept_map(maps.data_kept_map(trace.stripes, 1, CONFIG, N), axes[0, 0])
    stages.draw_anchor_gap(stages.data_anchor_gap(q, k, anchor, SCALE), axes[0, 1])
    stages.draw_difference(stages.data_difference(q, k, anchor, CONFIG, 4, SCALE), axes[0, 2])
    stages.draw_recall(stages.data_recall(torch.rand(N)), axes[1, 0])
    stages.draw_heads(stages.data_heads(rows), axes[1, 1])
    stages.draw_heads(stages.data_heads([{**row, "density": 1.0} for row in rows]), axes[1, 2])
    style.caption(figure, "small print")
    figure.canvas.draw()
    plt.close(figure)


def test_figures_of_scattered_stripes_draw():
    style.use_style()
    figure, ax = plt.subplots()
    stages.draw_touched({"keys": torch.rand(5), "blocks": torch.rand(5)}, ax)
    figure.canvas.draw()
    plt.close(figure)


@pytest.mark.parametrize(("tail", "rows"), [(0, []), (5, [(N - 5, N)]), (N + 3, None)])
def test_the_tail_of_a_kept_map_is_a_band_over_all_earlier_keys(head, tail, rows):
    _, _, trace, _ = head
    data = maps.data_kept_map(trace.stripes, 1, replace(CONFIG, tail=tail), N)
    found = maps.tail_bands(data)
    assert found == ([(g[0], g[1]) for g in data["groups"]] if rows is None else rows)
    figure, ax = plt.subplots()
    maps.draw_kept_map(data, ax)
    bands = [patch for patch in ax.patches if patch.get_facecolor()[:3] == to_rgb(style.TAIL)]
    assert len(bands) == len(found)
    for band, (start, end) in zip(bands, found, strict=True):
        assert {(0, start), (start, start), (end, end), (0, end)} == set(map(tuple, band.get_xy()))
    assert ("tail" in [text.get_text() for text in ax.texts]) == bool(found)
    plt.close(figure)


def test_colour_is_as_strong_as_stripes_are_many(head):
    _, _, trace, _ = head
    data = maps.data_kept_map(trace.stripes, 1, CONFIG, N)
    shares = maps.data_kept_share(data, 8)
    for g, share in enumerate(shares):
        kept = torch.zeros(8 * len(share))
        kept[trace.stripes.keys(0, 1, g).long()] = 1
        torch.testing.assert_close(share, kept.unflatten(0, (-1, 8)).mean(1))
    assert any(share.any() for share in shares)
