"""The tour: it fails when it should, and its page needs no network."""

import copy
import io

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from anchor_lab.report.page import formula_to_mathml, loaded_urls, to_html
from anchor_lab.report.run import NotebookError
from tools import notebooks, tour

ROW = {
    "layer": 0,
    "recall_mean": 0.998,
    "recall_p10": 0.99,
    "recall_min": 0.3,
    "density": 0.25,
    "output_error": 0.0123,
    "seconds": 0.5,
}
TABLE = {"model": "toy", "tokens": 4096, "layers": [ROW, {**ROW, "layer": 1}]}


def course(*sources: str):
    cells = [new_markdown_cell("# Title\n\n$s_{ij} \\le \\theta$"), *map(new_code_cell, sources)]
    return new_notebook(cells=cells)


def shows(table) -> str:
    return (
        f"from IPython.display import display\ndisplay({{{tour.LAYERS!r}: {table!r}}}, raw=True)"
    )


def run_tour(tmp_path, notebook) -> int:
    path = tmp_path / "course.ipynb"
    nbformat.write(notebook, path)
    return tour.main([str(path), "--out", str(tmp_path / "out")])


def test_tour_prints_the_table_and_leaves_notebook_and_page(tmp_path, capfd):
    assert run_tour(tmp_path, course(shows(TABLE))) == 0
    printed = capfd.readouterr().out
    assert "cell 1/1  Title" in printed
    assert "toy, 4096 tokens" in printed
    assert "    0       0.9980    0.9900     0.30    0.250       1.2e-02     0.50" in printed
    kept = nbformat.read(tmp_path / "out" / "course.ipynb", as_version=4)
    assert tour.layer_table(kept) == TABLE
    assert "<math" in (tmp_path / "out" / "course.html").read_text(encoding="utf-8")


def test_links_of_the_kept_notebook_and_page_lead_where_the_original_s_did(tmp_path, capfd):
    told = "See [`next`](01.ipynb), [card](../card.md#a), [web](https://a.b/c), [above](#top)."
    notebook = course(shows(TABLE))
    notebook.cells.append(new_markdown_cell(told))
    assert run_tour(tmp_path, notebook) == 0
    kept = nbformat.read(tmp_path / "out" / "course.ipynb", as_version=4).cells[-1].source
    moved = told.replace("01.ipynb", "../01.ipynb").replace("../card", "../../card")
    assert kept == moved
    assert 'href="../../card.md#a"' in (tmp_path / "out" / "course.html").read_text()


def test_tour_fails_with_the_cell_that_failed(tmp_path, capfd):
    assert run_tour(tmp_path, course(shows(TABLE))) == 0
    assert run_tour(tmp_path, course(shows(TABLE), "1 / 0")) == 1
    said = capfd.readouterr().err
    assert "cell 2 under 'Title' failed" in said
    assert "ZeroDivisionError: division by zero" in said
    assert not (tmp_path / "out" / "course.html").exists(), "the page of the run before is left"


def test_tour_fails_when_the_kernel_dies(tmp_path, capfd):
    assert run_tour(tmp_path, course("import os\nos._exit(1)")) == 1
    assert "cell 1 under 'Title' failed" in capfd.readouterr().err


def with_table(*tables):
    outputs = [new_output("display_data", {tour.LAYERS: table}) for table in tables]
    return new_notebook(cells=[new_code_cell("show()", outputs=outputs)])


def changed(**fields) -> dict:
    table = copy.deepcopy(TABLE)
    table["layers"][1].update(fields)
    return table


@pytest.mark.parametrize(
    ("notebook", "complaint"),
    [
        (with_table(), "found 0"),
        (with_table(TABLE, TABLE), "found 2"),
        (with_table({**TABLE, "layers": []}), "no row"),
        (with_table({"model": "toy", "layers": [ROW]}), "lacks tokens"),
        (with_table(changed(recall_mean=float("nan"))), "layer 1: recall_mean"),
        (with_table(changed(output_error=float("inf"))), "layer 1: output_error"),
        (with_table(changed(recall_p10=1.5)), "layer 1: recall_p10"),
        (with_table(changed(density=-0.1)), "layer 1: density"),
        (with_table(changed(seconds="0.5")), "layer 1: seconds"),
        (with_table(changed(seconds=None)), "layer 1: seconds"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(notebook, complaint):
    assert tour.layer_table(with_table(TABLE)) == TABLE
    with pytest.raises(NotebookError, match=complaint):
        tour.layer_table(notebook)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_on_a_terminal(tmp_path):
    stream = Terminal()
    notebooks.run(course("1", "2"), tmp_path / "course", stream)
    assert stream.getvalue().count("\n") == 1
    assert "\r\033[Kcourse  cell 2/2  Title" in stream.getvalue()


def test_normalising_forgets_the_machine_and_is_idempotent(tmp_path):
    path = tmp_path / "course.ipynb"
    texts, notebook = [], course("print(1)", "print(1)")
    for metadata in ({"execution": {"iopub.status.busy": "2026"}}, {"tags": ["kept"]}):
        notebook.cells[1].metadata.update(metadata)
        notebook.metadata["language_info"] = {"version": "3.11.7"}
        nbformat.write(notebook, path)
        assert notebooks.main([str(path)]) == 0
        texts.append(path.read_text(encoding="utf-8"))
    first, second = (nbformat.reads(text, as_version=4) for text in texts)
    assert [cell.id for cell in first.cells] == [cell.id for cell in second.cells]
    assert first.cells[1].metadata == {}
    assert second.cells[1].metadata == {"tags": ["kept"]}
    assert "3.11.7" not in texts[0]
    assert [cell.execution_count for cell in first.cells[1:]] == [1, 2]
    assert notebooks.normalised(first) == first


def test_a_cell_keeps_its_id_and_a_new_one_gets_its_own():
    notebook = notebooks.normalised(course("1", "2", "3"))
    notebook.cells[1].source = "4"
    assert notebooks.normalised(notebook) == notebook, "an edit changes the source alone"
    old = [cell.id for cell in notebook.cells]
    notebook.cells[2].id = old[1]
    notebook.cells[3].id = "no id"
    del notebook.cells[0]["id"]
    twice = [notebooks.normalised(notebook) for _ in range(2)]
    assert twice[0] == twice[1]
    new = [cell.id for cell in twice[0].cells]
    assert new[1] == old[1]
    assert len({*new, *old}) == 4 + 3
    nbformat.validate(twice[0])


def test_a_notebook_that_fails_is_left_as_it_was(tmp_path, capsys):
    path = tmp_path / "course.ipynb"
    nbformat.write(course("print(1)", "1 / 0"), path)
    before = path.read_bytes()
    assert notebooks.main([str(path)]) == 1
    assert path.read_bytes() == before
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_page_loads_nothing_and_would_say_so(tmp_path):
    html = to_html(course("1"), tmp_path, "course")
    assert loaded_urls(html) == set()
    bad = course("1")
    bad.cells[0].source = '<script src="https://a.org/x.js"></script>'
    with pytest.raises(ValueError, match=r"would load https://a\.org/x\.js"):
        to_html(bad, tmp_path, "course")


@pytest.mark.parametrize(
    "html",
    [
        '<link rel="stylesheet" href="https://a.org/x.css">',
        '<img src="picture.png">',
        "<style>@import 'https://a.org/x.css';</style>",
        "<style>p { background: url(https://a.org/x.png) }</style>",
        '<script type="module">import("https://a.org/x.mjs")</script>',
    ],
)
def test_what_a_page_would_load_is_found(html):
    assert loaded_urls(html)
    assert not loaded_urls('<a href="https://a.org">read</a><img src="data:image/png;base64,x">')


def test_a_formula_is_written_or_refused():
    assert "<mfrac>" in formula_to_mathml(r"\frac{a}{b}", "block")
    for tex in (r"\unheardof{x}", r"\begin{aligned} a &= b \end{aligned}"):
        with pytest.raises(ValueError, match="no MathML"):
            formula_to_mathml(tex)
