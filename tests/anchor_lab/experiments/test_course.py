"""Numbers of results as notebooks print them: against rows made by hand, and those committed."""

import pytest

from anchor_lab.experiments.compare import course as compare
from anchor_lab.experiments.course import columns, committed
from anchor_lab.experiments.crossover import course as crossover
from anchor_lab.experiments.side_by_side import course as side_by_side
from anchor_lab.experiments.smollm2 import course as smollm2
from anchor_lab.methods import METHODS


def ms(median):
    return {"median": median}


def prefill(way, n, median, sparse=0):
    return {
        "part": "prefill",
        "way": way,
        "model": "smollm2",
        "keys": n,
        "ms": ms(median),
        "sparse_layers": sparse,
    }


def test_attentions_share_is_its_layers_over_the_prefill():
    call = {"part": "calls", "way": "dense", "q_heads": 9, "kv_heads": 3, "head_dim": 64}
    rows = [
        {**call, "queries": 8192, "keys": 8192, "ms": ms(2.0)},
        {**call, "queries": 512, "keys": 512, "ms": ms(1.0)},
        prefill("sdpa", 512, 10.0),
        prefill("auto", 512, 10.0),
        prefill("always", 512, 10.0),
        prefill("sdpa", 8192, 100.0),
        prefill("auto", 8192, 80.0),
        prefill("always", 8192, 80.0, sparse=30),
    ]
    found = crossover.data_shares(rows)["smollm2"]
    assert list(found) == [8192]  # nothing is gained below, and the host decides
    assert found[8192] == {
        "dense": 100.0,
        "ours": 80.0,
        "layers": 30,
        "share": pytest.approx(0.6),
        "most": pytest.approx(2.5),
        "gain": pytest.approx(1.25),
    }
    assert "60%" in crossover.table({"smollm2": found})
    assert "SmolLM2, 135M, 30 layers" in crossover.table({"smollm2": found})


def test_a_gain_is_no_larger_than_attention_allows():
    for by_length in crossover.data_shares(committed("crossover")["rows"]).values():
        for found in by_length.values():
            assert 0 < found["share"] < 1
            assert found["gain"] < found["most"]


def test_answers_are_counted_and_quoted():
    rows = committed("smollm2")["rows"]
    found = smollm2.data_answers(rows)
    of_longest = [r for r in rows if r["part"] == "answers" and r["length"] == 8064]
    for way in ("dense", "tail 0", "tail 512"):
        assert found[8064][way] == sum(r["found"] for r in of_longest if r["way"] == way)
    assert set(smollm2.written(rows, 8064, 0)) == {"dense", "tail 0", "tail 512"}
    with pytest.raises(ValueError, match="length and prompt must be of one that was asked"):
        smollm2.written(rows, 8064, 10_000)
    assert "tail 512" in smollm2.answers_table(rows).splitlines()[0]
    assert "cudnn" in smollm2.tails_table(rows).splitlines()[0]


def test_rivals_are_those_that_somebody_can_use():
    rows = committed("side_by_side")["rows"]
    for times in side_by_side.data_rivals(rows, "recall 0.95").values():
        assert set(times) <= {"dense", "AnchorAttention", *side_by_side.PUBLISHED}
    with pytest.raises(ValueError, match="goal must be one that was measured"):
        side_by_side.data_rivals(rows, "recall 2")
    assert "XAttention" in side_by_side.rivals_table(rows)
    assert "nats" in side_by_side.losses_table(rows)
    assert set(side_by_side.data_losses(rows)) == {9.0, 12.0}


def test_settings_of_the_masks_are_of_their_methods_sweeps():
    for name, method in compare.at_three_tenths().items():
        assert type(method) is METHODS[name]
        assert method in METHODS[name].sweep()


def test_a_line_is_as_wide_as_its_columns():
    assert columns("a", "1", "22", first=4, other=3) == "a     1 22"
