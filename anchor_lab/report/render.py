"""Run the report's notebook on a folder of results and write it as a page."""

from collections.abc import Callable, Iterable
from pathlib import Path

from anchor_lab.report.page import to_html
from anchor_lab.report.run import execute, with_parameters

NOTEBOOK = Path(__file__).with_name("report.ipynb")
CSS = Path(__file__).with_name("report.css")


def render_report(
    folder: Path,
    title: str,
    progress: Callable[[list[int]], Iterable[int]] = iter,
    **parameters: object,
) -> Path:
    """Run the report in a folder; write report.ipynb and report.html there.

    Args:
        folder: the kernel's working directory, where both files go.
        title: of the page.
        progress: wraps the list of cells.
        parameters: other values for the names in the notebook's first code cell.

    Returns:
        The page's path.

    Raises:
        NotebookError: a cell failed, or there is no such parameter.
    """
    import nbformat

    notebook = with_parameters(nbformat.read(NOTEBOOK, as_version=4), **parameters)
    execute(notebook, folder, progress)
    nbformat.write(notebook, folder / "report.ipynb")
    page = folder / "report.html"
    css = CSS.read_text(encoding="utf-8")
    page.write_text(to_html(notebook, folder, title, css, code=False), encoding="utf-8")
    return page
