"""A correction for all methods of a comparison, and heads that decide together in it."""

import pytest
import torch

from anchor_lab.experiments.compare.measure import compare_layer, sweeps
from anchor_lab.experiments.compare.runs import describe, open_table, run_comparison
from anchor_lab.methods import BFLA, BlockTopCdf, HeadAveragedTopK, evaluate
from anchor_lab.methods.corrections import CORRECTIONS
from anchor_lab.sources import planted
from tests.anchor_lab.experiments.compare.test_compare import captured


@pytest.mark.parametrize("name", [None, *CORRECTIONS])
def test_a_correction_is_a_setting_and_its_pairs_are_in_the_total_cost(name, tmp_path):
    source = planted(512, 0.05, 0, "cpu")
    about = describe(source, 128, correction=name)
    assert about.get("correction") == name
    table = open_table(tmp_path / "compare.csv", about)
    sweep = sweeps(["StreamingLLM"], 128)
    frame = run_comparison(source, table, sweep, None, [0], correction=name)
    x = source.capture([0], tmp_path)[0].causal()
    for method, (_, row) in zip(sweep["StreamingLLM"], frame.iterrows(), strict=True):
        q, k, v = x.q[:, :1], x.k[:, :1], x.v[:, :1]
        added = CORRECTIONS[name]() if name else None
        found = evaluate(q, k, v, method.select(q, k, x.scaling), x.scaling, added)
        assert row["total_cost"] == pytest.approx(float(found.executed_density), rel=1e-5)
        assert row["output_error"] == pytest.approx(float(found.output_error), rel=1e-3)


def test_tables_of_another_correction_are_not_added_to(tmp_path):
    source = planted(512, 0.05, 0, "cpu")
    run = {"layers": None, "heads": [0]}
    sweep = sweeps(["Dense"], 128)
    run_comparison(source, open_table(tmp_path / "a.csv", describe(source, 128)), sweep, **run)
    with pytest.raises(ValueError, match="correction"):
        open_table(tmp_path / "a.csv", describe(source, 128, correction="mean"))


@pytest.mark.parametrize("method", [BFLA(0.5, 0, 16, 4), HeadAveragedTopK(8)], ids=repr)
def test_a_head_that_is_asked_for_alone_decides_with_all_others(method):
    x = captured()
    (row,) = compare_layer(x, "Mine", [method], [3])
    together = evaluate(x.q, x.k, x.v, method.select(x.q, x.k, 0.25), 0.25)
    assert row["density"] == pytest.approx(float(together.density[0, 3]))
    assert row["recall_mean"] == pytest.approx(float(together.recall[0, 3].mean()), rel=1e-5)
    one = method.select(x.q[:, 3:], x.k[:, 1:], 0.25)
    alone = evaluate(x.q[:, 3:], x.k[:, 1:], x.v[:, 1:], one, 0.25)
    assert row["recall_mean"] != pytest.approx(float(alone.recall.mean()), rel=1e-3)


def test_some_heads_of_a_selection_are_those():
    q, k = torch.randn(2, 4, 50, 8), torch.randn(2, 2, 50, 8)
    for whole in (BFLA(0.5, 0, 8, 4).select(q, k), HeadAveragedTopK(3).select(q, k)):
        part = whole.of_heads([3, 0])
        assert part.shape == (2, 2, 50)
        assert torch.equal(part.to_mask(), whole.to_mask()[:, [3, 0]])
        assert part.scored == whole.scored
    whole = BlockTopCdf(0.5, 4).select(q, k)
    executed = whole.of_heads([3, 0]).executed
    assert executed.tolist() == [[one[3], one[0]] for one in whole.executed.tolist()]
    assert len(whole.executed.unique()) > 2  # else any heads would do
