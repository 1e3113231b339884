"""The benchmark of many ranks: every part on one rank, a quick run on two, and the page."""

import subprocess
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from anchor_lab.experiments.parallel import measure as parallel
from anchor_lab.experiments.parallel.page import EXPERIMENT
from anchor_lab.experiments.store import read
from anchor_models.parallel.cost import memory
from tests.tree import RESULTS

COMMITTED = RESULTS / "parallel" / "parallel.json"


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def part(rows: list[dict], name: str) -> list[dict]:
    return [row for row in rows if row["part"] == name]


@pytest.mark.usefixtures("one_rank")
def test_every_part_runs_and_one_rank_is_one_process(tmp_path):
    sizes = replace(parallel.QUICK, check=300, lengths=(140,))
    rows = parallel.collect(sizes, torch.device("cpu"))
    cases = [(row["attention"], row["mode"]) for row in part(rows, "check")]
    assert len(set(cases)) == 4
    for row in part(rows, "check"):
        assert row["difference"] < 1e-3
        assert row["same token"] == 1
    assert part(rows, "attention")[0]["difference"] == 0
    assert [row["mode"] for row in part(rows, "prefill")] == [
        mode for mode in ("one", "sequence", "tensor") for _ in range(2)
    ]
    paper = memory(sizes.shape, "tensor", 140, 1, 0.0)
    kept = paper["at once"] - paper["keys and values of all layers"]
    assert rows[-1]["paper"] == kept
    results = {
        "settings": {"ranks": 1, "differences": "all ranks"},
        "runs": [{"date": "2026-01-01", "device": "CPU", "torch": "2"}],
        "rows": rows,
    }
    lines = EXPERIMENT.page(results, tmp_path / "parallel.md").splitlines()
    assert sum(line.startswith("| sdpa") for line in lines) == 2 + 3
    assert "| 140 | torch |" in "\n".join(lines)


def test_times_are_medians_without_the_first_and_ranks_wait(monkeypatch):
    ticks = iter([0.0, 100.0, 101.0, 200.0, 205.0, 300.0, 302.0])
    waits = []
    monkeypatch.setattr(dist, "barrier", lambda: waits.append(1))
    monkeypatch.setattr(parallel.time, "perf_counter", lambda: next(ticks))
    seconds, peak = parallel.timed(lambda: None, torch.device("cpu"))
    assert (seconds, peak, len(waits)) == (2.0, 0.0, 8)


def test_differences_are_those_of_the_rank_that_is_farthest_off(monkeypatch):
    def another_rank(mine, op=dist.ReduceOp.SUM):
        """One with a difference of 7, and no token of 10 the same."""
        if op is dist.ReduceOp.MAX:
            mine.clamp_(min=7.0)
        else:
            mine += torch.tensor([0, 10])

    monkeypatch.setattr(dist, "all_reduce", another_rank)
    logits = torch.eye(10)
    assert parallel.largest_difference(logits, logits - 3) == 7
    assert parallel.largest_difference(logits, logits - 9) == 9
    assert parallel.share_of_same_token(logits, logits) == 0.5


def test_the_committed_page_is_that_of_the_committed_numbers():
    page = COMMITTED.with_suffix(".md")
    assert page.read_text() == EXPERIMENT.page(read(COMMITTED), page)


def test_the_page_says_whose_differences_they_are():
    found = read(COMMITTED)
    assert "differences are those of rank 0" in EXPERIMENT.page(found, COMMITTED)
    found["settings"]["differences"] = "all ranks"
    assert "differences are the largest of all ranks" in EXPERIMENT.page(found, COMMITTED)


def test_a_quick_run_measures_on_two_processes_and_writes_its_page(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "new" / "parallel.json"
    assert EXPERIMENT.run(["--quick", "--out", str(out)]) == 0
    found = read(out)
    assert found["settings"] == {"ranks": 2, "differences": "all ranks"}
    assert [len(part(found["rows"], name)) for name in ("check", "attention", "prefill")] == [
        4,
        1,
        6,
    ]
    assert all(row["difference"] < 1e-3 for row in part(found["rows"], "check"))
    assert all(row["same token"] == 1 for row in part(found["rows"], "check"))
    assert "| tokens | backend | 1 rank | 2 ranks |" in out.with_suffix(".md").read_text()


def test_what_goes_wrong_on_a_rank_is_the_exit_status_and_no_page_is_written(
    tmp_path, monkeypatch
):
    ended = subprocess.CompletedProcess([], returncode=3)
    monkeypatch.setattr(parallel.subprocess, "run", lambda *_, **__: ended)
    assert EXPERIMENT.run(["--quick", "--out", str(tmp_path / "parallel.json")]) == 3
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_the_large_run_does_not_begin(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert EXPERIMENT.run(["--out", str(tmp_path / "a.json")]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
