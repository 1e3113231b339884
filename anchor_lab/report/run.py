"""Run a notebook, with parameters if it takes some; the one runner of report, tour and course."""

import copy
import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from anchor_lab.experiments.environment import peak_memory

PARAMETERS = "parameters"  # tag of the cell with the defaults, as papermill has it


class NotebookError(Exception):
    """A notebook that did not run to its end, or does not hold what it should."""


@dataclass(frozen=True)
class Cost:
    """What a run of a notebook took.

    Attributes:
        seconds: wall time, the start of the kernel not counted.
        peak_bytes: most memory that its kernel held; None where the system does not tell.
    """

    seconds: float
    peak_bytes: int | None

    def __str__(self) -> str:
        """In steps that another run on the same machine would land on too."""
        seconds = f"{max(5, 5 * math.ceil(self.seconds / 5))} s on two CPU cores"
        if self.peak_bytes is None:
            return seconds
        return f"{seconds}, {max(0.5, math.ceil(2 * self.peak_bytes / 2**30) / 2):g} GiB of memory"


def execute(
    notebook,
    folder: Path,
    progress: Callable[[list[int]], Iterable[int]] = iter,
    timeout: float | None = None,
) -> Cost:
    """Run all cells in place, in a fresh kernel of this Python.

    Args:
        notebook: a `NotebookNode`; outputs of the cells that ran are in it even after a failure.
        folder: the kernel's working directory.
        progress: wraps the list of the code cells' places.
        timeout: seconds that a cell may take; None means any.

    Returns:
        What it took.

    Raises:
        NotebookError: a cell raised, took more than `timeout`, or the kernel died.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError

    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        # Kernels warn that they talk to us over an unencrypted port of this machine.
        extra_arguments=["--log-level=ERROR"],
    )
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    place, peak = 0, None
    try:
        with client.setup_kernel():
            start = time.monotonic()
            for place in progress([i for i, x in enumerate(notebook.cells) if is_code(x)]):
                client.execute_cell(notebook.cells[place], place)
                peak = peak_memory(client.km.provisioner.pid)
            return Cost(time.monotonic() - start, peak)
    except (CellControlSignal, DeadKernelError) as error:
        raised = isinstance(error, CellExecutionError)
        reason = f"{error.ename}: {error.evalue}" if raised else error
        raise NotebookError(
            f"cell {place} under {headings(notebook)[place]!r} failed\n\n"
            f"{notebook.cells[place].source}\n\n{reason}"
        ) from error


def with_parameters(notebook, **values: object):
    """A copy with other values of its parameters, set in a cell after the one with the defaults.

    Raises:
        NotebookError: no cell, or more than one, is tagged "parameters"; or it does not set one
            of these names.
    """
    from nbformat.v4 import new_code_cell

    notebook = copy.deepcopy(notebook)
    places = [i for i, x in enumerate(notebook.cells) if PARAMETERS in x.metadata.get("tags", [])]
    if len(places) != 1:
        raise NotebookError(f"one cell must be tagged {PARAMETERS!r}, {len(places)} are")
    defaults = notebook.cells[places[0]].source
    if unknown := [x for x in values if not re.search(rf"^{x}\s*=", defaults, re.MULTILINE)]:
        raise NotebookError(f"the notebook has no parameter {', '.join(unknown)}")
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    injected = new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(places[0] + 1, injected)
    return notebook


def is_code(cell) -> bool:
    """Whether a kernel has anything to do for this cell."""
    return cell.cell_type == "code" and bool(cell.source.strip())


def headings(notebook) -> list[str]:
    """For each cell the text of the heading it stands under, "" before the first."""
    current, found = "", []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            titles = [line for line in cell.source.splitlines() if line.startswith("#")]
            current = titles[-1].lstrip("# ") if titles else current
        found.append(current)
    return found
