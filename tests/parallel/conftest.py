"""Two processes of `torchrun` for the tests here, each mode run once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TWO = ("--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="session")
def torchrun():
    """Run a command under torchrun with two gloo processes; its output, or why it failed."""

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *TWO, *command],
            cwd=ROOT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def found_by_ranks(torchrun, tmp_path_factory):
    """What the ranks of `worker.py` found out, by mode: one entry for each rank."""
    known = {}

    def found(mode: str) -> list[dict]:
        if mode not in known:
            known[mode] = None  # ranks that failed once are not asked again by each test
            out = tmp_path_factory.mktemp("ranks") / f"{mode}.json"
            torchrun(str(Path(__file__).parent / "worker.py"), mode, str(out))
            known[mode] = json.loads(out.read_text())
        assert known[mode] is not None, f"the ranks of {mode!r} failed, see the first error"
        return known[mode]

    return found
