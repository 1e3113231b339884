"""Who stands where: by time and by total cost, by loss and by recall."""

import pytest

from anchor_lab.experiments.verdict import ahead
from anchor_lab.experiments.verdict.times import Kind, clock_of
from tests.anchor_lab.experiments.verdict import results

N = 8192


@pytest.fixture(scope="module")
def clock():
    return clock_of(results.side_by_side(), results.crossover(), N)


def losses():
    """PBSAttention keeps few pairs, but scores and multiplies many; BFLA the other way round."""
    return [
        results.lost("Dense", "default", 1.0, 2.0),
        results.lost("TokenTopK", "k", 0.1, 0.0),
        results.lost("PBSAttention", "few", 0.1, 0.2, executed=0.3, scored=0.2),
        results.lost("PBSAttention", "many", 0.2, 0.0, executed=0.5, scored=0.2),
        results.lost("BFLA", "few", 0.4, 0.3, executed=0.4),
        results.lost("BFLA", "many", 0.8, 0.1, executed=0.8),
        results.lost("AnchorAttention", "theta=9", results.density_for(0.2), 0.5, 0.4),
        results.lost("AnchorAttention", "theta=12", results.density_for(0.4), 0.4, 0.6),
        results.lost("AnchorAttention", "theta=15", results.density_for(0.9), 0.0, 0.9),
    ]


def test_a_line_gets_the_time_of_its_tiles_and_choice(clock):
    by_label = {(x["method"], x["configuration"]): x for x in ahead.timed(losses(), clock)}
    assert {name for name, _ in by_label} == {"PBSAttention", "BFLA", "AnchorAttention"}
    one = by_label["PBSAttention", "few"]
    assert one["time"] == pytest.approx(results.block_time(0.3) + 0.2)
    assert one["kind"] == Kind.MODELLED
    assert by_label["AnchorAttention", "theta=12"]["kind"] == Kind.MEASURED
    assert "time" not in by_label["AnchorAttention", "theta=15"]  # beyond what was measured
    assert all("time" not in x for x in ahead.timed(losses(), None))


def test_losses_are_read_off_at_as_much_time(clock):
    lines = ahead.timed(losses(), clock)
    # PBSAttention from .54 to .7, ours from .6 to .7, BFLA from .42 to .74
    found = ahead.losses_ranking(lines, "time", 0.62)
    assert found.found["PBSAttention"].value == pytest.approx(0.1)
    assert found.found["AnchorAttention"].value == pytest.approx(0.48)
    assert found.found["BFLA"].value == pytest.approx(0.3 - 0.2 * 0.2 / 0.32)
    assert found.ranked == ["PBSAttention", "BFLA", "AnchorAttention"]
    assert found.place == 3
    assert [found.found[x].kind for x in found.ranked] == [
        Kind.MODELLED,
        Kind.MODELLED,
        Kind.MEASURED,
    ]


def test_total_cost_is_what_is_multiplied_and_scored(clock):
    lines = ahead.timed(losses(), clock)
    found = ahead.losses_ranking(lines, "total_cost", 0.45)
    assert found.found["PBSAttention"] is None  # .5 at least, though it keeps a tenth
    assert found.found["BFLA"].value == pytest.approx(0.3 - 0.2 * 0.05 / 0.4)
    assert found.found["BFLA"].kind is None
    assert found.ranked == ["BFLA", "AnchorAttention"]


def test_who_spends_more_has_no_place_and_few_tell_nothing(clock):
    found = ahead.losses_ranking(ahead.timed(losses(), clock), "time", 0.45)
    assert found.found["AnchorAttention"] is None
    assert found.place is None
    assert found.ranked == ["BFLA"]
    assert not found.tells  # one of three
    assert ahead.losses_ranking(ahead.timed(losses(), clock), "time", 0.62).tells


def test_the_worse_of_two_times_is_told(clock):
    lines = [
        results.lost("XAttention", "its own runs", 0.4, 0.2),
        results.lost("XAttention", "beyond", 0.9, 0.1),
    ]
    timed = ahead.timed(lines, clock)
    assert [x["kind"] for x in timed] == [Kind.CHOICE_MODELLED, Kind.MODELLED]
    assert ahead.kind_at(timed, "XAttention", "time", 0.6) == Kind.MODELLED
    assert ahead.kind_at(timed, "XAttention", "total_cost", 0.6) is None


def test_ahead_means_beyond_both_intervals():
    lines = [
        results.lost("BFLA", "one", 0.3, 0.1),
        results.lost("PBSAttention", "one", 0.3, 0.1002),
        results.lost("MoBA", "one", 0.3, 0.2),
    ]
    found = ahead.losses_ranking(ahead.timed(lines, None), "total_cost", 0.5)
    assert found.first == ["BFLA", "PBSAttention"]


def test_recall_ranks_the_other_way_round(clock):
    rows = [
        *results.curve("PBSAttention", 0.4, 0.5, 0.6),
        *results.curve("BFLA", 0.5, 0.6, 0.7),
        *results.curve("PooledTopK", 0.1, 0.2, 0.3),
        *results.curve("PBSAttention", 0.01, 0.02, 0.03, n=32_768),
    ]
    lines = ahead.timed(ahead.recall_lines(rows, N), clock)
    found = ahead.recall_ranking(lines, "total_cost", 0.5)
    assert found.found["PBSAttention"].value == pytest.approx(0.98)
    assert found.ranked == ["PBSAttention", "BFLA"]  # PooledTopK is a variant, and finds more
    assert next(iter(found.found)) == "PooledTopK"
    by_time = ahead.recall_ranking(lines, "time", results.block_time(0.5))
    assert by_time.found["PBSAttention"].value == pytest.approx(0.98)
    assert "PooledTopK" not in by_time.found  # nobody knows its time
    assert ahead.recall_lines(rows, 4096) == []


def test_losses_of_another_length_are_not_of_this_one():
    made = {"losses": results.losses(*losses(), tokens=32_768)}
    assert ahead.lines_of(made, N) == ([], [])
    assert len(ahead.lines_of(made, 32_768)[0]) == len(losses())
    both = {"losses": results.losses(losses()[0]), "long losses": made["losses"]}
    assert [len(ahead.lines_of(both, n)[0]) for n in (N, 32_768)] == [1, len(losses())]
