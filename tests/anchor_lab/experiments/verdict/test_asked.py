"""Answers: ways beside those that were asked the same prompts, and what they cost."""

import pytest

from anchor_lab.experiments.verdict import asked
from anchor_lab.experiments.verdict.times import Kind, clock_of, tail_cost
from anchor_lab.methods import METHODS
from tests.anchor_lab.experiments.verdict import results

N = 8192


@pytest.fixture(scope="module")
def clock():
    return clock_of(results.side_by_side(), results.crossover(), N)


def several_cells():
    """Ours was asked two kinds of prompts, rivals the easy one alone; with it dense finds 40."""
    rows = [results.asked(8064, "dense", 40), results.asked(8064, "dense", 30, task="words")]
    rows += [results.asked(8064, "tail 0", 20), results.asked(8064, "tail 0", 0, task="words")]
    rows += [results.asked(8064, "tail 512", 39)]
    rows += [results.asked(8064, "tail 512", 20, task="words")]
    rows += [results.asked(8064, "XAttention", 38), results.asked(8064, "MoBA", 41)]
    return rows


def test_a_way_stands_beside_others_by_the_prompts_that_all_were_asked(clock):
    most, own = asked.comparisons(several_cells(), N, [], clock)
    assert most.asked == "single (end)"
    assert [(way.name, way.counts.ours) for way in most.ways] == [
        ("MoBA", 41), ("tail 512", 39), ("XAttention", 38), ("tail 0", 20),
    ]  # fmt: skip
    assert {way.counts.prompts for way in most.ways} == {50}
    assert (most.dense.dense, most.dense.prompts) == (40, 50)
    assert own.asked == "single (end); words (end)"
    assert {way.name: (way.counts.ours, way.counts.dense) for way in own.ways} == {
        "tail 512": (59, 70),
        "tail 0": (20, 70),
    }


def test_the_widest_comparison_has_all_the_ways_that_it_is_asked_for(clock):
    found = asked.comparisons(several_cells(), N, [], clock)
    assert asked.widest(found, ["tail 0", "tail 512"]) is found[1]
    assert asked.widest(found, ["tail 0", "MoBA"]) is found[0]
    assert asked.widest(found, ["SALE"]) is None
    assert asked.comparisons([], N, [], clock) == []


def test_prompts_that_leave_room_for_an_answer_stand_for_their_length():
    rows = [results.asked(n, "dense", 50) for n in (4096, 8063, 8064, 16_384)]
    assert [asked.asked_at(rows, n) for n in (8192, 32_768, 4096)] == [8064, None, 4096]
    rows.append(results.asked(32_639, "dense", 50))
    assert asked.asked_at(rows, 32_768) is None
    rows.append(results.asked(32_640, "dense", 50))
    assert asked.asked_at(rows, 32_768) == 32_640


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
    (one,) = asked.comparisons(rows, N, lines, clock)
    found = {way.name: way for way in one.ways}
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
    (one,) = asked.comparisons(rows, N, [], clock)
    (way,) = one.ways
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
    assert asked.method_and_tail(way) == found


def test_the_published_configuration_is_found_in_its_sweep():
    assert asked.published_label("XAttention", N) == "threshold=0.9"
    assert asked.published_label("AnchorAttention", N) == "theta=12"
    assert asked.published_label("TriangleMix", N) == "share=0.5"
    # dense up to 1024 and 4096 tokens as published, never in a sweep
    assert asked.published_label("SALE", N) == "threshold=0.004"
    assert asked.published_label("FlashPrefillV2", 4096) is None
    assert "alpha=0.1 " in asked.published_label("FlashPrefillV2", N)
    assert asked.published_label("SpargeAttention", N) is None  # its sweep moves something else
    assert METHODS["SpargeAttention"]().similarity not in [
        one.similarity for one in METHODS["SpargeAttention"].sweep()
    ]
