"""What the compiler makes of the kernels, for targets that nobody here has: no GPU needed.

In a process of its own: where the interpreter runs the kernels, there is nothing to compile.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.compile_report import SHARED_LIMIT, Compiled, faults

ROOT = Path(__file__).resolve().parents[2]
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
    shared=65536,
    matrix_instructions=20,
    async_copies=10,
)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_kernels_compile_without_spills_within_shared_memory(target):
    """Common head sizes in bfloat16; the whole set is `python -m benchmarks.compile_report`."""
    command = [sys.executable, "-m", "benchmarks.compile_report", "--targets", target]
    done = subprocess.run(
        [*command, "--dtypes", "bfloat16", "--head-dims", "64", "128"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    # Stages 1 and 3 twice each: with and without a running maximum.
    assert len(done.stdout.splitlines()) == 2 * 7


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spilled": 8}, "8 bytes spilled"),
        ({"shared": SHARED_LIMIT["sm_90"] + 1}, "bytes of shared memory"),
        ({"matrix_instructions": 0}, "no matrix instruction"),
        ({"async_copies": 0}, "no asynchronous copy"),
    ],
)
def test_a_fault_is_named(change, fault):
    assert faults(GOOD) == []
    assert fault in faults(replace(GOOD, **change))[0]


def test_the_committed_table_is_whole_and_without_fault():
    table = (ROOT / "benchmarks" / "compile_report.md").read_text()
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| anchor_kernel")]
    # Four targets, three dtypes, four head sizes, with and without a running maximum.
    assert len(rows) == 4 * 3 * 4 * 2
    assert {row[8] for row in rows} == {"0"}  # bytes spilled
