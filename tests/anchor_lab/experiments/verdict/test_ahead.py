"""Who stands where: by time and by total cost, by loss, by recall and by answers."""

import pytest

from anchor_lab.experiments.verdict import ahead
from anchor_lab.experiments.verdict.times import Kind, clock_of, tail_cost
from anchor_lab.methods import METHODS
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


def test_prompts_that_leave_room_for_an_answer_stand_for_their_length():
    rows = [results.asked(n, "dense", 50) for n in (4096, 8064, 16_384)]
    assert [ahead.asked_at(rows, n) for n in (8192, 32_768, 4096)] == [8064, None, 4096]
    rows.append(results.asked(32_640, "dense", 50))
    assert ahead.asked_at(rows, 32_768) == 32_640


def test_answers_have_the_cost_of_their_configuration_and_tail(clock):
    lines = [
        results.lost("AnchorAttention", "theta=12", results.density_for(0.3), 0.1, 0.5),
        results.found("XAttention", "threshold=0.9", 0.4, 0.9, scored=0.03),
        results.found("XAttention", "threshold=0.8", 0.3, 0.9),
    ]
    ways = ("tail 0", "tail 512", "XAttention", "XAttention, tail 512", "second dense call",
            "AnchorAttention, mean", "MoBA")  # fmt: skip
    rows = [results.asked(8064, "dense", 50), results.asked(4096, "dense", 50)]
    rows += [results.asked(8064, way, 40 - at) for at, way in enumerate(ways)]
    rows += [results.asked(4096, "tail 0", 1)]
    found = {way.name: way for way in ahead.answer_ways(rows, N, lines, clock)}
    assert list(found) == list(ways)  # who finds most comes first
    assert found["tail 0"].counts.ours == 40
    assert found["tail 0"].total_cost == 0.5
    assert found["tail 0"].time.kind == Kind.MEASURED
    assert found["tail 512"].time.share == pytest.approx(found["tail 0"].time.share + 0.2)
    assert found["tail 512"].total_cost == pytest.approx(0.5 + tail_cost(512, N))
    assert found["XAttention"].total_cost == pytest.approx(0.43)
    assert found["XAttention"].time.kind == Kind.CHOICE_MODELLED
    assert found["XAttention, tail 512"].time.kind == Kind.MODELLED
    assert [found[x].time for x in ways[4:]] == [None] * 3
    assert [found[x].label for x in ways[:4]] == [
        "AnchorAttention",
        "AnchorAttention, tail 512",
        "XAttention",
        "XAttention, tail 512",
    ]
    assert found["AnchorAttention, mean"].label == "AnchorAttention, mean"


def test_tasks_that_dense_attention_does_not_answer_count_for_nothing(clock):
    rows = [
        results.asked(8064, "dense", 50),
        results.asked(8064, "tail 0", 30),
        results.asked(8064, "dense", 10, task="variable"),
        results.asked(8064, "tail 0", 50, task="variable"),
    ]
    (way,) = ahead.answer_ways(rows, N, [], clock)
    assert (way.counts.ours, way.counts.prompts) == (30, 50)
    assert way.time is None


@pytest.mark.parametrize(
    ("way", "found"),
    [
        ("tail 0", ("AnchorAttention", 0)),
        ("SALE, tail 512", ("SALE", 512)),
        ("TriangleMix", ("TriangleMix", 0)),
        ("StreamingLLM, delta", (None, 0)),
        ("second dense call", (None, 0)),
    ],
)
def test_a_way_is_a_method_and_a_tail(way, found):
    assert ahead.method_and_tail(way) == found


def test_the_published_configuration_is_found_in_its_sweep():
    assert ahead.published_label("XAttention", N) == "threshold=0.9"
    assert ahead.published_label("AnchorAttention", N) == "theta=12"
    assert ahead.published_label("TriangleMix", N) == "share=0.5"
    # dense up to 1024 and 4096 tokens as published, never in a sweep
    assert ahead.published_label("SALE", N) == "threshold=0.004"
    assert ahead.published_label("FlashPrefillV2", 4096) is None
    assert "alpha=0.1 " in ahead.published_label("FlashPrefillV2", N)
    assert ahead.published_label("SpargeAttention", N) is None  # its sweep moves something else
    assert METHODS["SpargeAttention"]().similarity not in [
        one.similarity for one in METHODS["SpargeAttention"].sweep()
    ]
