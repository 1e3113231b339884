"""Execute notebooks with a progress display, and bring them into the form they are committed in.

`python -m tools.notebooks` re-executes every notebook of the course, each in a fresh kernel, and
rewrites it with its outputs and counts, and with the time and memory that it took in its header.
A notebook that fails is left as it was.
"""

import copy
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import TextIO

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError
from nbformat import NotebookNode

from tools.prose import one_sentence_a_line

ROOT = Path(__file__).resolve().parent.parent
CELL_SECONDS = 300  # a cell that takes longer hangs

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "pygments_lexer": "ipython3",
}
TIME_ROW = re.compile(r"^\| time \|.*\|$", re.MULTILINE)  # of the table in a notebook's first cell
CELL_ID = re.compile(r"[\w-]{1,64}", re.ASCII)  # as nbformat wants it
CELL_METADATA = {"tags", "jupyter"}  # what an author sets; editors and kernels add the rest


class NotebookError(Exception):
    """A notebook that did not run to its end, or does not hold what it should."""


class Progress:
    """One line that is updated on a terminal, one line a cell elsewhere."""

    def __init__(self, name: str, stream: TextIO):
        self.name, self.stream = name, stream
        self.live = stream.isatty()
        self.start = time.monotonic()

    def show(self, text: str) -> None:
        line = f"{self.name}  {text}"
        self.stream.write(f"\r\033[K{line[:100]}" if self.live else f"{line}\n")
        self.stream.flush()

    def done(self, n_cells: int) -> None:
        self.show(f"{n_cells} cells in {time.monotonic() - self.start:.0f} s")
        if self.live:
            self.stream.write("\n")


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


def find(folder: Path = ROOT / "notebooks") -> list[Path]:
    """Every notebook of the course, in reading order."""
    return sorted(
        path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
    )


def headings(notebook: NotebookNode) -> list[str]:
    """For each cell the text of the heading it stands under, "" before the first."""
    current, found = "", []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            titles = [line for line in cell.source.splitlines() if line.startswith("#")]
            current = titles[-1].lstrip("# ") if titles else current
        found.append(current)
    return found


def execute(notebook: NotebookNode, folder: Path, name: str, stream: TextIO | None = None) -> Cost:
    """Run all cells in place, in a fresh kernel of this Python, from `folder`.

    Args:
        notebook: outputs of the cells that ran are in it even after a failure.
        folder: the kernel's working directory.
        name: shown in front of the progress.
        stream: where progress goes, standard output unless given.

    Returns:
        What it took.

    Raises:
        NotebookError: a cell raised, took more than `CELL_SECONDS`, or the kernel died.
    """
    stream = stream or sys.stdout
    titles, progress = headings(notebook), Progress(name, stream)
    code = [i for i, cell in enumerate(notebook.cells) if is_code(cell)]
    last, peak, started = 0, None, 0.0

    def start(notebook):
        nonlocal started
        started = time.monotonic()

    def look(cell, cell_index, execute_reply):
        nonlocal peak
        peak = peak_memory(client.km.provisioner.pid)

    def show(cell, cell_index):
        nonlocal last
        last = cell_index
        progress.show(f"cell {code.index(cell_index) + 1}/{len(code)}  {titles[cell_index]}")

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        # Kernels warn that they talk to us over an unencrypted port of this machine.
        extra_arguments=["--log-level=ERROR"],
        on_cell_execute=show,
        on_notebook_start=start,
        on_cell_executed=look,
    )
    try:
        client.execute()
    except (CellControlSignal, DeadKernelError) as error:
        if progress.live:
            stream.write("\n")
        reason = (
            f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else error
        )
        source = notebook.cells[last].source
        raise NotebookError(
            f"{name}: cell {last} under {titles[last]!r} failed\n\n{source}\n\n{reason}"
        ) from error
    seconds = time.monotonic() - started
    progress.done(len(code))
    return Cost(seconds, peak)


def peak_memory(pid: int) -> int | None:
    """Most bytes that a process has held so far; None where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def with_cost(notebook: NotebookNode, cost: Cost) -> NotebookNode:
    """A copy whose header says what a run takes; without the row `| time | … |`, as it is."""
    notebook = copy.deepcopy(notebook)
    if notebook.cells:
        first = notebook.cells[0]
        first.source = TIME_ROW.sub(f"| time | {cost} |", first.source, count=1)
    return notebook


def is_code(cell: NotebookNode) -> bool:
    """Whether a kernel has anything to do for this cell."""
    return cell.cell_type == "code" and bool(cell.source.strip())


def normalised(notebook: NotebookNode) -> NotebookNode:
    """A copy in the form that is committed, whose diff shows real changes alone.

    Prose has one sentence a line. A cell keeps its id however its text changes; one without an id,
    or with that of an earlier cell, gets a new one. Metadata of editors, kernels and machines
    goes; outputs, counts and tags stay.
    """
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": LANGUAGE})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    given = {cell.get("id") for cell in notebook.cells}
    used: set[str] = set()
    for place, cell in enumerate(notebook.cells):
        if not CELL_ID.fullmatch(cell.get("id") or "") or cell.id in used:
            text = f"{place}\n{cell.cell_type}\n{cell.source}"
            cell.id = next(new for new in _ids(text) if new not in given | used)
        used.add(cell.id)
        if cell.cell_type == "markdown":
            cell.source = one_sentence_a_line(cell.source)
        kept = {key: value for key, value in cell.metadata.items() if key in CELL_METADATA}
        cell.metadata = nbformat.from_dict(kept)
    return notebook


def _ids(text: str) -> Iterator[str]:
    """Ids for a new cell, the same in every run: digits of the hash of where and what it was."""
    return (sha256(f"{text}\n{again}".encode()).hexdigest()[:10] for again in count())


def main(paths: Iterable[str]) -> int:
    """Re-execute and rewrite the notebooks given, or all of them. Returns the exit code."""
    failed = False
    for path in [Path(path).resolve() for path in paths] or find():
        notebook = nbformat.read(path, as_version=4)
        try:
            cost = execute(notebook, path.parent, path.name)
        except NotebookError as error:
            print(error, file=sys.stderr)
            failed = True
        else:
            nbformat.write(normalised(with_cost(notebook, cost)), path)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
