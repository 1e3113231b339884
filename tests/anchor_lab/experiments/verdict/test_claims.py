"""Claims: held only where every comparison is won, and by the numbers of the right side."""

import pytest

from anchor_lab.experiments.verdict import claims
from anchor_lab.experiments.verdict.claims import HELD, NOT_HELD, NOT_TESTABLE, fewer_pairs
from anchor_lab.experiments.verdict.times import clock_of
from anchor_lab.methods import METHODS
from tests.anchor_lab.experiments.verdict import results

N = 8192
OURS, OTHER = "AnchorAttention", "XAttention"


@pytest.mark.parametrize(
    ("won", "mark"),
    [
        ([True], HELD),
        ([True, True], HELD),
        ([True, False], NOT_HELD),
        ([False], NOT_HELD),
        ([], NOT_TESTABLE),
    ],
)
def test_one_lost_comparison_is_enough(won, mark):
    assert claims.decide(won) == mark


@pytest.mark.parametrize(
    ("ours", "other", "mark"),
    [
        ((0.1, 0.2, 0.3), (0.2, 0.3, 0.4), HELD),
        ((0.2, 0.3, 0.4), (0.1, 0.2, 0.3), NOT_HELD),
        ((0.1, 0.2, 0.5), (0.2, 0.3, 0.4), NOT_HELD),  # the last recall alone
        ((0.1, 0.2, 0.4), (0.2, 0.3, 0.4), NOT_HELD),  # as many are not fewer
    ],
)
def test_fewer_pairs_for_every_recall(ours, other, mark):
    rows = [*results.curve(OURS, *ours), *results.curve(OTHER, *other)]
    found = fewer_pairs("It is", rows, N, OURS, (OTHER, "MoBA"))
    assert found.mark == mark
    assert f"0.95: {OURS} {ours[0]:.3f}, {OTHER} {other[0]:.3f}" in found.numbers
    assert found.where.startswith("8\u202f192 tokens")


def test_a_recall_beyond_our_own_sweep_decides_nothing():
    """Ours ends at .98; that another method reaches .99, with nearly all pairs, is no loss."""
    rows = [*results.curve(OURS, 0.1, 0.2, 0.3)[:3], *results.curve(OTHER, 0.3, 0.4, 0.97)]
    found = fewer_pairs("", rows, N, OURS, (OTHER,), ("SALE",))
    assert found.mark == HELD
    assert found.numbers == (
        f"0.95: {OURS} 0.100, {OTHER} 0.300; 0.98: {OURS} 0.200, {OTHER} 0.400; "
        f"sweep ends before 0.99: {OURS} (0.980)"
    )


def test_a_recall_beyond_another_s_sweep_is_not_won():
    """The other is ahead where it was swept; that it ends there is no gain of ours."""
    rows = [*results.curve(OURS, 0.2, 0.3, 0.4), *results.curve(OTHER, 0.1, 0.2, 0.3)[:2]]
    found = fewer_pairs("", rows, N, OURS, (OTHER,))
    assert found.mark == NOT_HELD
    assert found.numbers == (
        f"0.95: {OURS} 0.200, {OTHER} 0.100; sweep ends before 0.99: {OTHER} (0.950)"
    )


@pytest.mark.parametrize(("pairs", "mark"), [(0.2, HELD), (0.04, NOT_HELD), (0.05, NOT_HELD)])
def test_who_was_swept_to_none_of_the_recalls_is_compared_where_its_sweep_ends(pairs, mark):
    ours = results.curve(OURS, 0.1, 0.2, 0.3)  # .9 with .05 of the pairs
    rows = [*ours, results.found(OTHER, "only", pairs, 0.9)]
    found = fewer_pairs("", rows, N, OURS, (OTHER,))
    assert found.mark == mark
    assert f"0.900: {OURS} 0.050, {OTHER} {pairs:.3f}" in found.numbers
    turned = fewer_pairs("", rows, N, OTHER, (OURS,))
    assert turned.mark == (HELD if pairs < 0.05 else NOT_HELD)


def test_a_later_method_is_not_ahead_beyond_our_sweep():
    rows = [
        *results.curve(OURS, 0.1, 0.2, 0.3)[:3],
        *results.curve(OTHER, 0.3, 0.4, 0.5),
        *results.curve("SALE", 0.2, 0.3, 0.4),
    ]
    found = fewer_pairs("", rows, N, OURS, (OTHER,), ("SALE",))
    assert "published after it" not in found.numbers


def test_a_text_whose_sweep_ends_before_names_nobody():
    rows = [
        *results.curve(OURS, 0.1, 0.2, 0.3),
        *results.curve(OTHER, 0.3, 0.4, 0.5),
        *[{**row, "recall_mean": row["recall_mean"] - 0.02} for row in
          results.curve(OURS, 0.1, 0.2, 0.3, text="code")],
        *results.curve(OTHER, 0.3, 0.4, 0.5, text="code"),
    ]  # fmt: skip
    found = fewer_pairs("", rows, N, OURS, (OTHER,))
    assert found.mark == HELD
    assert "but in" not in found.numbers  # in code ours ends at .97


def test_the_best_of_the_others_decides():
    rows = [
        *results.curve(OURS, 0.2, 0.3, 0.4),
        *results.curve(OTHER, 0.3, 0.4, 0.5),
        *results.curve("FlexPrefill", 0.1, 0.4, 0.5),
    ]
    found = fewer_pairs("", rows, N, OURS, (OTHER, "FlexPrefill"))
    assert found.mark == NOT_HELD
    assert "FlexPrefill 0.100" in found.numbers


def test_a_text_in_which_it_does_not_hold_is_named():
    rows = [
        *results.curve(OURS, 0.1, 0.2, 0.3),
        *results.curve(OTHER, 0.3, 0.4, 0.5),
        *results.curve(OURS, 0.3, 0.4, 0.5, text="code"),
        *results.curve(OTHER, 0.2, 0.5, 0.6, text="code"),
    ]
    found = fewer_pairs("", rows, N, OURS, (OTHER,))
    assert found.mark == HELD  # .2 beside .25 in the mean
    assert found.numbers.endswith("but in code, 0.95: fewer by XAttention")


def test_later_methods_decide_nothing_and_are_named():
    rows = [
        *results.curve(OURS, 0.2, 0.3, 0.4),
        *results.curve(OTHER, 0.3, 0.4, 0.5),
        *results.curve("SALE", 0.1, 0.2, 0.3),
        *results.curve("BFLA", 0.5, 0.6, 0.7),
    ]
    found = fewer_pairs("", rows, N, OURS, (OTHER,), ("SALE", "BFLA"))
    assert found.mark == HELD
    assert found.numbers.endswith("published after it and with fewer: SALE")


def test_a_length_is_decided_by_its_own_rows():
    rows = [
        *results.curve(OURS, 0.1, 0.2, 0.3),
        *results.curve(OTHER, 0.2, 0.3, 0.4),
        *results.curve(OURS, 0.2, 0.3, 0.4, n=32_768),
        *results.curve(OTHER, 0.1, 0.2, 0.3, n=32_768),
    ]
    marks = [fewer_pairs("", rows, n, OURS, (OTHER,)).mark for n in (N, 32_768, 4096)]
    assert marks == [HELD, NOT_HELD, NOT_TESTABLE]


@pytest.mark.parametrize(
    ("ours", "other", "mark"),
    [(0.1, 0.2, HELD), (0.2, 0.1, NOT_HELD), (0.1, 0.1, NOT_HELD)],
)
def test_less_loss_for_as_many_pairs(ours, other, mark):
    rows = [
        results.lost(name, label, density, loss)
        for name, loss in ((OURS, ours), ("AnchorBlocks", other))
        for label, density in (("theta=9", 0.4), ("theta=12", 0.6))
    ]
    found = claims.less_lost("", results.losses(*rows), OURS, "AnchorBlocks")
    assert found.mark == mark
    assert f"60 % of the pairs: {OURS} {ours:.4f}, AnchorBlocks {other:.4f}" in found.numbers


def test_the_interval_is_that_of_the_difference():
    """Both vary ten times more than they differ, and always together."""
    rows = [results.lost(name, "theta=12", 0.6, 0.0) for name in (OURS, "AnchorBlocks")]
    rows[0]["runs"] = {"prose": [0.1, 0.2, 0.3, 0.4], "code": [0.1, 0.5, 0.1, 0.5]}
    rows[1]["runs"] = {text: [x + 0.01 for x in runs] for text, runs in rows[0]["runs"].items()}
    assert claims.less_lost("", results.losses(*rows), OURS, "AnchorBlocks").mark == HELD
    assert claims.less_lost("", results.losses(*rows), "AnchorBlocks", OURS).mark == NOT_HELD


def test_losses_that_are_not_there_decide_nothing():
    assert claims.less_lost("", None, OURS, "AnchorBlocks").mark == NOT_TESTABLE
    only = results.losses(results.lost(OURS, "theta=12", 0.6, 0.1))
    assert claims.less_lost("", only, OURS, "AnchorBlocks").mark == NOT_TESTABLE


def timed_at(ours_ms, share, scored, n=N):
    return results.side_by_side(
        results.timed(n, OURS, "tail 0", 0.5, ours_ms, goal="recall 0.95"),
        results.of_blocks(n, OTHER, share, "recall 0.95", scored=scored),
    )


@pytest.mark.parametrize(
    ("ours_ms", "scored", "times", "mark"),
    [
        (0.9, 0.0, 1.0, HELD),  # the blocks of .45 of the pairs take .95 ms
        (1.0, 0.0, 1.0, NOT_HELD),
        (1.0, 0.25, 1.0, HELD),  # with half a millisecond of choosing
        (0.9, 0.0, 1.44, NOT_HELD),
        (0.5, 0.0, 1.44, HELD),
    ],
)
def test_less_time_for_the_same_recall(ours_ms, scored, times, mark):
    table = timed_at(ours_ms, 0.45, scored)
    clock = clock_of(table, None, N)
    assert claims.less_time("", table, clock, N, (OTHER,), times).mark == mark
    assert claims.less_time("", table, clock, N, ("MoBA",), times).mark == NOT_TESTABLE
    assert claims.less_time("", table, clock, 32_768, (OTHER,), times).mark == NOT_TESTABLE
    assert claims.less_time("", None, None, N, (OTHER,), times).mark == NOT_TESTABLE


def test_methods_are_earlier_or_later_by_their_papers():
    earlier = {name for name in METHODS if claims.is_earlier(name)}
    assert earlier == {
        "StreamingLLM", "VerticalSlash", "FlexPrefill", "XAttention", "SpargeAttention", "MoBA",
    }  # fmt: skip
    assert claims.arxiv_of("SALE") == "2505.24179"


def test_every_claim_is_decided_at_both_lengths_also_by_nothing():
    found = claims.all_claims({}, {N: None, 32_768: None})
    assert {one.mark for one in found} == {NOT_TESTABLE}
    pairs = [one.words for one in found if "pairs for a recall" in one.where]
    assert all(pairs.count(words) == 2 for words in pairs)


def test_the_claims_of_the_paper_are_about_ours():
    rows = [
        *results.curve(OURS, 0.1, 0.2, 0.3),
        *results.curve(OTHER, 0.2, 0.3, 0.4),
        *results.curve("PooledTopK", 0.2, 0.3, 0.4),
        *results.curve("PooledTopCdf", 0.05, 0.3, 0.4),
        *results.curve("AnchorBlocks", 0.2, 0.3, 0.4),
        *results.curve("DifferenceOracle", 0.1, 0.2, 0.3),
        *results.curve("TokenTopK", 0.2, 0.3, 0.4),
        *results.curve("TokenTopCdf", 0.2, 0.3, 0.4),
        *results.curve("StripeOracle", 0.2, 0.3, 0.4),
        *results.curve("BlockTopK", 0.2, 0.3, 0.4),
        *results.curve("BlockTopCdf", 0.1, 0.3, 0.4),
    ]
    found = claims.all_claims({"rivals": results.rivals(*rows)}, {N: None})
    marks = {one.words: one.mark for one in found if "pairs for a recall" in one.where}
    assert marks == {
        "Higher recall at equal sparsity": HELD,
        "Difference test over top-k and top-cdf": NOT_HELD,
        "Difference test over top-k and top-cdf, with exact scores": HELD,
        "Stripes over blocks": HELD,
        "Stripes over blocks, with exact scores": NOT_HELD,
    }
