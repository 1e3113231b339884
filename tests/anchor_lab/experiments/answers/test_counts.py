"""Counts of answers, and what is said of them."""

import pytest

from anchor_lab.experiments.answers.counts import Counts, count, in_words, shown, together


def test_prompts_are_compared_one_by_one():
    found = count([1, 1, 1, 0, 0], [True, False, False, True, False])
    assert found == Counts(prompts=5, dense=3, ours=2, lost=2, won=1)
    assert together([found, found]) == Counts(10, 6, 4, 4, 2)


@pytest.mark.parametrize(("dense", "ours"), [([], []), ([1], [1, 0])])
def test_prompts_without_a_partner_are_refused(dense, ours):
    with pytest.raises(ValueError, match="ours must have an answer for each of the"):
        count(dense, ours)


@pytest.mark.parametrize(
    ("dense", "ours", "kept"), [(50, 50, True), (50, 49, True), (50, 48, False), (40, 45, True)]
)
def test_two_of_a_hundred_may_be_lost(dense, ours, kept):
    assert Counts(50, dense, ours, 0, 0).keeps() is kept


@pytest.mark.parametrize(("dense", "says"), [(4, False), (5, True), (10, True)])
def test_a_task_says_something_where_dense_attention_answers_half(dense, says):
    assert Counts(10, dense, 0, 0, 0).says_something is says


@pytest.mark.parametrize(
    ("dense", "ours", "apart"), [(8, 7, False), (8, 3, False), (8, 2, True), (2, 8, False)]
)
def test_counts_are_apart_where_the_intervals_of_their_shares_are(dense, ours, apart):
    """Of 8 the interval is 68 to 100 % for 8, 14 to 69 % for 3, and 7 to 59 % for 2."""
    assert Counts(8, dense, ours, 0, 0).apart is apart


def test_a_share_is_shown_with_its_interval():
    assert shown(18, 20) == "18 of 20 (70–97 %)"


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (
            Counts(20, 18, 18, 1, 1),
            "AnchorAttention 18: of these prompts answers are kept (1 are lost and 1 won), but 20 "
            "cannot rule out that 24 % of such prompts are lost.",
        ),
        (
            Counts(8, 8, 8, 0, 0),
            "but 8 cannot rule out that 32 % of such prompts are lost.",
        ),
        (
            Counts(1000, 900, 900, 5, 5),
            "AnchorAttention 900: answers are kept (5 are lost and 5 won).",
        ),
        (Counts(20, 18, 3, 15, 0), "AnchorAttention 3: answers are lost (15 are lost and 0 won)."),
        (Counts(20, 18, 16, 2, 0), "the intervals overlap, so that these prompts do not tell"),
        (Counts(20, 5, 5, 0, 0), "itself finds 5 of 20 (11–47 %): too few for a loss to show."),
    ],
)
def test_counts_are_put_into_words(counts, words):
    assert words in in_words(counts)
