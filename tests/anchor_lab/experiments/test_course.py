"""Numbers of results as notebooks print them: against rows made by hand, and those committed."""

import pytest
from matplotlib import pyplot as plt

from anchor_lab.experiments.compare import course as compare
from anchor_lab.experiments.course import columns, committed
from anchor_lab.experiments.crossover import course as crossover
from anchor_lab.experiments.losses import course as losses
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
        prefill("auto", 8192, 110.0),
        prefill("always", 8192, 80.0, sparse=30),
    ]
    found = crossover.data_shares(rows)["smollm2"]
    assert list(found) == [8192]  # nothing is gained below, and the host decides
    assert found[8192] == {
        "dense": 100.0,
        "layers": 30,
        "share": pytest.approx(0.6),
        "free": pytest.approx(0.4),
        "always": pytest.approx(0.8),
        "auto": pytest.approx(1.1),
        "sparse": 0,
    }
    assert "60%" in crossover.table({"smollm2": found})
    assert "SmolLM2, 135M, 30 layers" in crossover.table({"smollm2": found})


def test_a_gain_is_no_larger_than_attention_allows():
    for by_length in crossover.data_shares(committed("crossover")["rows"]).values():
        for found in by_length.values():
            assert 0 < found["share"] < 1
            assert min(found["always"], found["auto"]) > found["free"]


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


def test_rivals_are_those_that_somebody_can_use():
    rows = committed("side_by_side")["rows"]
    for times in side_by_side.data_rivals(rows, "recall 0.95").values():
        known = {"dense", "AnchorAttention", side_by_side.TAILED, *side_by_side.PUBLISHED}
        assert set(times) <= known
        assert times["AnchorAttention"] < times[side_by_side.TAILED]  # the same and more
    with pytest.raises(ValueError, match="goal must be one that was measured"):
        side_by_side.data_rivals(rows, "recall 2")
    assert "XAttention" in side_by_side.rivals_table(rows)
    assert "nats" in side_by_side.losses_table(rows)
    with_tail = [x for x in side_by_side.losses_table(rows).splitlines() if "tail 512" in x]
    assert with_tail
    assert all(line.split()[-3:-1] == ["–", "–"] for line in with_tail)  # its time alone


def test_a_tail_costs_on_real_heads():
    rows = committed("side_by_side")["rows"]
    found = side_by_side.data_tails(rows)
    assert len(found) == 2
    for times in found.values():
        assert times["no tail"] < times["tail 512"]
    assert found["layer 15, 32768 tokens"]["no tail"] == min(
        row["ms"]["median"]
        for row in rows
        if (row["part"], row.get("method"), row.get("goal"), row["n"])
        == ("recall", "AnchorAttention", "recall 0.95", 32_768)
    )
    assert "tail 512" in side_by_side.tails_table(rows)


def test_losses_are_those_of_the_page():
    rows = committed("losses")["rows"]
    ours = losses.data_ours(rows, (9.0, 12.0))
    found = losses.data_published(rows)
    assert found["AnchorAttention"].mean == pytest.approx(ours[12.0].mean)
    means = [lost.mean for lost in found.values()]
    assert means == sorted(means)
    assert "AnchorBlocks" not in found  # a variant
    names = ("AnchorAttention", "XAttention")
    kinds = losses.data_kinds(rows, names)
    assert sum(kinds["tokens"].values()) == pytest.approx(1)
    # All texts together, each with as many tokens: the kinds add up to the mean.
    for name in names:
        whole = sum(kinds["tokens"][kind] * kinds[name][kind] for kind in kinds["tokens"])
        assert whole == pytest.approx(found[name].mean, abs=2e-4)
    places = losses.data_places(rows, 8192, names)
    assert all(len(by_place) == 8 for by_place in places.values())
    for table in (
        losses.ours_table(rows, (12.0,)),
        losses.published_table(rows),
        losses.kinds_table(rows, names),
        losses.places_table(rows, 8192, names),
    ):
        assert "AnchorAttention" in table
        assert "-0.000" not in table
    assert set(losses.data_dense(rows)) == {"prose", "code", "chat"}
    losses.show_curves(losses.data_curves(rows), "here")
    assert not plt.get_fignums()


def test_settings_of_the_masks_are_of_their_methods_sweeps():
    for name, method in compare.at_three_tenths().items():
        assert type(method) is METHODS[name]
        assert method in METHODS[name].sweep()


def test_a_line_is_as_wide_as_its_columns():
    assert columns("a", "1", "22", first=4, other=3) == "a     1 22"
