"""The estimated speed-up counts operations as the benchmark does, and its rates are measured."""

import json
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import torch

from anchor_lab.report.cost import H100, Rates, estimate, read_rates
from anchor_ref import AnchorConfig
from anchor_ref.regions import groups
from tests.tree import RESULTS

BENCHMARK = RESULTS / "attention" / "attention_h100.json"
CELLS = {
    (cell["n"], cell["method"]): cell
    for cell in json.loads(BENCHMARK.read_text())["rows"]
    if (cell["source"], cell["density"], cell["status"]) == ("planted", 0.05, "ok")
}
LENGTHS = sorted(n for n, method in CELLS if method == "anchor")
FREE = Rates("none", "never", inf, inf, inf, inf, inf, 0.0)


def kept(n: int) -> torch.Tensor:
    """The benchmark's density, unrounded, for its 32 heads of one layer."""
    cell = CELLS[n, "anchor"]
    return torch.full((1, 32), cell["pairs"] / 32 / (n * (n + 1) / 2), dtype=torch.float64)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_operations_of_a_stage_are_those_that_the_benchmark_counts(n, stage):
    rates = replace(FREE, **{stage: 1.0})
    found = estimate(kept(n), n, 128, 0, rates).sparse * 1e9
    assert found == pytest.approx(CELLS[n, stage]["flop"], rel=1e-6)


def test_operations_of_dense_attention_and_linear_layers():
    n = 8192
    found = estimate(kept(n), n, 128, 10**9, replace(FREE, dense=1.0, matrix=2.0))
    assert found.dense * 1e9 == pytest.approx(CELLS[n, "sdpa-cudnn"]["flop"])
    assert found.linear * 1e9 == pytest.approx(10**9 * n)


def test_the_overhead_is_paid_once_a_layer():
    two = estimate(torch.ones(2, 32), 4096, 128, 0, replace(FREE, overhead_ms=0.5))
    assert two.sparse == 1.0


def test_regions_are_those_of_the_configuration():
    n, config = 1000, AnchorConfig(100, 2, init_blocks=2)
    layout = groups(config, n, n)
    always = sum(
        len(group.init) + row + 1 - group.window_start for group in layout for row in group.rows
    )
    pooled = sum(len(group.blocks) * len(group.candidates) for group in layout)
    rates = replace(FREE, stage1=1.0, stage2=1.0)
    found = estimate(torch.ones(1, 3), n, 64, 0, rates, config)
    assert found.sparse * 1e9 == pytest.approx(64 * 3 * (4 * always + 2 * pooled))


@pytest.mark.parametrize("tail", [1, 70, 512, 2000])
def test_the_tail_is_paid_for_at_the_rate_of_dense_attention(tail):
    n, config = 1000, AnchorConfig(100, 2, tail=tail)
    layout = groups(config, n, n)
    rows = [row for group in layout for row in group.rows if row >= n - tail]
    pairs = sum(len(layout[row // 200].candidates) for row in rows)
    found = estimate(torch.ones(1, 3), n, 64, 0, replace(FREE, dense=1.0), config)
    assert found.sparse * 1e9 == pytest.approx(4 * 64 * 3 * pairs)
    stages = replace(FREE, stage1=1.0, stage2=1.0, stage3=1.0)
    without = estimate(torch.ones(1, 3), n, 64, 0, stages, replace(config, tail=0))
    assert estimate(torch.ones(1, 3), n, 64, 0, stages, config) == without


def test_speed_ups_are_ratios_of_times():
    found = replace(estimate(torch.ones(1, 1), 4096, 64, 1), dense=6.0, sparse=2.0, linear=4.0)
    assert (found.attention_speedup, found.prefill_speedup) == (3.0, 10 / 6)


def test_the_overhead_is_that_of_short_prompts(tmp_path):
    measured, path = json.loads(BENCHMARK.read_text()), tmp_path / "attention.json"
    for cell in measured["rows"]:
        if cell["method"] == "anchor" and cell["n"] > 16384:
            cell["ms"]["median"] += 1000.0
    path.write_text(json.dumps(measured))
    assert read_rates(path).overhead_ms == read_rates(BENCHMARK).overhead_ms


def test_rates_are_those_of_the_committed_benchmark():
    measured = read_rates(BENCHMARK)
    assert replace(measured, overhead_ms=round(measured.overhead_ms, 2)) == H100


def written(tmp_path, run_of) -> Path:
    """The benchmark's file with a run before its own, and of which run each cell is."""
    measured = json.loads(BENCHMARK.read_text())
    other = measured["runs"][0] | {"date": "never", "matrix_tflops": 1.0}
    measured["runs"].insert(0, other)
    for cell in measured["rows"]:
        cell["run"] = run_of(cell)
    path = tmp_path / "attention.json"
    path.write_text(json.dumps(measured))
    return path


def test_device_and_date_are_of_the_run_that_measured_the_cells(tmp_path):
    assert read_rates(written(tmp_path, lambda cell: 1)) == read_rates(BENCHMARK)
    no_need = written(tmp_path, lambda cell: int(cell["source"] == "planted"))
    assert read_rates(no_need) == read_rates(BENCHMARK), "other cells may be of other runs"


def test_rates_of_several_runs_are_refused(tmp_path):
    path = written(tmp_path, lambda cell: int(cell["method"] != "stage2"))
    with pytest.raises(ValueError, match=r"attention\.json: .*of several runs, \[0, 1\]"):
        read_rates(path)


@pytest.mark.parametrize("n", [n for n in LENGTHS if n >= 16384])
def test_the_estimate_is_near_the_measured_time(n):
    found = estimate(kept(n), n, 128, 0)
    assert found.sparse == pytest.approx(CELLS[n, "anchor"]["ms"]["median"], rel=0.25)
    if (n, "sdpa-cudnn") in CELLS:
        assert found.dense == pytest.approx(CELLS[n, "sdpa-cudnn"]["ms"]["median"], rel=0.15)


@pytest.mark.parametrize("text", ["", "{}", '{"settings": {}, "runs": [], "rows": []}', "[1]"])
def test_a_file_without_measurements_is_refused(tmp_path, text):
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match="rates must come from a file of `python -m anchor_lab attention`"
    ):
        read_rates(path)
