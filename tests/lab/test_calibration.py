"""All thresholds at once give what each gives alone, and calibration picks the smallest."""

import math

import pytest
import torch
from hypothesis import given, settings

from anchor_ref import AnchorConfig, compute_anchor, identify_stripes
from anchor_ref.activations import Captured
from anchor_ref.lab import Calibration, calibrate, theta_curve
from anchor_ref.measure import density, recall
from tests.brute_force import cases

GRID = (-3.0, -1.0, 0.0, 0.7, 2.0, 5.0, 12.0)


@settings(max_examples=40)
@given(case=cases(dtypes=(torch.float64,)))
def test_each_threshold_gives_what_it_gives_alone(case):
    q, k, v, config, scale = case
    curve = theta_curve(q, k, config, GRID, scale)
    anchor = compute_anchor(q, k, v, config, scale).max
    for i, theta in enumerate(GRID):
        alone = AnchorConfig(
            config.block_size, config.step, theta, config.init_blocks, config.window_blocks
        )
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


def test_thresholds_out_of_order_are_refused():
    q, k = sample(0).q, sample(0).k
    for thetas in ((), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match="thetas must be ascending"):
            theta_curve(q, k, AnchorConfig(8, 2), thetas)


@pytest.mark.parametrize("per", ["head", "layer"])
def test_the_smallest_threshold_that_reaches_the_recall_is_chosen(per):
    config, target = AnchorConfig(8, 2), 0.9
    texts = [{0: sample(1), 3: sample(2)}, {0: sample(3), 3: sample(4)}]
    found = calibrate(texts, target, config, per=per, thetas=GRID)
    for layer in (0, 3):
        curves = [
            theta_curve(text[layer].q, text[layer].k, config, GRID, text[layer].scaling).recall
            for text in texts
        ]
        mean = torch.cat(curves, -1).mean((1, 3))  # [T, Hq]
        enough = [
            min(t for t, r in zip(GRID, mean[:, h], strict=True) if r >= target) for h in range(4)
        ]
        enough = enough if per == "head" else [max(enough)] * 4
        assert list(found.thetas[layer]) == enough
        for h, theta in enumerate(enough):
            expected = mean[GRID.index(theta), h].item()
            assert found.reached[layer][h] == pytest.approx(expected)
    assert any(len(set(row)) > 1 for row in found.thetas.values()) == (per == "head")


def test_what_no_threshold_reaches_gets_the_last_and_says_so():
    found = calibrate([{0: sample(1)}], 0.9999, AnchorConfig(8, 2), thetas=(-9.0, -8.0))
    assert set(found.thetas[0]) == {-8.0}
    assert max(found.reached[0]) < 0.9999


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    found = calibrate([{0: sample(1), 7: sample(2)}], 0.9, AnchorConfig(8, 2, init_blocks=2))
    found.save(tmp_path / "thetas.json")
    assert Calibration.load(tmp_path / "thetas.json") == found
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="path must hold a saved calibration"):
        Calibration.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_recall": 1.0}, r"target_recall must be in \(0, 1\), got 1\.0"),
        ({"target_recall": math.nan}, "target_recall must be in"),
        ({"target_recall": 0.9, "per": "model"}, "per must be 'head' or 'layer', got 'model'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        calibrate([{0: sample(1)}], config=AnchorConfig(8, 2), **arguments)
    with pytest.raises(ValueError, match="texts must hold at least one captured layer"):
        calibrate([], 0.9)


def sample(seed):
    random = torch.Generator().manual_seed(seed)
    strength = torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None, None]
    q = strength * torch.randn(1, 4, 90, 16, generator=random)
    k, v = (torch.randn(1, 2, 90, 16, generator=random) for _ in range(2))
    return Captured(q, k, v, 0.25)
