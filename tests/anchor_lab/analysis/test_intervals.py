"""The interval of a share covers what it should."""

import math

import pytest

from anchor_lab.analysis.intervals import wilson


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
