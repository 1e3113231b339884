"""The benchmark of many ranks, run on one: every part, and the table that comes out."""

import json

import pytest
import torch
import torch.distributed as dist

from anchor_lab.experiments.parallel import measure as parallel
from anchor_models.parallel.cost import memory
from tests.tree import RESULTS


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_every_part_runs_and_one_rank_is_one_process(monkeypatch):
    monkeypatch.setattr(parallel, "TINY", {"check": 300, "attention": (256,), "prefill": (140,)})
    results = parallel.collect(tiny=True, device=torch.device("cpu"))
    cases = [(row["attention"], row["mode"]) for row in results["check"]]
    assert len(set(cases)) == 4
    for row in results["check"]:
        assert row["difference"] < 1e-3
        assert row["same token"] == 1
    assert results["attention"][0]["difference"] == 0
    assert [row["mode"] for row in results["prefill"]] == [
        mode for mode in ("one", "sequence", "tensor") for _ in range(2)
    ]
    paper = memory(parallel.TINY_SHAPE, "tensor", 140, 1, 0.0)
    kept = paper["at once"] - paper["keys and values of all layers"]
    assert results["prefill"][-1]["paper"] == kept
    lines = parallel.table(results).splitlines()
    assert sum(line.startswith("| sdpa") for line in lines) == 2 + 3
    assert "| 256 | torch |" in "\n".join(lines)


def test_times_are_medians_without_the_first_and_ranks_wait(monkeypatch):
    ticks = iter([0.0, 100.0, 101.0, 200.0, 205.0, 300.0, 302.0])
    waits = []
    monkeypatch.setattr(dist, "barrier", lambda: waits.append(1))
    monkeypatch.setattr(parallel.time, "perf_counter", lambda: next(ticks))
    seconds, peak = parallel.timed(lambda: None, torch.device("cpu"))
    assert (seconds, peak, len(waits)) == (2.0, 0.0, 8)


def test_the_committed_table_is_that_of_the_committed_numbers():
    results = RESULTS / "parallel" / "parallel.json"
    assert results.with_suffix(".md").read_text() == parallel.table(
        json.loads(results.read_text())
    )


def test_without_a_gpu_the_large_run_does_not_begin(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["parallel", "--out", str(tmp_path / "a.json")])
    with pytest.raises(SystemExit, match="needs CUDA devices, or --tiny; torch finds none"):
        parallel.main()
    assert not list(tmp_path.iterdir())
