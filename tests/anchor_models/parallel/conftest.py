"""Processes of `torchrun` for the tests here, started once for all that `worker.py` does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tree import ROOT


@pytest.fixture(scope="session")
def torchrun():
    """Run a command under torchrun with gloo processes; its output, or why it failed."""

    def run(*command: str, ranks: int = 2) -> str:
        start = ("--standalone", "--nproc-per-node", str(ranks))
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *start, *command],
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


@pytest.fixture(scope="session")
def found_by_three(torchrun, tmp_path_factory):
    """What three ranks found out about attention alone."""
    folder = tmp_path_factory.mktemp("three")
    torchrun(str(Path(__file__).parent / "worker.py"), str(folder), "exchange", ranks=3)
    return json.loads((folder / "found.json").read_text())
