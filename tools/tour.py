"""`make tour`: run the first notebook, keep it as a page, print its table.

The numbers come from the notebook. Exactly one of its outputs carries the mime type
`application/vnd.anchor-ref.layers+json` with

    {"model": "what ran", "tokens": 8192,
     "layers": [{"layer": 0, "recall_mean": 0.99, "recall_p10": 0.97, "recall_min": 0.4,
                 "density": 0.21, "output_error": 0.004, "seconds": 0.31}, ...]}

recall (mean, 10th percentile and minimum over rows), density and output error as
`anchor_ref.measure` defines them, each the mean over the heads of the layer; seconds is the time
of AnchorAttention on the layer. A cell makes it by
`display({LAYERS: table, "text/plain": ...}, raw=True)`.
"""

import argparse
import math
import os
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from anchor_lab.drawing.lessons.heads import LAYERS
from anchor_lab.report.page import to_html
from anchor_lab.report.run import NotebookError
from tools.notebooks import ROOT, run

LINK = re.compile(r"(?<!!)(\[[^\]]*\])\((?!\w+:|#)([^()\s]+)\)")  # relative, and no picture
# Column: heading, format, least and largest value that can be right.
COLUMNS = {
    "layer": ("layer", "d", 0, math.inf),
    "recall_mean": ("recall mean", ".4f", 0, 1 + 1e-4),
    "recall_p10": ("10th pct", ".4f", 0, 1 + 1e-4),
    "recall_min": ("minimum", ".2f", 0, 1 + 1e-4),
    "density": ("density", ".3f", 0, 1),
    "output_error": ("output error", ".1e", 0, math.inf),
    "seconds": ("seconds", ".2f", 0, math.inf),
}


def layer_table(notebook: NotebookNode) -> dict:
    """The table that an executed notebook holds, checked.

    Raises:
        NotebookError: there is none or more than one, a field is missing, or a number is not
            finite or outside the range it must lie in.
    """
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    tables = [output.data[LAYERS] for output in outputs if LAYERS in output.get("data", {})]
    if len(tables) != 1:
        raise NotebookError(f"one output of type {LAYERS} is needed, found {len(tables)}")
    table = tables[0]
    missing = {"model", "tokens", "layers"} - set(table)
    if missing:
        raise NotebookError(f"the table of layers lacks {', '.join(sorted(missing))}")
    if not table["layers"]:
        raise NotebookError("the table of layers has no row")
    for row in table["layers"]:
        for name, (_, _, least, largest) in COLUMNS.items():
            value = row.get(name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and least <= value <= largest):
                raise NotebookError(
                    f"layer {row.get('layer')}: {name} must be a finite number in "
                    f"[{least}, {largest:.4g}], got {value!r}"
                )
    return table


def format_table(table: dict) -> str:
    """The table as text, one line a layer."""
    heads = [head for head, *_ in COLUMNS.values()]
    lines = ["  ".join(heads)]
    for row in table["layers"]:
        cells = [
            f"{row[name]:{form}}".rjust(len(head)) for name, (head, form, *_) in COLUMNS.items()
        ]
        lines.append("  ".join(cells))
    return f"{table['model']}, {table['tokens']} tokens\n\n" + "\n".join(lines)


def relink(notebook: NotebookNode, here: Path, out: Path) -> None:
    """Let the relative links of a notebook in folder `here` hold for its copy in `out`."""

    def moved(link: re.Match) -> str:
        return f"{link[1]}({Path(os.path.relpath(here / link[2], out)).as_posix()})"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(moved, cell.source)


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when every cell ran and the table is there and sound."""
    parser = argparse.ArgumentParser(description="Run the first notebook and print its table.")
    parser.add_argument(
        "notebook", type=Path, nargs="?", default=ROOT / "notebooks" / "00_start_here.ipynb"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder for the results")
    options = parser.parse_args(arguments)
    path, out = options.notebook.resolve(), options.out
    out.mkdir(parents=True, exist_ok=True)
    page = out / f"{path.stem}.html"
    # Never leave the page of an earlier run beside the notebook of a failed one.
    page.unlink(missing_ok=True)
    notebook = nbformat.read(path, as_version=4)
    try:
        try:
            run(notebook, path)
        finally:
            relink(notebook, path.parent, out)
            nbformat.write(notebook, out / path.name)
        page.write_text(to_html(notebook, path.parent, path.stem), encoding="utf-8")
        table = layer_table(notebook)
    except (NotebookError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\n{format_table(table)}\n")
    print(f"executed notebook  {os.path.relpath(out / path.name)}")
    print(f"page with figures  {os.path.relpath(page)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
