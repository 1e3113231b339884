"""The reference against dense attention on a CPU: what is measured, and the page."""

import re

from anchor_lab.experiments.reference import measure as reference
from anchor_lab.experiments.reference.page import EXPERIMENT
from anchor_lab.experiments.store import read
from tests.tree import RESULTS

FOLDER = RESULTS / "reference"


def test_the_committed_page_is_what_the_committed_results_give():
    page = FOLDER / "reference.md"
    assert page.read_text() == EXPERIMENT.page(read(FOLDER / "reference.json"), page)


def test_a_quick_run_measures_every_length_and_writes_its_page(tmp_path):
    out = tmp_path / "reference.json"
    assert EXPERIMENT.run(["--quick", "--repeats", "2", "--out", str(out)]) == 0
    found = read(out)
    assert found["settings"] == {"repeats": 2}
    assert [row["n"] for row in found["rows"]] == list(reference.QUICK_LENGTHS)
    for row in found["rows"]:
        assert row["density"] == 1  # both are shorter than a group
        assert len(row["dense_s"]) == len(row["anchor_s"]) == 2
    page = out.with_suffix(".md").read_text()
    assert f"{found['runs'][0]['device']}, {found['runs'][0]['threads']} threads" in page
    assert re.findall(r"^\| (\d+) \|", page, re.M) == ["512", "1024"] * 2


def test_the_methods_take_turns_and_medians_are_compared(monkeypatch):
    # One warm-up, then dense and anchor in turn: 2, 10, 4, 30, 6, 20 seconds.
    taken = iter([2.0, 10.0, 4.0, 30.0, 6.0, 20.0])
    monkeypatch.setattr(reference, "seconds", lambda run: next(taken))
    found = reference.measure_time(256, repeats=3)
    assert (found["dense_s"], found["anchor_s"]) == ([2, 4, 6], [10, 20, 30])
    assert found["ratio"] == 5


def test_the_peak_counts_inputs_and_output():
    mib = reference.measure_memory(16_384)
    tensors = 16_384 * 64 * (8 + 2 + 2 + 8) * 4 / 2**20  # q, k, v and the output
    assert tensors < mib < 10 * tensors


def test_a_length_is_not_measured_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "measure_memory", lambda n: 1.0)
    call = ["--lengths", "128", "--repeats", "1", "--out", str(tmp_path / "a.json")]
    assert EXPERIMENT.run(call) == 0
    monkeypatch.setattr(reference, "measure_time", None)
    assert EXPERIMENT.run(call) == 0
    assert len(read(tmp_path / "a.json")["rows"]) == 1
