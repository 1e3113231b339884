"""The retrieval bench goes on where it stopped, and says what its numbers say."""

import json
import sys

import pytest

from anchor_lab.experiments.retrieval import measure as retrieval
from anchor_lab.experiments.retrieval.page import findings, fullest, table
from anchor_lab.experiments.retrieval.score import wilson
from anchor_lab.methods import METHODS
from tests.anchor_lab.experiments.retrieval.test_figure import answers_of, cell
from tests.tree import RESULTS

HERE = RESULTS / "retrieval"
SMALL = {512: (1, (*retrieval.UNMATCHED, "StreamingLLM"), ("single", "variables"), (0.5,))}


@pytest.fixture
def committed():
    return json.loads((HERE / "retrieval.json").read_text())


def test_the_committed_table_is_that_of_the_committed_numbers(committed):
    assert (HERE / "retrieval.md").read_text() == table(committed)


def test_the_committed_numbers_are_those_of_the_committed_plan(committed):
    found = committed["cells"]
    wanted = [
        retrieval.name(*each)
        for each in retrieval.cells()
        if each[2] == "Dense" or retrieval.answerable(found, each[0], each[3])
    ]
    assert sorted(wanted) == sorted(found)
    for name, each in found.items():
        assert each["prompts"] == retrieval.PLAN[each["length"]][0]
        assert [each["low"], each["high"]] == pytest.approx(
            wilson(each["right"] / each["asked"], each["prompts"])
        )
        if each["density"] is not None:
            assert each["kept"] == pytest.approx(each["density"], abs=0.07), name


def test_every_method_is_a_row():
    methods = {row.split(",")[0] for row in retrieval.ROWS}
    assert methods == set(METHODS)
    assert len(set(retrieval.ROWS)) == len(retrieval.ROWS)


@pytest.mark.parametrize("length", [1024, 8192, 16384])
def test_rows_of_other_means_have_the_same_regions_and_groups(length):
    configs = {
        row: retrieval.sweep_at(row, length)[0].config
        for row in ("AnchorAttention", *retrieval.POOLED, "PooledTopK")
    }
    regions = {(c.group_size, c.init_blocks * c.block_size) for c in configs.values()}
    assert regions == {(min(2048, length // 4), 128)}
    sizes = {row: config.block_size for row, config in configs.items()}
    assert sizes == {"AnchorAttention": 128, "PooledTopK": 128, **retrieval.POOLED}


def test_a_run_stops_goes_on_and_skips_what_dense_attention_cannot_do(monkeypatch):
    monkeypatch.setattr(retrieval, "PLAN", SMALL)
    results, saved, asked, now = {"cells": {}}, [], [], iter(range(100))

    def measure(each):
        asked.append(each)
        return {"right": 0 if each[3] == "variables" else 2, "asked": 4}

    def go_on():
        return retrieval.fill(
            results, measure, lambda r: saved.append(len(r["cells"])), 2.5, lambda: next(now)
        )

    assert not go_on()
    assert asked == [(512, None, "Dense", "single"), (512, None, "Dense", "variables")]
    assert go_on()
    assert asked[2:] == [
        (512, None, retrieval.REGIONS, "single"),
        (512, 0.5, "StreamingLLM", "single"),
    ]
    assert saved == [1, 2, 3, 4]
    assert go_on()
    assert len(asked) == 4


def test_results_of_other_settings_are_refused(tmp_path):
    path = tmp_path / "found.json"
    assert retrieval.resume(path, {"torch": "2"})["cells"] == {}
    results = {"settings": {"torch": "2"}, "cells": {"a": {}}}
    retrieval.save(results, path)
    assert retrieval.resume(path, {"torch": "2"}) == results
    with pytest.raises(ValueError, match=r"found.json was made with torch '2', this run has '3'"):
        retrieval.resume(path, {"torch": "3"})


def test_the_command_measures_and_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(retrieval, "PLAN", SMALL)
    out = tmp_path / "small.json"
    call = ["retrieval", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*call, "--time-s", "-1"])
    retrieval.main()
    assert "call again" in capsys.readouterr().err
    monkeypatch.setattr(retrieval, "draw", lambda results, path: path.write_text("drawn"))
    monkeypatch.setattr(retrieval, "table", lambda results: f"{len(results['cells'])} cells")
    monkeypatch.setattr(sys, "argv", call)
    retrieval.main()
    found = json.loads(out.read_text())["cells"]
    dense = found["512 | Dense | own | single"]
    assert (dense["right"], dense["asked"], dense["kept"]) == (1, 1, None)
    regions = found[f"512 | {retrieval.REGIONS} | own | single"]
    assert "theta=-inf" in regions["config"]
    matched = found["512 | StreamingLLM | 0.5 | single"]
    assert matched["kept"] == pytest.approx(0.5, abs=0.02)
    assert out.with_suffix(".md").read_text() == f"{len(found)} cells"
    assert out.with_suffix(".png").read_text() == "drawn"


ROWS = {
    "PooledMaximum": "The mean anchor is",
    "StripeOracle": "Sharing one list of keys in a group",
    "DifferenceOracle": "The test on each row's own scores does not lose them.",
}


@pytest.mark.parametrize("better", [*ROWS, "ConstantThreshold"])
def test_findings_follow_the_numbers(better):
    cells = [cell("Dense", None, 98), cell("AnchorAttention, θ = −∞", None, 20, kept=0.25)]
    for row in ("AnchorAttention", *ROWS, "ConstantThreshold"):
        cells.append(cell(row, 0.5, 95 if row == better else 21))
    said = "\n".join(findings(cells, answers_of(cells)))
    assert f"At least nine tenths of that: {better}." in said
    assert "θ = −∞, hold 20 (13–29)" in said
    others = [row for row in (*ROWS, "ConstantThreshold") if row != better]
    for row in others:
        assert row in said.split("no better than that are ")[1].split(".")[0]
    for row, subject in ROWS.items():
        line = next(line for line in said.splitlines() if f"(`{row}`)" in line)
        if row == "PooledMaximum":
            assert (f"{subject} what loses them." in line) == (row == better)
        elif row == "StripeOracle":
            assert (f"{subject} is not what loses them" in line) == (row == better)
        else:
            assert (subject in line) == (row == better)
    line = next(line for line in said.splitlines() if "(`ConstantThreshold`)" in line)
    assert ("loses what one constant keeps" in line) == (better == "ConstantThreshold")


def test_the_length_with_the_most_rows_is_told_about():
    cells = [cell("Dense", None, 98, length=n) for n in (1024, 2048, 4096)]
    for n, rows in ((1024, 10), (2048, 9), (4096, 3)):
        cells += [cell(f"row {i}", 0.5, 50, length=n) for i in range(rows)]
    assert fullest(answers_of(cells), 0.5) == 2048
