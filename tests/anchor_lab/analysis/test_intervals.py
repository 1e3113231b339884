"""The interval of a share, and that of a mean, cover what they should."""

import math

import pytest
import torch

from anchor_lab.analysis.intervals import bootstrap, wilson


@pytest.mark.parametrize(("share", "trials"), [(0.0, 1), (0.5, 10), (0.9, 50), (1.0, 400)])
def test_the_interval_holds_the_shares_that_its_score_test_accepts(share, trials):
    low, high = wilson(share, trials)

    def deviations(p):
        return abs(share - p) / math.sqrt(p * (1 - p) / trials)

    for end in (low, high):
        if 0 < end < 1:
            assert deviations(end) == pytest.approx(1.96)
    assert low <= share <= high


def test_the_interval_of_the_model_card_is_found_again():
    assert [round(100 * x, 1) for x in wilson(1.0, 250)] == [98.5, 100.0]
    assert [round(100 * x, 1) for x in wilson(249 / 250, 250)] == [97.8, 99.9]


@pytest.mark.parametrize(
    ("share", "trials", "words"),
    [
        (1.1, 5, r"share must be in \[0, 1\], got 1.1"),
        (-0.1, 5, r"share must be in \[0, 1\], got -0.1"),
        (0.5, 0, "trials must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(share, trials, words):
    with pytest.raises(ValueError, match=words):
        wilson(share, trials)


def test_the_bootstrap_of_one_normal_sample_is_its_standard_error():
    sample = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = bootstrap([sample.tolist()])
    error = 1.96 * sample.std(correction=0).item() / 20
    assert low == pytest.approx(sample.mean().item() - error, abs=0.02)
    assert high == pytest.approx(sample.mean().item() + error, abs=0.02)


def test_parts_count_alike_and_are_not_mixed():
    # Parts without spread have none together, whatever lies between them and however long each is.
    assert bootstrap([[1.0] * 3, [5.0] * 300]) == (3.0, 3.0)
    sample = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one = bootstrap([sample.tolist()])
    two = bootstrap([sample.tolist(), (10 + sample).tolist()])
    assert two[1] - two[0] == pytest.approx((one[1] - one[0]) / math.sqrt(2), rel=0.1)
    assert two[0] < sample.mean().item() + 5 < two[1]


def test_a_bootstrap_repeats_and_needs_numbers():
    sample = [[float(number) for number in range(30)]]
    assert bootstrap(sample) == bootstrap(sample)
    assert bootstrap(sample) != bootstrap(sample, seed=1)
    for samples in ([], [[1.0], []]):
        with pytest.raises(ValueError, match="samples must hold a number in each part"):
            bootstrap(samples)
