"""What the commands of several benchmarks share: options, and that some need a GPU."""

import argparse
import sys
from pathlib import Path

import torch


def parser(doc: str, out: Path) -> argparse.ArgumentParser:
    """--device, --table and --out.

    Args:
        doc: of the benchmark's module; its first line is the description.
        out: where the results go unless --out names another file.
    """
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made.add_argument("--device", default=device, help=f"default here: {device}")
    made.add_argument("--table", action="store_true", help="no measuring, only table and figure")
    made.add_argument("--out", type=Path, default=out)
    return made


def lacks_cuda(bench: str) -> bool:
    """Whether torch finds no CUDA device, which a line on stderr then says."""
    if torch.cuda.is_available():
        return False
    print(f"benchmarks.{bench} needs a CUDA device, and torch finds none.", file=sys.stderr)
    return True
