"""What the compiler makes of the kernels, for targets that nobody here has: no GPU needed.

In a process of its own: where the interpreter runs the kernels, there is nothing to compile.
"""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from anchor_verify.compile_report import (
    DTYPES,
    HEAD_DIMS,
    TARGETS,
    Compiled,
    faults,
    page,
    read_assembler,
)
from tests.tree import ROOT

GOOD = Compiled(
    kernel="sparse_kernel",
    target="sm_90",
    dtype="bfloat16",
    head_dim=128,
    tiles="",
    warps=8,
    stages=2,
    registers=128,
    spilled=0,
    slowed=0,
    shared=65536,
    matrix_instructions=20,
    async_copies=10,
)


def run_report(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "anchor_verify.compile_report", *options],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_kernels_compile_without_spills_within_shared_memory(target):
    """Common head sizes in bfloat16; the whole set is `python -m anchor_verify.compile_report`."""
    done = run_report("--targets", target, "--dtypes", "bfloat16", "--head-dims", "64", "128")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    # Stages 1 and 3 twice each: with and without a running maximum.
    assert len(done.stdout.splitlines()) == 2 * 9


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spilled": 8}, "8 bytes spilled"),
        ({"slowed": 1}, "1 times slowed down"),
        ({"shared": TARGETS["sm_90"].shared + 1}, "bytes of shared memory"),
        ({"matrix_instructions": 0}, "no matrix instruction"),
        ({"async_copies": 0}, "no asynchronous copy"),
    ],
)
def test_a_fault_is_named(change, fault):
    assert faults(GOOD) == []
    assert fault in faults(replace(GOOD, **change))[0]


def test_what_the_assembler_says_is_read():
    # As ptxas 12.8 says it of stage 3 with 64 keys a step and at most 128 registers.
    report = """
ptxas info    : 0 bytes gmem
ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized \
due to insufficient register resources for the function 'sparse_kernel'
ptxas info    : Compiling entry function 'sparse_kernel' for 'sm_90a'
ptxas info    : Function properties for sparse_kernel
    24 bytes stack frame, 24 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 24 bytes cumulative stack size
"""
    assert read_assembler(report) == {"registers": 128, "spilled": 56, "slowed": 1}
    quiet = "\n".join(line for line in report.splitlines() if "Loss" not in line)
    assert read_assembler(quiet)["slowed"] == 0


def committed_rows() -> list[Compiled]:
    return read_rows((ROOT / "results" / "verify" / "compile_report.md").read_text())


def read_rows(text: str) -> list[Compiled]:
    """The configurations of a page: the tables whose columns are those of `Compiled`."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    header = [name.replace("_", " ") for name in Compiled.__dataclass_fields__]
    wide = [entries for entries in lines if len(entries) == len(header)]
    rows = [entries for entries in wide if entries[0] not in ("kernel", "---")]
    assert all(entries == header for entries in wide if entries[0] == "kernel")
    return [Compiled(*(int(x) if x.isdigit() else x for x in entries)) for entries in rows]


def test_the_page_begins_with_the_extremes_of_each_target_and_holds_every_row():
    worse = replace(GOOD, registers=255, spilled=8, head_dim=64)
    other = replace(GOOD, target="gfx942", shared=1024, slowed=0, async_copies=0)
    text = page([GOOD, worse, other])
    assert "| sm_90 | 2 | 1 | 255 | 8 | 0 | 65536 | 232448 |" in text
    assert "| gfx942 | 1 | 0 | 128 | 0 | 0 | 1024 | 65536 |" in text
    assert "sm_80" not in text
    assert read_rows(text) == [GOOD, worse, other]


def test_the_committed_table_is_of_the_launches_as_they_are():
    done = run_report("--launches")
    assert done.returncode == 0, done.stderr[-2000:]
    launches = Counter(done.stdout.splitlines())
    fields = ("kernel", "target", "dtype", "head_dim", "tiles", "stages")
    rows = [" | ".join(str(getattr(row, name)) for name in fields) for row in committed_rows()]
    assert Counter(rows) == launches, "run python -m anchor_verify.compile_report"


def test_the_committed_table_is_whole_and_without_fault():
    rows = committed_rows()
    assert {row: faults(row) for row in rows if faults(row)} == {}
    # Nine launches for each: stages 1 and 3 twice, with and without a running maximum, stage 2
    # with and without rows that it asks, and the tail's merge.
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    places = Counter((row.target, row.dtype, row.head_dim) for row in rows)
    assert places == dict.fromkeys(product(TARGETS, names, HEAD_DIMS), 9)
