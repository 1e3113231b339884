"""Execute notebooks with a progress display, and bring them into the form they are committed in.

`python -m tools.notebooks` re-executes every notebook of the course, each in a fresh kernel, and
rewrites it with its outputs and counts, and with the time and memory that it took in its header.
A notebook that fails is left as it was.
"""

import copy
import re
import sys
import time
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import TextIO

import nbformat
from nbformat import NotebookNode

from anchor_lab.report.run import Cost, NotebookError, execute, headings
from tools.prose import one_sentence_a_line

ROOT = Path(__file__).resolve().parent.parent
CELL_SECONDS = 300.0  # a cell that takes longer hangs

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


def find(folder: Path = ROOT / "notebooks") -> list[Path]:
    """Every notebook of the course, in reading order."""
    return sorted(
        path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
    )


def run(notebook: NotebookNode, path: Path, stream: TextIO | None = None) -> Cost:
    """Run all cells in place, from the folder of `path`, with a display of what runs.

    Args:
        notebook: outputs of the cells that ran are in it even after a failure.
        path: of its file; the name is shown in front of the progress.
        stream: where progress goes, standard output unless given. A terminal shows one line that
            is updated; elsewhere there is one line a cell.

    Raises:
        NotebookError: a cell raised, took more than `CELL_SECONDS`, or the kernel died.
    """
    stream = stream or sys.stdout
    live, titles, start = stream.isatty(), headings(notebook), time.monotonic()

    def show(text: str) -> None:
        line = f"{path.name}  {text}"
        stream.write(f"\r\033[K{line[:100]}" if live else f"{line}\n")
        stream.flush()

    def progress(places: list[int]) -> Iterator[int]:
        for number, place in enumerate(places, 1):
            show(f"cell {number}/{len(places)}  {titles[place]}")
            yield place
        show(f"{len(places)} cells in {time.monotonic() - start:.0f} s")

    try:
        return execute(notebook, path.parent, progress, CELL_SECONDS)
    except NotebookError as error:
        raise NotebookError(f"{path.name}: {error}") from error
    finally:
        if live:
            stream.write("\n")


def with_cost(notebook: NotebookNode, cost: Cost) -> NotebookNode:
    """A copy whose header says what a run takes; without the row `| time | … |`, as it is."""
    notebook = copy.deepcopy(notebook)
    if notebook.cells:
        first = notebook.cells[0]
        first.source = TIME_ROW.sub(f"| time | {cost} |", first.source, count=1)
    return notebook


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
            cost = run(notebook, path)
        except NotebookError as error:
            print(error, file=sys.stderr)
            failed = True
        else:
            nbformat.write(normalised(with_cost(notebook, cost)), path)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
