"""All thresholds at once give what each gives alone, and calibration picks the smallest."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from anchor_lab.analysis import (
    MeanCurves,
    average_curves,
    choose_thetas,
    theta_curve,
)
from anchor_models import Calibration, Captured
from anchor_ref import AnchorConfig, compute_anchor, identify_stripes
from anchor_ref.measure import density, recall
from anchor_ref.regions import groups
from tests.brute_force import TAILS, cases

GRID = (-3.0, -1.0, 0.0, 0.7, 2.0, 5.0, 12.0)


@settings(max_examples=40)
@given(case=cases(dtypes=(torch.float64,), tails=TAILS))
def test_each_threshold_gives_what_it_gives_alone(case):
    q, k, v, config, scale = case
    curve = theta_curve(q, k, config, GRID, scale)
    anchor = compute_anchor(q, k, v, config, scale).max
    for i, theta in enumerate(GRID):
        alone = replace(config, theta=theta)
        stripes = identify_stripes(q, k, anchor, alone, scale)
        wanted = recall(q, k, stripes, alone, scale)
        torch.testing.assert_close(curve.recall[i], wanted, rtol=0, atol=1e-9)
        sizes = (alone, q.shape[2], k.shape[2])
        torch.testing.assert_close(curve.density[i], density(stripes, *sizes), rtol=0, atol=1e-12)


def test_a_threshold_keeps_the_key_that_it_equals():
    """Small integers: differences are exact, and some are exactly 1."""
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randint(-2, 3, (1, 1, 64, 4), generator=random).float() for _ in range(2))
    config = AnchorConfig(4, 2, theta=1.0)
    curve = theta_curve(q, k, config, (1.0,), 1.0)
    stripes = identify_stripes(q, k, compute_anchor(q, k, k, config, 1.0).max, config, 1.0)
    assert torch.equal(curve.density[0], density(stripes, config, 64, 64))


def test_packed_sequences_are_curves_of_their_own():
    x, config, bounds = sample(1), AnchorConfig(8, 2), torch.tensor([0, 40, 90])
    curve = theta_curve(x.q, x.k, config, GRID, 0.3, bounds)
    anchor = compute_anchor(x.q, x.k, x.v, config, 0.3, bounds).max
    for i, theta in enumerate(GRID):
        alone = replace(config, theta=theta)
        stripes = identify_stripes(x.q, x.k, anchor, alone, 0.3, bounds)
        wanted = recall(x.q, x.k, stripes, alone, 0.3, bounds)
        torch.testing.assert_close(curve.recall[i], wanted, rtol=0, atol=1e-5)
        assert torch.equal(curve.density[i], density(stripes, alone, 90, 90, bounds))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_kept_where_stage_2_keeps_it(value):
    x, config, grid = sample(1), AnchorConfig(8, 2), (-math.inf, -3.0, 2.0, math.inf)
    x.k[0, 0, 20, 3] = value
    curve = theta_curve(x.q, x.k, config, grid)
    anchor = compute_anchor(x.q, x.k, x.v, config).max
    for i, theta in enumerate(grid):
        alone = replace(config, theta=theta)
        stripes = identify_stripes(x.q, x.k, anchor, alone)
        assert torch.equal(curve.density[i], density(stripes, alone, 90, 90))
    with pytest.raises(ValueError, match="reached of layer 0 must be numbers"):
        choose_thetas(average_curves([{0: x}], config), 0.9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_judged_in_float32(dtype):
    q, k = sample(1).q.to(dtype), sample(1).k.to(dtype)
    found = theta_curve(q, k, AnchorConfig(8, 2), GRID)
    wanted = theta_curve(q.float(), k.float(), AnchorConfig(8, 2), GRID)
    assert torch.equal(found.recall, wanted.recall)
    assert torch.equal(found.density, wanted.density)


def test_shares_are_those_of_the_candidates_that_each_group_keeps():
    x, config = sample(1), AnchorConfig(8, 2)
    curve = theta_curve(x.q, x.k, config, GRID)
    anchor = compute_anchor(x.q, x.k, x.v, config).max
    candidates = [len(group.candidates) for group in groups(config, 90, 90)]
    for i, theta in enumerate(GRID):
        counts = identify_stripes(x.q, x.k, anchor, replace(config, theta=theta)).counts
        wanted = counts.double() / torch.tensor(candidates).clamp(min=1)
        torch.testing.assert_close(curve.shares[i], wanted)


def test_thresholds_out_of_order_are_refused():
    q, k = sample(0).q, sample(0).k
    for thetas in ((), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match="thetas must be ascending"):
            theta_curve(q, k, AnchorConfig(8, 2), thetas)


@pytest.mark.parametrize("per", ["head", "layer"])
def test_the_smallest_threshold_that_reaches_the_recall_is_chosen(per):
    config, target = AnchorConfig(8, 2), 0.9
    fine = tuple(i / 8 for i in range(-24, 40))
    texts = [{0: sample(1), 3: sample(2)}, {0: sample(3, 60), 3: sample(4, 60)}]
    found = choose_thetas(average_curves(texts, replace(config, theta=1.0), fine), target, per)
    assert (found.config, found.target_recall) == (config, target)  # its θ played no part
    for layer in (0, 3):
        curves = [
            theta_curve(text[layer].q, text[layer].k, config, fine, text[layer].scaling)
            for text in texts
        ]
        # The first group, 16 rows, keeps everything.
        beyond = torch.cat([curve.recall[..., 16:] for curve in curves], -1)
        assert all((curve.recall[..., :16] == 1).all() for curve in curves)
        mean = beyond.double().mean((1, 3))  # [T, Hq]
        pairs = [90 * 91 / 2, 60 * 61 / 2]
        kept = sum(n * curve.density[:, 0] for n, curve in zip(pairs, curves, strict=True))
        enough = [
            min(t for t, r in zip(fine, mean[:, h], strict=True) if r >= target) for h in range(4)
        ]
        enough = enough if per == "head" else [max(enough)] * 4
        assert list(found.thetas[layer]) == enough
        for h, theta in enumerate(enough):
            at = fine.index(theta)
            assert found.reached[layer][h] == pytest.approx(mean[at, h].item())
            assert found.density[layer][h] == pytest.approx(kept[at, h].item() / sum(pairs))
    assert any(len(set(row)) > 1 for row in found.thetas.values()) == (per == "head")


def test_a_recall_that_is_met_exactly_is_enough():
    curves = MeanCurves(
        AnchorConfig(16, 2),
        (1.0, 2.0, 4.0),
        {3: torch.tensor([[0.5, 0.75], [0.75, 0.875], [1.0, 1.0]])},
        {3: torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])},
        (40, 90),
    )
    found = choose_thetas(curves, 0.75)
    assert (found.thetas, found.reached) == ({3: (2.0, 1.0)}, {3: (0.75, 0.75)})
    assert found.lengths == (40, 90)
    assert found.density[3] == pytest.approx((0.3, 0.2))
    assert choose_thetas(curves, 0.75, "layer").thetas == {3: (2.0, 2.0)}


def test_each_prompt_of_a_batch_counts_as_a_text():
    one, two, three = sample(1), sample(2), sample(3)
    both = {part: torch.cat([getattr(one, part), getattr(two, part)]) for part in "qkv"}
    together = average_curves([{0: replace(one, **both)}, {0: three}], AnchorConfig(8, 2), GRID)
    apart = average_curves([{0: x} for x in (one, two, three)], AnchorConfig(8, 2), GRID)
    torch.testing.assert_close(together.recall[0], apart.recall[0])
    torch.testing.assert_close(together.density[0], apart.density[0])


def test_what_no_threshold_reaches_gets_the_last_and_says_so():
    curves = average_curves([{0: sample(1)}], AnchorConfig(8, 2), (-9.0, -8.0))
    found = choose_thetas(curves, 0.9999)
    assert set(found.thetas[0]) == {-8.0}
    assert max(found.reached[0]) < 0.9999


def test_a_tail_changes_no_threshold_and_flatters_no_head():
    """With 30 of 90 rows exact, and 16 in the first group, half of a mean is made up."""
    plain, tailed = (
        choose_thetas(average_curves([{0: sample(1)}], AnchorConfig(8, 2, tail=tail)), 0.9)
        for tail in (0, 30)
    )
    assert (plain.thetas, plain.reached) == (tailed.thetas, tailed.reached)
    assert tailed.config.tail == 30
    assert plain.lengths == (90, 90)


def test_a_text_that_every_threshold_keeps_whole_is_refused():
    """Its recall of 1 at the smallest θ would say that the smallest θ is enough."""
    with pytest.raises(
        ValueError, match=r"texts must be longer than a group, 96 tokens.*one of 90"
    ):
        average_curves([{0: sample(1)}], AnchorConfig(16, 6))
    with pytest.raises(ValueError, match=r"96 tokens.*one of 96"):
        average_curves([{0: sample(1, 96)}], AnchorConfig(16, 6))
    with pytest.raises(ValueError, match=r"2048 tokens.*one of 90"):
        average_curves([{0: sample(1)}])


def test_a_layer_that_is_no_plain_causal_attention_is_refused():
    with pytest.raises(ValueError, match="sees a window of 30 keys"):
        average_curves([{0: replace(sample(1), sliding_window=30)}], AnchorConfig(8, 2))


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    captured = [{0: sample(1), 7: sample(2)}]
    found = choose_thetas(average_curves(captured, AnchorConfig(8, 2, init_blocks=2)), 0.9)
    found = replace(found, thetas=found.thetas | {7: (math.inf, 2.0, -math.inf, 1.0)})
    found.save(tmp_path / "thetas.json")
    assert Calibration.load(tmp_path / "thetas.json") == found
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [1], "path must hold a saved calibration"),
        (lambda text: {**text, "more": 1}, "it has .*'more'"),
        (lambda text: {n: x for n, x in text.items() if n != "density"}, "it has"),
        (lambda text: {**text, "target_recall": 1.5}, r"target_recall must be in \(0, 1\)"),
        (lambda text: {**text, "target_recall": True}, "target_recall must be in"),
        (lambda text: {**text, "thetas": {}}, "thetas must hold a threshold"),
        (lambda text: {**text, "thetas": {"0": ["9"] * 4}}, "thetas of layer 0 must be numbers"),
        (lambda text: {**text, "thetas": {"0": [math.nan] * 4}}, "thetas of layer 0 must be"),
        (lambda text: {**text, "thetas": {"0": [True] * 4}}, "thetas of layer 0 must be numbers"),
        (
            lambda text: text | {name: {"0": []} for name in ("thetas", "reached", "density")},
            "thetas must hold a threshold for some head",
        ),
        (lambda text: {**text, "thetas": {"first": [9.0] * 4}}, "invalid literal"),
        (lambda text: {**text, "reached": {"0": [0.9] * 3}}, "reached must have the layers and"),
        (lambda text: {**text, "reached": {"1": [0.9] * 4}}, "reached must have the layers and"),
        (
            lambda text: {**text, "density": {"0": [1.1] * 4}},
            r"density .* numbers in \[0.0, 1.0\]",
        ),
        (lambda text: {**text, "lengths": [90, 80]}, "lengths must be the tokens of the shortest"),
        (lambda text: {**text, "lengths": [90]}, "lengths must be the tokens of the shortest"),
        (
            lambda text: {n: x for n, x in text.items() if n != "lengths"},
            "before recall was that of the rows beyond the first group; calibrate again",
        ),
        (lambda text: {**text, "config": {"block_size": 0}}, "block_size must be an integer"),
        (lambda text: {**text, "config": {"blocks": 8}}, "unexpected keyword argument 'blocks'"),
    ],
)
def test_a_file_that_was_changed_is_refused(tmp_path, change, message, unchecked_annotations):
    path = tmp_path / "thetas.json"
    choose_thetas(average_curves([{0: sample(1)}], AnchorConfig(8, 2)), 0.9).save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        Calibration.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_recall": 1.0}, r"target_recall must be in \(0, 1\), got 1\.0"),
        ({"target_recall": 0.0}, r"target_recall must be in \(0, 1\), got 0\.0"),
        ({"target_recall": math.nan}, "target_recall must be in"),
        ({"target_recall": 0.9, "per": "model"}, "per must be 'head' or 'layer', got 'model'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_thetas(average_curves([{0: sample(1)}], AnchorConfig(8, 2)), **arguments)
    with pytest.raises(ValueError, match="texts must hold at least one captured layer"):
        average_curves([])


def sample(seed, n=90):
    random = torch.Generator().manual_seed(seed)
    strength = torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None, None]
    q = strength * torch.randn(1, 4, n, 16, generator=random)
    k, v = (torch.randn(1, 2, n, 16, generator=random) for _ in range(2))
    return Captured(q, k, v, 0.3)
