"""Where things lie in the repository that the tests belong to."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
NOTEBOOKS = ROOT / "notebooks"
