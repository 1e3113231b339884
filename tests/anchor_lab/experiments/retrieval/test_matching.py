"""Densities are estimated from few rows, and met where a sweep can meet them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_lab.experiments.retrieval.matching import between, estimate_density, match_density
from anchor_lab.methods import (
    AnchorAttention,
    Dense,
    DifferenceOracle,
    FlexPrefill,
    StreamingLLM,
    TokenTopCdf,
    TokenTopK,
)
from anchor_models import Captured
from anchor_ref import AnchorConfig


def layers(n, count=1, seed=0, batch=1):
    random = torch.Generator().manual_seed(seed)
    draw = [[torch.randn(batch, h, n, 8, generator=random) for h in (2, 1)] for _ in range(count)]
    return [Captured(q, k, k, 8**-0.5) for q, k in draw]


def exact(method, inputs):
    shares = []
    for x in inputs:
        mask = method.select(x.q, x.k, x.scaling).to_mask()
        batch, heads, n, _ = mask.shape
        shares.append(mask.sum().item() / (batch * heads * n * (n + 1) / 2))
    return sum(shares) / len(shares)


def test_of_more_rows_the_middle_of_each_part_is_looked_at():
    """The share that a window keeps falls from row to row: first rows would keep too much, and
    of four blocks the third keeps a little less than all of them."""
    n, window = 8192, 512
    kept = sum(min(row + 1, window) for row in range(n)) / (n * (n + 1) / 2)
    assert 0.97 * kept < estimate_density(StreamingLLM(0, window), layers(n)) < kept


@settings(max_examples=8)
@given(n=st.sampled_from([1, 100, 128, 300, 700]), k=st.integers(1, 200), seed=st.integers(0, 9))
def test_the_estimate_is_exact_up_to_2048_tokens(n, k, seed):
    inputs = layers(n, count=2, seed=seed)
    assert estimate_density(TokenTopK(k), inputs) == pytest.approx(exact(TokenTopK(k), inputs))


def test_2048_tokens_are_the_last_that_are_counted_whole():
    """A block of one row more: from there on some stand for others."""
    method = StreamingLLM(0, 300)
    for n, whole in ((2048, True), (2049, False)):
        found = estimate_density(method, layers(n))
        assert (found == pytest.approx(exact(method, layers(n)))) == whole


def test_each_layer_prompt_and_head_counts_at_its_own_scale():
    inputs = [
        replace(x, scaling=scaling)
        for x, scaling in zip(layers(150, count=2, batch=2), (0.1, 2.0), strict=True)
    ]
    method = TokenTopCdf(0.5)
    assert estimate_density(method, inputs) == pytest.approx(exact(method, inputs))
    assert exact(method, inputs[:1]) > 2 * exact(method, inputs[1:]), "the layers must differ"


def test_sampled_rows_of_a_longer_prompt_come_near():
    inputs = layers(4000)
    method = StreamingLLM(100, 900)
    assert estimate_density(method, inputs) == pytest.approx(exact(method, inputs), rel=0.05)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.9])
def test_a_density_on_the_way_is_met(target):
    inputs = layers(500)
    found, density = match_density(DifferenceOracle.sweep(), inputs, target)
    assert density == estimate_density(found, inputs)
    assert density == pytest.approx(target, abs=0.03)


def test_the_nearest_is_taken_where_steps_are_wide():
    sweep = [StreamingLLM(0, window) for window in (1, 200)]
    inputs = layers(200)
    found, density = match_density(sweep, inputs, 0.4)
    every = [estimate_density(StreamingLLM(0, window), inputs) for window in range(1, 201)]
    assert abs(density - 0.4) <= 2 * min(abs(each - 0.4) for each in every) + 0.02
    assert 1 < found.window < 200


def test_of_all_that_was_looked_at_the_nearest_is_taken():
    """The first halving meets the target, and those after it lead away."""
    sweep, inputs = [StreamingLLM(0, window) for window in (1, 199)], layers(200)
    target = estimate_density(StreamingLLM(0, 100), inputs)
    assert match_density(sweep, inputs, target) == (StreamingLLM(0, 100), target)


def test_a_sweep_that_does_not_reach_gives_its_end_and_says_so():
    inputs = layers(300)
    sweep = [StreamingLLM(0, window) for window in (40, 60, 80)]
    assert match_density(sweep, inputs, 0.9)[0].window == 80
    assert match_density(sweep, inputs, 0.01)[0].window == 40
    assert match_density(sweep, inputs, 0.01)[1] > 0.01
    assert match_density(Dense.sweep(), inputs, 0.4) == (Dense(), 1.0)
    assert match_density(Dense.sweep(), inputs, 1.0) == (Dense(), 1.0)


def test_what_lies_between_mixes_numbers_and_keeps_the_rest(unchecked_annotations):
    mixed = between(FlexPrefill(0.5, min_budget=128), FlexPrefill(0.9, min_budget=1024), 0.25)
    assert mixed == FlexPrefill(0.6, min_budget=352)
    low, high = (AnchorAttention(AnchorConfig(8, 2, theta=theta)) for theta in (1.0, 3.0))
    assert between(low, high, 0.5) == AnchorAttention(AnchorConfig(8, 2, theta=2.0))
    assert between(low, high, 0.0) == low
    assert between(low, high, 1.0) == high
    assert between(TokenTopK(1), TokenTopK(4), 0.9) == TokenTopK(4)  # 3.7, rounded
    assert between(DifferenceOracle(1), DifferenceOracle(2.0), 0.5) == DifferenceOracle(1.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], 0.5), "sweep must hold at least one configuration, got none"),
        ((StreamingLLM.sweep(), 0.0), r"target must be in \(0, 1\], got 0.0"),
        ((StreamingLLM.sweep(), 1.5), r"target must be in \(0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    sweep, target = arguments
    with pytest.raises(ValueError, match=words):
        match_density(sweep, layers(10), target)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 2.0"):
        between(StreamingLLM(), StreamingLLM(), 2.0)
