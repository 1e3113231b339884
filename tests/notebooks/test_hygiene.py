"""Committed notebooks are complete, were run once from top to bottom, and name no machine."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from anchor_lab.report.page import markdown_to_html
from anchor_lab.report.run import is_code
from tools import notebooks
from tools.notebooks import ROOT
from tools.prose import one_sentence_a_line

LARGEST_FILE = 400_000  # bytes
LONGEST_CELL = 30  # lines
# A path from the root of a file system with at least one folder, but no URL and no closing tag.
ABSOLUTE_PATH = re.compile(
    r"(?<![\w<:/.~)\]}-])/(?:[\w.+-]+/)+[\w.+-]*|\b[A-Za-z]:\\\w+|ipykernel_\d+"
)
FIGURE_CALL = re.compile(r"\b(?:draw|show)_\w+\(|\bplt\.show\(|\bimshow\(")
LINK = re.compile(r"(?<!!)\]\(([^()\s]+)\)")
# A file of the repository in code type, maybe with the name of something in it.
NAMED = re.compile(
    r"`((?:anchor_ref|anchor_models|anchor_lab|results|docs|kernels|tests|tools|training)/[\w./-]*)(?::\s(\w+))?`"
)
COURSE = [path for path in notebooks.find() if path.name[:2].isdigit()]


def code_cells(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    return [(i, cell) for i, cell in enumerate(notebook.cells) if is_code(cell)]


def outputs(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    return [(i, output) for i, cell in code_cells(notebook) for output in cell.outputs]


def texts(output: NotebookNode) -> list[str]:
    """What an output says in words, in all its forms."""
    said = [output.get("text", ""), *output.get("traceback", [])]
    for mime, data in output.get("data", {}).items():
        if mime.startswith("text/") or mime.endswith(("json", "javascript")):
            said.append(data if isinstance(data, str) else str(data))
    return said


def counts(notebook: NotebookNode) -> list[str]:
    """nbval compares nothing in a cell without a count; one clean run counts 1, 2, 3, ..."""
    return [
        f"cell {i}: execution count {cell.execution_count}, expected {position}"
        for position, (i, cell) in enumerate(code_cells(notebook), 1)
        if cell.execution_count != position
    ]


def not_a_sentence_a_line(notebook: NotebookNode) -> list[str]:
    """A diff shows which sentence changed, where each has a line of its own."""
    return [
        f"cell {i}: {line[:60]!r} does not hold one sentence, run `make notebooks`"
        for i, text in prose(notebook)
        for line in sorted({*text.splitlines()} - {*one_sentence_a_line(text).splitlines()})
    ]


def missing_figures(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {i}: draws a figure but holds no picture"
        for i, cell in code_cells(notebook)
        if FIGURE_CALL.search(cell.source)
        and not any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]


def pictures_without_words(notebook: NotebookNode) -> list[str]:
    """`style.show(figure, "words")` gives a picture its alternative text."""
    return [
        f"cell {i}: a picture without alternative text"
        for i, output in outputs(notebook)
        if "image/png" in output.get("data", {})
        and not output.get("metadata", {}).get("image/png", {}).get("alt", "").strip()
    ]


def missing_results(notebook: NotebookNode) -> list[str]:
    """A cell that prints or ends in a name shows something; without outputs it was stripped."""
    shows = re.compile(r"^\s*(print|display)\(|\n[A-Za-z_][\w.]*$", re.MULTILINE)
    return [
        f"cell {i}: should show something but holds no output"
        for i, cell in code_cells(notebook)
        if shows.search("\n" + cell.source.rstrip()) and not cell.outputs
    ]


def errors(notebook: NotebookNode) -> list[str]:
    """An exception is welcome only where the cell says that it belongs to the lesson."""
    return [
        f"cell {i}: {output.ename}: {output.evalue}"
        for i, output in outputs(notebook)
        if output.output_type == "error"
        and "raises-exception" not in notebook.cells[i].metadata.get("tags", [])
    ]


def stderr(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {i}: stderr: {output.text[:80]!r}"
        for i, output in outputs(notebook)
        if output.output_type == "stream" and output.name == "stderr"
    ]


def absolute_paths(notebook: NotebookNode) -> list[str]:
    said = [(i, cell.source) for i, cell in enumerate(notebook.cells)]
    said += [(i, text) for i, output in outputs(notebook) for text in texts(output)]
    return [
        f"cell {i}: {match.group()!r}"
        for i, text in said
        if (match := ABSOLUTE_PATH.search(text)) is not None
    ]


def vector_pictures(notebook: NotebookNode) -> list[str]:
    """SVG and PDF differ in every run."""
    return [
        f"cell {i}: {mime}"
        for i, output in outputs(notebook)
        for mime in output.get("data", {})
        if mime in ("image/svg+xml", "application/pdf")
    ]


def long_cells(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {i}: {len(cell.source.splitlines())} lines"
        for i, cell in enumerate(notebook.cells)
        if len(cell.source.splitlines()) > LONGEST_CELL
    ]


def not_normalised(notebook: NotebookNode) -> list[str]:
    """An id of its own for each cell, no metadata of a machine or an editor."""
    clean = notebooks.normalised(notebook)
    faults = [
        f"cell {i}: id {was.get('id')!r} or metadata {dict(was.metadata)}, run `make notebooks`"
        for i, (was, should) in enumerate(zip(notebook.cells, clean.cells, strict=True))
        if was != should
    ]
    if notebook.metadata != clean.metadata:
        faults.append(f"metadata {dict(notebook.metadata)}, run `make notebooks`")
    return faults


def formulas(notebook: NotebookNode) -> list[str]:
    """`make tour` writes formulas as MathML: every one must have some."""
    faults = []
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            try:
                markdown_to_html(cell.source, attachments=cell.get("attachments", {}))
            except ValueError as error:
                faults.append(f"cell {i}: {error}")
    return faults


def prose(notebook: NotebookNode) -> list[tuple[int, str]]:
    return [
        (i, cell.source) for i, cell in enumerate(notebook.cells) if cell.cell_type == "markdown"
    ]


def headings(notebook: NotebookNode) -> list[str]:
    """One title, and no level left out below it: readers of a screen reader jump by them."""
    found = [
        (i, len(marks))
        for i, text in prose(notebook)
        for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    ]
    levels = [0, *(level for _, level in found)]
    faults = [
        f"cell {i}: a heading of level {level} after one of level {before}"
        for (i, level), before in zip(found, levels, strict=False)
        if level > before + 1
    ]
    return faults + ["not one title"] * (levels.count(1) != 1)


def links(notebook: NotebookNode, folder: Path = ROOT / "notebooks") -> list[str]:
    """Links of a notebook in `folder` lead to files, and named files and functions exist."""
    faults = []
    for i, text in prose(notebook):
        for url in LINK.findall(re.sub(r"`[^`]*`", "", text)):
            parts = urlsplit(url)
            if not parts.scheme and parts.path and not (folder / parts.path).exists():
                faults.append(f"cell {i}: {url} leads nowhere")
        for name, inside in NAMED.findall(text):
            path = ROOT / name
            if not path.exists():
                faults.append(f"cell {i}: there is no {name}")
            elif inside and not re.search(rf"^(def|class) {inside}\b", path.read_text(), re.M):
                faults.append(f"cell {i}: no {inside} in {name}")
    return faults


def navigation(notebook: NotebookNode, before: Path | None, after: Path | None) -> list[str]:
    """The same line in the first cell and at the end leads one notebook back and one on."""
    ways = [rf"\[← {before.name[:2]} · [^]]+\]\({re.escape(before.name)}\)"] if before else []
    if after:
        ways.append(rf"\[{after.name[:2]} · [^]]+ →\]\({re.escape(after.name)}\)")
    line = re.compile("^" + r" \| ".join(ways) + ("$" if after else r" \| .+$"), re.M)
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    top = line.search(first)
    if top is None:
        return [f"cell 0: no line {line.pattern}"]
    return [] if last.endswith(f"\n{top[0]}") else [f"the last line is not {top[0]}"]


CHECKS = [
    counts,
    missing_figures,
    pictures_without_words,
    missing_results,
    errors,
    stderr,
    absolute_paths,
    vector_pictures,
    long_cells,
    not_a_sentence_a_line,
    not_normalised,
    formulas,
    headings,
]


def test_there_are_notebooks():
    assert notebooks.find(), "no notebook found: the other tests here would pass unasked"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", notebooks.find(), ids=lambda path: path.name)
def test_notebook(path: Path, check):
    faults = check(nbformat.read(path, as_version=4))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", notebooks.find(), ids=lambda path: path.name)
def test_notebook_is_small(path: Path):
    assert path.stat().st_size <= LARGEST_FILE


@pytest.mark.parametrize("path", notebooks.find(), ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path):
    assert links(nbformat.read(path, as_version=4), path.parent) == []


@pytest.mark.parametrize(
    ("path", "before", "after"),
    list(zip(COURSE, [None, *COURSE[:-1]], [*COURSE[1:], None], strict=True)),
    ids=[path.name for path in COURSE],
)
def test_each_notebook_leads_to_the_one_before_and_the_one_after(path, before, after):
    assert navigation(nbformat.read(path, as_version=4), before, after) == []


# The checks themselves: a sound notebook passes all, and each fault is found by its own check.


PNG = {"image/png": "iVBORw0KGgo=", "text/plain": "A map."}


def picture(alt: str = "A map.") -> NotebookNode:
    return new_output("display_data", PNG, metadata={"image/png": {"alt": alt}})


def said(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


def sound() -> NotebookNode:
    """A title, a figure, a number; text that resembles a path but is none."""
    notebook = new_notebook(
        cells=[
            new_markdown_cell(
                "# Title\n\nq/k/v at https://a.org/b/c, $s_{ij} = q_i / k_j$, <b>x</b>/y\n"
                "\n[00 · Start](00_start_here.ipynb#part), [paper](https://a.org/b), [up](#x)\n"
                "\n`kernels/anchor_kernels/`, `anchor_ref/anchor.py: compute_anchor`,"
                " `run[(16,)](x)`\n\n## Part"
            ),
            new_code_cell("draw_map(data, ax)", execution_count=1, outputs=[picture()]),
            new_code_cell("print('1 / 2')", execution_count=2, outputs=[said("1 / 2 and a/b\n")]),
        ]
    )
    return notebooks.normalised(notebook)


def change_cell(index: int, **fields):
    def change(notebook):
        notebook.cells[index].update(fields)

    return change


def say(output: NotebookNode):
    return change_cell(2, outputs=[said("1 / 2\n"), output])


LONG = "\n".join(f"x = {i}" for i in range(LONGEST_CELL + 1))

FAULTS = [
    (counts, change_cell(1, execution_count=None)),
    (counts, change_cell(2, execution_count=1)),
    (counts, change_cell(1, execution_count=3)),
    (missing_figures, change_cell(1, outputs=[said("<Figure size 640x480>")])),
    (missing_figures, change_cell(2, source="lesson.show_map(x, 2)")),
    (pictures_without_words, change_cell(1, outputs=[new_output("display_data", PNG)])),
    (pictures_without_words, change_cell(1, outputs=[picture(" ")])),
    (missing_results, change_cell(2, outputs=[])),
    (missing_results, change_cell(2, source="x = 1\nx", outputs=[])),
    (errors, say(new_output("error", ename="ValueError", evalue="no", traceback=[]))),
    (stderr, say(said("UserWarning: no\n", "stderr"))),
    (absolute_paths, say(said("read /home/someone/data.txt"))),
    (absolute_paths, say(said("'/tmp/ipykernel_12/3.py:1'"))),
    (absolute_paths, say(said(r"C:\Users\someone"))),
    (absolute_paths, say(new_output("execute_result", {"text/html": "<p>/opt/x/y</p>"}))),
    (absolute_paths, change_cell(0, source="Open /mnt/disk/x")),
    (absolute_paths, change_cell(1, source="draw_map('/srv/data/x')")),
    (vector_pictures, say(new_output("display_data", {"image/svg+xml": "<svg/>"}))),
    (long_cells, change_cell(1, source=LONG)),
    (long_cells, change_cell(0, source=LONG)),
    (not_a_sentence_a_line, change_cell(0, source="# Title\n\nOne sentence. And another.")),
    (not_a_sentence_a_line, change_cell(0, source="# Title\n\nA sentence that\ngoes on.")),
    (not_normalised, change_cell(1, id="")),
    (not_normalised, change_cell(1, id="a.b")),
    (not_normalised, lambda notebook: notebook.cells[2].update(id=notebook.cells[1].id)),
    (not_normalised, change_cell(1, metadata={"execution": {"iopub.execute_input": "2026"}})),
    (not_normalised, lambda notebook: notebook.metadata.language_info.update(version="3.11.7")),
    (formulas, change_cell(0, source=r"$\unheardof{x}$")),
    (formulas, change_cell(0, source="$$\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}$$")),
    (headings, change_cell(0, source="# Title\n\n### Part")),
    (headings, change_cell(0, source="## Part")),
    (headings, change_cell(0, source="# Title\n\n## Part\n\n# Another title")),
    (links, change_cell(0, source="# [99 · None](99_none.ipynb)")),
    (links, change_cell(0, source="# [table](../results/none.md)")),
    (links, change_cell(0, source="# `anchor_ref/none.py`")),
    (links, change_cell(0, source="# `anchor_ref/anchor.py: compute_anchors`")),
]
NAVIGATION = "[← 03 · Back](03_back.ipynb) | [05 · On →](05_on.ipynb)"


def test_a_sound_notebook_passes_every_check():
    checks = [*CHECKS, links]
    assert {check.__name__: check(sound()) for check in checks if check(sound())} == {}


@pytest.mark.parametrize(("check", "change"), FAULTS)
def test_a_fault_is_found(check, change):
    notebook = sound()
    change(notebook)
    assert check(notebook)


def test_every_check_has_a_fault_that_it_finds():
    assert {check for check, _ in FAULTS} == {*CHECKS, links}


@pytest.mark.parametrize(
    ("top", "bottom"),
    [
        (NAVIGATION, ""),
        ("", NAVIGATION),
        (NAVIGATION, NAVIGATION.replace("Back", "Return")),
        (*(NAVIGATION.replace("05_on", "06_on"),) * 2,),
        (*(NAVIGATION.replace("03 ·", "02 ·"),) * 2,),
        (*(NAVIGATION.split(" | ")[0],) * 2,),
    ],
)
def test_a_way_that_is_missing_or_wrong_is_found(top, bottom):
    ways = Path("03_back.ipynb"), Path("05_on.ipynb")
    sound, faulty = (
        new_notebook(
            cells=[new_markdown_cell(f"# Title\n\n{x}"), new_markdown_cell(f"End\n\n{y}")]
        )
        for x, y in ((NAVIGATION, NAVIGATION), (top, bottom))
    )
    assert navigation(sound, *ways) == []
    assert navigation(faulty, *ways)


def test_an_exception_that_belongs_to_the_lesson_passes():
    notebook = sound()
    say(new_output("error", ename="ValueError", evalue="no", traceback=[]))(notebook)
    notebook.cells[2].metadata["tags"] = ["raises-exception"]
    assert errors(notebook) == []
