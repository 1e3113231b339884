"""Two processes of `torchrun` for the tests here, started once for all that `worker.py` does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tree import ROOT

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
    """What the ranks of `worker.py` found out: one entry for each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(str(Path(__file__).parent / "worker.py"), str(folder))
    return json.loads((folder / "found.json").read_text())
