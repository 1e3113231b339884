"""The report on a GPU without a GPU: what passes, what does not, and what is said of each."""

import sys
import time

import pytest
import torch

from anchor_lab.experiments import page
from anchor_lab.experiments.store import read
from anchor_verify import gpu_report as report
from anchor_verify.gpu_report import Finished
from tests.tree import ROOT

JUNIT = """<?xml version="1.0"?>
<testsuites><testsuite name="pytest">
<testcase classname="tests.kernels.test_gpu" name="test_error[ragged-bfloat16]" time="2.5">
<properties><property name="error_ratio" value="0.412"/></properties></testcase>
<testcase classname="tests.kernels.test_gpu" name="test_error[ragged-float32]" time="0.5">
<properties><property name="error_ratio" value="1.204"/></properties>
<failure message="assert 1.204 &lt;= 1&#10; + more">trace</failure></testcase>
<testcase classname="tests.kernels.test_gpu" name="test_a_million[bfloat16]" time="9">
<properties><property name="error_ratio" value="0.2"/></properties></testcase>
<testcase classname="tests.anchor_models.test_planted" name="test_other" time="0.1">
<skipped message="needs a CUDA device">why</skipped></testcase>
</testsuite></testsuites>"""
CLEAN = """========= COMPUTE-SANITIZER
ragged: (1, 4, 700, 128) torch.bfloat16
all calls done
========= ERROR SUMMARY: 0 errors
"""
STRAY = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at sparse_kernel+0x1d0
all calls done
========= ERROR SUMMARY: 1 error
"""
RACE = CLEAN.replace(
    "ERROR SUMMARY: 0 errors",
    "Error: Race reported between Write access\n"
    "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)",
)
FULL = STRAY.replace("Invalid __global__ write", "Program hit cudaErrorMemoryAllocation")
PENDING = "x.py:35: unknown: block: [4,0,0], thread: [0,0,0] Assertion `Pending access` failed.\n"
LOCKED = "all calls done\n"
BROKEN = "ImportError: no\n"
REFUSED = """========= COMPUTE-SANITIZER
========= Error: Device not supported. Please refer to the documentation
RuntimeError: CUDA error: unknown error
"""


def test_a_test_is_read_with_its_outcome_message_and_values():
    good, bad, million, skipped = report.read_junit(JUNIT)
    assert good["name"] == "test_error[ragged-bfloat16]"
    assert (good["outcome"], good["seconds"], good["error_ratio"]) == ("passed", 2.5, "0.412")
    assert (bad["outcome"], bad["message"]) == ("failure", "assert 1.204 <= 1")
    assert million["outcome"] == "passed"
    assert (skipped["outcome"], skipped["message"]) == ("skipped", "needs a CUDA device")


def writes(junit: str | None, code: int | None):
    """A pytest that ends with `code` after it wrote its results, or before."""

    def run(command, limit_s):
        (option,) = [word for word in command if word.startswith("--junitxml=")]
        if junit is not None:
            with open(option.removeprefix("--junitxml="), "w") as file:
                file.write(junit)
        return Finished(code, "collected\n= 1 passed in 3 s =\n\n")

    return run


ONE = "<testcase".join(JUNIT.split("<testcase")[:2]) + "</testsuite></testsuites>"


@pytest.mark.parametrize(
    ("junit", "code", "status"),
    [
        (ONE, 0, "passed"),
        (ONE, 1, "failed"),
        (JUNIT, 0, "failed"),  # a skipped test has not passed
        ("<testsuites/>", 5, "failed"),
        ("<testsuites/>", 0, "failed"),
        (None, None, "timed out"),
    ],
)
def test_tests_have_passed_only_when_all_ran_and_passed(junit, code, status):
    found = report.run_tests("bfloat16", 1.0, writes(junit, code))
    assert found["status"] == status
    assert found["message"] == "= 1 passed in 3 s ="


@pytest.mark.parametrize(
    ("piece", "code", "output", "status"),
    [
        ("memcheck", 0, CLEAN, "passed"),
        ("memcheck", 0, STRAY, "failed"),
        ("memcheck", 1, CLEAN, "failed"),
        ("memcheck", 0, CLEAN.replace("all calls done", ""), "failed"),
        ("memcheck", 1, REFUSED, "not run"),
        ("memcheck", None, CLEAN, "timed out"),
        ("racecheck", 0, RACE, "failed"),
        ("racecheck", 0, RACE.replace("2 ", "0 "), "passed"),
        ("memcheck-store", 1, STRAY, "passed"),
        ("memcheck-store", 0, CLEAN, "failed"),
        ("memcheck-store", 1, FULL, "failed"),  # not the fault that is in the control
        ("memcheck-store", 1, REFUSED, "not run"),
        ("racecheck-handover", 0, RACE, "passed"),
        ("racecheck-handover", 0, RACE.replace("2 ", "0 "), "failed"),
        ("consan", 0, LOCKED, "passed"),
        ("consan", 1, PENDING, "failed"),
        ("consan", 0, PENDING + LOCKED, "failed"),
        ("consan", 1, BROKEN, "failed"),
        ("consan", 0, "", "failed"),
        ("consan", None, LOCKED, "timed out"),
        ("consan-race", 1, PENDING, "passed"),
        ("consan-race", 1, BROKEN, "failed"),
        ("consan-race", 0, LOCKED, "failed"),
        ("consan-handover", 0, LOCKED, "passed"),
        ("consan-handover", 1, PENDING, "failed"),
    ],
)
def test_a_tool_has_passed_only_when_it_says_so(piece, code, output, status):
    assert report.judge(report.TOOLS[piece], Finished(code, output)) == status


def test_what_a_tool_says_is_its_summary_and_its_complaints():
    found = report.read_sanitizer(STRAY)
    assert found["message"] == "ERROR SUMMARY: 1 error"
    assert found["complaints"][0] == "Invalid __global__ write of size 4 bytes"
    refused = report.read_sanitizer(REFUSED)
    assert refused["message"].startswith("no summary: Error: Device not supported")


def test_assertions_of_the_concurrency_sanitizer_are_counted():
    found = report.read_consan(PENDING * 3 + PENDING.replace("Pending", "Other"))
    assert found["message"] == "Pending access (3 threads)"
    assert found["complaints"] == ["Pending access (3 threads)", "Other access (1 threads)"]
    assert report.read_consan(BROKEN) == {"message": "ImportError: no", "complaints": []}


def test_the_concurrency_sanitizer_is_asked_for_by_its_variable():
    seen = []

    def run(command, limit_s, **environment):
        seen.append((command[2:], environment))
        return Finished(0, LOCKED)

    assert report.run_tool(report.TOOLS["consan-handover"], 9.0, run)["status"] == "passed"
    command = ["anchor_verify.small_calls", "--control", "handover"]
    assert seen == [(command, {"TRITON_INSTRUMENTATION_MODE": "consan"})]


def test_racecheck_leaves_out_the_kernels_that_it_cannot_judge(monkeypatch, tmp_path):
    from anchor_verify.compile_report import KERNELS

    specialised = {name for name, kernel in KERNELS.items() if kernel.is_gluon()}
    assert {name for name in KERNELS if report.BY_BARRIERS in name} == specialised
    monkeypatch.setattr(report, "find_sanitizer", lambda: tmp_path)
    seen = []

    def run(command, limit_s, **environment):
        seen.append(command)
        return Finished(0, RACE.replace("2 ", "0 "))

    assert report.run_tool(report.TOOLS["racecheck"], 9.0, run)["status"] == "passed"
    assert "kernel_substring=hopper" in seen[1]
    left_out = [name for name, watch in report.TOOLS.items() if watch.options]
    assert left_out == ["racecheck"]


def test_an_absent_tool_is_said_and_has_not_passed(monkeypatch):
    monkeypatch.setattr(report, "find_sanitizer", lambda: None)
    found = report.run_tool(report.TOOLS["memcheck"], 1.0)
    assert found["status"] == "not run"
    assert found["message"].startswith("compute-sanitizer is in none of PATH, CUDA_HOME")


def test_the_tool_runs_what_ran_alone_before_on_allocations_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "find_sanitizer", lambda: tmp_path / "compute-sanitizer")
    seen = []

    def run(command, limit_s, **environment):
        seen.append((command, environment))
        return Finished(0, CLEAN)

    assert report.run_tool(report.TOOLS["initcheck"], 9.0, run)["status"] == "passed"
    (alone, _), (watched, environment) = seen
    calls = [sys.executable, "-m", "anchor_verify.small_calls"]
    assert alone == [*calls, "--but", "long tail"]
    assert watched[:3] == [str(tmp_path / "compute-sanitizer"), "--tool", "initcheck"]
    assert watched[-len(alone) :] == alone
    assert environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    seen.clear()
    report.run_tool(report.TOOLS["memcheck-store"], 9.0, run)
    assert [command[-1] for command, _ in seen] == ["store", "store"]


def test_calls_that_fail_by_themselves_are_no_finding_of_the_tool(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "find_sanitizer", lambda: tmp_path)
    found = report.run_tool(
        report.TOOLS["memcheck"], 9.0, lambda *_, **__: Finished(1, "ImportError: no\n")
    )
    assert found == {"status": "failed", "message": "without the tool: ImportError: no"}


def test_the_tool_is_found_on_path_and_in_a_toolkit(monkeypatch, tmp_path):
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    assert report.find_sanitizer() == tool
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert report.find_sanitizer() == tool


def test_a_process_that_takes_too_long_ends_with_all_that_it_started(tmp_path):
    mark = tmp_path / "late"
    late = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {late!r}])"
    code = f"print('begun', flush=True); {start}"
    done = report.finish([sys.executable, "-c", code], 2.0)
    assert done == Finished(None, "begun\n")
    time.sleep(2)
    assert not mark.exists()


def test_a_process_ends_with_its_code_and_output():
    code = "import os, sys; print(os.environ['SAID']); sys.exit(3)"
    assert report.finish([sys.executable, "-c", code], 60.0, SAID="so") == Finished(3, "so\n")


def test_the_files_with_marked_tests_are_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {path.as_posix() for path in report.gpu_test_files()}
    assert {
        "tests/kernels/anchor_kernels/test_gpu.py",
        "tests/anchor_lab/experiments/attention/test_measure.py",
    } <= names
    assert "tests/anchor_models/test_documents.py" not in names


ABOUT = {
    "date": "2026-11-24",
    "device": "a device",
    "driver": "580.0",
    "cuda": "13.0",
    "cudnn": 91900,
    "torch": "2.11.0",
    "triton": "3.6.0",
    "python": "3.12.3",
    "kernels": "0123456789ab",
    "seconds": 7,
}


def test_the_table_tells_machine_pieces_failures_and_values():
    tests = {
        "status": "failed",
        "message": "1 failed | 2 passed",
        "tests": report.read_junit(JUNIT),
    }
    tool = {"status": "failed", **report.read_sanitizer(STRAY)}
    rows = [{"piece": "memcheck"} | ABOUT | tool, {"piece": "bfloat16"} | ABOUT | tests]
    text = report.page({"settings": {}, "runs": [], "rows": rows})
    row = "| 2026-11-24 | a device | 580.0 | 13.0 | 2.11.0 | 3.6.0 | 3.12.3 | 0123456789ab | "
    assert row + "bfloat16, memcheck |" in text
    assert "| bfloat16 | failed | 4 | 7 | 1 failed \\| 2 passed |" in text
    assert "| memcheck | failed | – | 7 | ERROR SUMMARY: 1 error |" in text
    assert "Not run: racecheck." in text
    assert "Not run: memcheck." not in text
    assert "Invalid __global__ write of size 4 bytes" in text
    assert "| `test_error[ragged-float32]` | failure | assert 1.204 <= 1 |" in text
    assert "| `test_error` | 1 | 1 | 3 |" in text
    assert "| ragged | 0.412 | – | 1.204 |" in text
    assert "| a_million | 0.2 | – | – |" in text


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command on a pretended device: each piece ends as it is told."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    out = tmp_path / "report.json"

    def call(*arguments: str, status: str = "passed") -> int:
        monkeypatch.setattr(
            report,
            "run_piece",
            lambda piece, _: {"piece": piece, **ABOUT, "status": status, "message": "said"},
        )
        return report.main(["--out", str(out), *arguments])

    return call, out


def test_pieces_add_up_in_one_file_and_only_all_passed_is_success(command):
    call, out = command
    assert call("--pieces", "memcheck", "bfloat16") == 0
    assert call("--pieces", "racecheck", status="not run") == 1
    results = read(out)
    assert {found["piece"]: found["status"] for found in results["rows"]} == {
        "bfloat16": "passed",
        "memcheck": "passed",
        "racecheck": "not run",
    }
    text = out.with_suffix(".md").read_text()
    assert text == report.page(results)
    assert text.index("\n| bfloat16 ") < text.index("\n| memcheck ") < text.index("\n| racecheck ")
    out.with_suffix(".md").unlink()
    assert call("--table") == 0
    assert out.with_suffix(".md").read_text() == text


def test_a_piece_done_again_takes_the_place_of_the_old_one(command):
    call, out = command
    assert call("--pieces", "memcheck", status="failed") == 1
    assert call("--pieces", "memcheck", "consan") == 0
    found = [(row["piece"], row["status"]) for row in read(out)["rows"]]
    assert found == [("memcheck", "passed"), ("consan", "passed")]


def test_what_was_found_is_on_disk_when_the_page_cannot_be_written(command, monkeypatch):
    call, out = command
    monkeypatch.setitem(sys.modules, "jinja2", None)
    page._environment.cache_clear()
    with pytest.raises(ImportError):
        call("--pieces", "memcheck")
    assert [row["piece"] for row in read(out)["rows"]] == ["memcheck"]


def test_the_committed_report_is_what_the_committed_results_give():
    folder = ROOT / "results" / "verify"
    text = (folder / "gpu_report.md").read_text()
    assert text == report.page(read(folder / "gpu_report.json"))


def test_without_a_cuda_device_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert report.main(["--out", str(tmp_path / "a.json")]) == 2
    expected = "anchor_verify.gpu_report needs a CUDA device, and torch finds none.\n"
    assert capsys.readouterr().err == expected
    assert not list(tmp_path.iterdir())
