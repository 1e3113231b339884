"""Times: what was measured is called measured, what is modelled says so, no length is another."""

from dataclasses import astuple

import pytest

from anchor_lab.experiments.verdict import times
from anchor_lab.experiments.verdict.times import Kind, between, clock_of
from tests.anchor_lab.experiments.verdict import results

N = 8192


@pytest.fixture(scope="module")
def clock():
    return clock_of(results.side_by_side(), results.crossover(), N)


def test_the_unit_is_dense_attention_of_the_same_table(clock):
    assert clock.dense_ms == results.DENSE_MS[N]
    assert clock.dense == {"cuDNN": 1.0, "FlashAttention-4": 0.9}
    # crossover's calls, dense among them, take twice as long here: a share is a share
    assert clock.ours[0] == [(0.1, pytest.approx(0.55)), (0.5, pytest.approx(0.75))]


def test_the_line_goes_through_the_runs(clock):
    assert clock.line.start == pytest.approx(0.1)
    assert clock.line.rate == pytest.approx(0.8)
    assert clock.line.runs == 3
    assert clock.line.lowest == pytest.approx(times.whole_tiles(0.2, N))
    assert clock.line.highest == pytest.approx(times.whole_tiles(1.0, N))
    assert clock.line.worst < 1e-9


def test_the_line_says_how_far_it_is_off_and_for_whom():
    slow = results.of_blocks(N, "FlashPrefill", 0.3, factor=2.0)
    clock = clock_of(results.side_by_side(slow), None, N)
    assert clock.missed == "FlashPrefill"
    assert clock.line.worst > clock.line.error


@pytest.mark.parametrize("kept", [0.11, 0.3, 0.49])
def test_ours_is_measured_between_the_shares_that_were(clock, kept):
    found = clock.of("AnchorAttention", results.density_for(kept), 0.99, 0.01)
    assert astuple(found) == (pytest.approx(results.our_time(kept)), Kind.MEASURED)


@pytest.mark.parametrize("kept", [0.0, 0.09, 0.51, 1.0])
def test_ours_has_no_time_beyond_them(clock, kept):
    assert clock.of("AnchorAttention", results.density_for(kept), 0.5, 0.0) is None


def test_a_tail_of_ours_is_measured_as_a_call_of_its_own(clock):
    density = results.density_for(0.3)
    assert clock.of("AnchorAttention", density, 0.5, 0.0, 512).share == pytest.approx(0.85)
    assert clock.of("AnchorAttention", density, 0.5, 0.0, 128) is None


def test_a_method_whose_blocks_were_run_is_half_measured(clock):
    at = times.whole_tiles(0.4, N)
    found = clock.of("XAttention", 0.01, at, 0.05)
    assert astuple(found) == (
        pytest.approx(results.block_time(at) + 0.05),
        Kind.CHOICE_MODELLED,
    )


@pytest.mark.parametrize(
    ("executed", "kind"),
    [(0.1, Kind.DRAWN_OUT), (0.9, Kind.MODELLED), (1.2, Kind.DRAWN_OUT)],
)
def test_beyond_its_own_runs_it_is_modelled(clock, executed, kind):
    found = clock.of("XAttention", executed, executed, 0.0)
    assert found.kind == kind
    assert found.share == pytest.approx(results.block_time(executed))


def test_beyond_its_own_runs_the_line_meets_the_nearest():
    slow = [results.of_blocks(N, "FlashPrefill", share, factor=2.0) for share in (0.3, 0.5)]
    clock = clock_of(results.side_by_side(*slow), None, N)
    end = times.whole_tiles(0.3, N)
    inside, outside = (clock.of("FlashPrefill", 0.3, end + e, 0.0) for e in (0.0, -1e-6))
    assert inside.kind == Kind.CHOICE_MODELLED
    assert outside.kind == Kind.MODELLED
    assert outside.share == pytest.approx(inside.share, rel=1e-4)


def test_a_method_without_runs_is_modelled_by_its_tiles_and_never_by_its_pairs(clock):
    found = clock.of("PBSAttention", 0.1, 0.5, 0.1)
    assert found.kind == Kind.MODELLED
    assert found.share == pytest.approx(results.block_time(0.5) + 0.1)


def test_choosing_with_four_bits_takes_longer_than_its_count_where_there_are_eight(clock):
    few, more = (clock.of(name, 0.5, 0.5, 0.1).share for name in ("PBSAttention", "SALE"))
    assert more - few == pytest.approx(0.1)


def test_a_tail_of_others_is_modelled(clock):
    at = times.whole_tiles(0.4, N)
    without, tailed = (clock.of("XAttention", 0.4, at, 0.0, tail) for tail in (0, 512))
    assert tailed.kind == Kind.MODELLED
    assert tailed.share - without.share == pytest.approx(2 * 512 / N, rel=0.04)


@pytest.mark.parametrize("name", ["TokenTopK", "StripeOracle", "PooledTopK", "PooledMaximum"])
def test_who_saves_nothing_or_has_no_kernel_has_no_time(clock, name):
    assert clock.of(name, 0.5, 0.5, 0.0) is None
    assert clock.of("AnchorBlocks", 0.5, 0.5, 0.0) is not None


def test_lengths_are_kept_apart():
    tables = results.side_by_side(), results.crossover()
    both = {n: clock_of(*tables, n) for n in results.DENSE_MS}
    assert both[32_768].dense_ms == 10 * both[N].dense_ms
    assert both[32_768].ours[0] == [(0.1, pytest.approx(0.55)), (0.5, pytest.approx(0.75))]
    assert both[32_768].line.runs == both[N].line.runs == 3
    density = results.density_for(0.3)  # of 8192: of 32 768 it is another share of candidates
    ours = [clock.of("AnchorAttention", density, 0.5, 0.0) for clock in both.values()]
    assert ours[0].share != ours[1].share
    assert clock_of(*tables, 16_384) is None


def test_without_runs_or_calls_there_are_no_times():
    assert clock_of(None, results.crossover(), N) is None
    dense = results.timed(N, "dense", "cuDNN", 1.0, 2.0)
    clock = clock_of({"settings": {}, "rows": [dense]}, None, N)
    assert clock.line is None
    assert clock.of("XAttention", 0.5, 0.5, 0.0) is None
    assert clock.of("AnchorAttention", 0.5, 0.5, 0.0) is None


def test_other_heads_and_failures_are_no_runs(clock):
    wide = {**results.of_blocks(N, "XAttention", 0.3, factor=9.0), "head_dim": 128}
    failed = {**results.of_blocks(N, "XAttention", 0.4), "status": "error"}
    del failed["ms"]
    other = {**results.of_blocks(N, "XAttention", 0.5, factor=9.0), "way": "FlexAttention"}
    assert clock_of(results.side_by_side(wide, failed, other), results.crossover(), N) == clock


@pytest.mark.parametrize("x", [0.999, 3.001])
def test_nothing_is_read_off_beyond_the_ends(x):
    points = [(1.0, 10.0), (2.0, 30.0), (3.0, 20.0)]
    assert between(points, x) is None
    assert [between(points, x) for x in (1.0, 1.5, 3.0)] == [10.0, 20.0, 20.0]
    assert between([], 1.0) is None


def test_always_kept_and_tails_are_pairs_that_were_counted():
    n = 4096  # two groups: the first dense, of the second its window and 128 first keys
    every = n * (n + 1) // 2
    window = 2048 * 2049 // 2
    assert times.always_kept(n) == pytest.approx((2 * window + 2048 * 128) / every)
    assert times.tail_cost(1, n) == pytest.approx(n / every)
    assert times.tail_cost(n, n) == times.tail_cost(2 * n, n) == 1


def test_times_at_equal_recall_have_the_choice_of_others_and_no_oracle():
    rows = [
        results.timed(N, "AnchorAttention", "tail 0", 0.5, 1.0, goal="recall 0.95"),
        results.timed(N, "AnchorAttention", "tail 512", 0.5, 3.0, goal="recall 0.95"),
        results.of_blocks(N, "XAttention", 0.3, "recall 0.95", scored=0.25),
        results.of_blocks(N, "BlockTopK", 0.1, "recall 0.95", scored=0.5),
    ]
    tables = results.side_by_side(), results.side_by_side(*rows)
    clock = clock_of(tables[0], None, N)
    found = times.equal_recall({**tables[1], "rows": rows}, clock, N)
    own = 2 * results.block_time(times.whole_tiles(0.3, N))
    assert found == {"0.95": {"AnchorAttention": 1.0, "XAttention": pytest.approx(own + 0.25 * 2)}}
    assert times.equal_recall(tables[1], clock, 32_768).get("0.95") is None
