"""Execute the report's notebook and write it as a page."""

from collections.abc import Callable, Iterable
from pathlib import Path

from anchor_lab.report.page import to_html

CSS = """
body { background: #fff; }
main { padding: 0 1rem 4rem; }
.jp-Cell { padding: 0; }
.jp-RenderedHTMLCommon { font-size: 16px; line-height: 1.55; max-width: none; }
.jp-OutputArea { display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; }
.jp-OutputArea-child { flex: 1 1 440px; min-width: 0; max-width: 100%; display: block; }
.jp-OutputArea-child:has(.jp-RenderedHTML) { flex-basis: 100%; }
.jp-RenderedImage img { max-width: 100%; height: auto; }
.jp-RenderedHTMLCommon .wide { overflow-x: auto; }
.jp-RenderedHTMLCommon table { margin: 0.5rem 0 1.5rem; border-collapse: collapse; font-size: 14px;
  font-variant-numeric: tabular-nums; }
.jp-RenderedHTMLCommon :is(td, th) { padding: 4px 10px; border-bottom: 1px solid #e5e5e5;
  vertical-align: top; max-width: none; }
.jp-RenderedHTMLCommon :is(td, th).words { text-align: left !important; min-width: 6em; }
.jp-RenderedHTMLCommon table tr { background: none; }
.jp-RenderedHTMLCommon tr.marked td { font-weight: bold; background: #eef5fb; }
.jp-RenderedHTMLCommon mark { background: #fbe3d3; padding: 0 2px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 0.5rem 0 1rem; }
.cards div { border: 1px solid #e0e0e0; border-radius: 8px; padding: 12px 14px; }
.cards b { display: block; font-size: 26px; line-height: 1.3; color: #0072b2; }
.cards span { color: #555; font-size: 13px; }
@media (max-width: 600px) {
  main, .jp-Notebook { padding: 0 6px 3rem !important; }
  .jp-Cell, .jp-RenderedMarkdown, .jp-RenderedHTML { padding-left: 0 !important;
    padding-right: 0 !important; }
}
@media print {
  main :is(.jp-OutputArea-child:has(img), .jp-RenderedImage) { display: block; flex-basis: 14em; }
  .jp-OutputArea-child:has(img), .cards, tr { break-inside: avoid; }
  :is(h1, h2) { break-after: avoid; }
}
"""


def render_report(
    cells: list[tuple[str, str]],
    folder: Path,
    title: str,
    progress: Callable[[list], Iterable] = iter,
) -> Path:
    """Run the cells in a fresh kernel of this Python; write report.ipynb and report.html.

    Args:
        cells: of `report_cells`.
        folder: the kernel's working directory, where both files go.
        title: of the page.
        progress: wraps the list of cells.

    Returns:
        The page's path.

    Raises:
        RuntimeError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    make = {"code": new_code_cell, "markdown": new_markdown_cell}
    notebook = new_notebook(cells=[make[kind](source) for kind, source in cells])
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--log-level=ERROR"],
    )
    try:
        with client.setup_kernel():
            for number, cell in enumerate(progress(notebook.cells)):
                client.execute_cell(cell, number)
    except (CellControlSignal, DeadKernelError) as error:
        raise RuntimeError(f"the report's notebook failed: {error}") from error
    nbformat.write(notebook, folder / "report.ipynb")
    page = folder / "report.html"
    page.write_text(to_html(notebook, folder, title, CSS, code=False), encoding="utf-8")
    return page
