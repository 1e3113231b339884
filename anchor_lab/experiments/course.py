"""Committed results, as the notebooks read them."""

from pathlib import Path

from anchor_lab.experiments.store import read

RESULTS = Path(__file__).resolve().parents[2] / "results"


def committed(name: str, file: str | None = None) -> dict:
    """{"settings", "runs", "rows"} of results/NAME/FILE.json, wherever a notebook runs.

    Args:
        name: of an experiment.
        file: without its ending; called as the experiment unless given.

    Raises:
        OSError: there is no such file: the package was installed without the repository.
    """
    return read(RESULTS / name / f"{file or name}.json")


def columns(*cells: str, first: int = 34, other: int = 11) -> str:
    """A line of a printed table: the first cell to the left, the others to the right."""
    return f"{cells[0]:{first}}" + "".join(f"{cell:>{other}}" for cell in cells[1:])
