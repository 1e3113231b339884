"""README's tables are those that the notebooks and the committed results make."""

import io

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from anchor_lab.report.run import Cost
from tools import front_page, notebooks
from tools.tour import LAYERS

WHOLE_COURSE_SECONDS = 8 * 60
HEADER = """# 07 · A title

**Question.** What
is it?

| | |
|---|---|
| time | a while |
| needs | nothing |"""


def test_tables_are_those_that_the_headers_make():
    for path, text in front_page.pages().items():
        assert path.read_text(encoding="utf-8") == text, "run python -m tools.front_page"


def test_readme_is_no_longer_than_a_front_page():
    """Three answers before anything else; the rest is in docs/."""
    lines = (front_page.ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    first = "\n".join(lines[:25])
    for heading in ("When it pays", "What it loses", "What beats it", "make tour"):
        assert heading in first


def test_the_course_takes_less_than_eight_minutes():
    found = front_page.headers()
    assert found
    assert sum(header.seconds for header in found) < WHOLE_COURSE_SECONDS


def test_a_run_s_cost_goes_into_the_header(tmp_path):
    notebook = new_notebook(cells=[new_markdown_cell(HEADER), new_code_cell("x = 1")])
    cost = notebooks.run(notebook, tmp_path / "toy", io.StringIO())
    assert 0 < cost.seconds < 60
    assert cost.peak_bytes is None or 2**24 < cost.peak_bytes < 2**32
    written = notebooks.with_cost(notebook, Cost(6.2, 900 * 2**20)).cells[0].source
    assert written == HEADER.replace("a while", "10 s on two CPU cores, 1 GiB of memory")
    assert notebook.cells[0].source == HEADER


def test_costs_are_said_in_steps():
    assert str(Cost(0.1, 1)) == "5 s on two CPU cores, 0.5 GiB of memory"
    assert str(Cost(5.01, 2**30 + 1)) == "10 s on two CPU cores, 1.5 GiB of memory"
    assert str(Cost(5.0, None)) == "5 s on two CPU cores"


def test_a_header_is_read_and_one_without_a_time_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(front_page, "COURSE", tmp_path)
    path = tmp_path / "07_toy.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell(HEADER)]), path)
    header = front_page.read_header(path)
    assert (header.title, header.question) == ("07 · A title", "What is it?")
    with pytest.raises(ValueError, match=r"07_toy.ipynb must say how many seconds"):
        front_page.course([header])
    nbformat.write(new_notebook(cells=[new_markdown_cell("no title")]), path)
    with pytest.raises(ValueError, match=r"07_toy.ipynb must begin with a title"):
        front_page.read_header(path)


def test_badges_open_this_version_and_only_a_public_one():
    assert "Binder" not in front_page.course_page([], {"version": "1.2.0"})
    said = front_page.course_page(
        [], {"version": "1.2.0", "repository-code": "https://github.com/someone/anchor/"}
    )
    assert "(https://mybinder.org/v2/gh/someone/anchor/v1.2.0?labpath=notebooks/00" in said
    assert "research.google.com/github/someone/anchor/blob/v1.2.0/notebooks/00" in said
    assert "--branch v1.2.0 https://github.com/someone/anchor anchor" in said
    assert "pip install -c constraints.txt" in said


def test_tables_go_between_their_marks():
    text = "a <!-- x -->\nold\n<!-- /x --> b"
    assert front_page.filled(text, {"x": "new\n"}) == "a <!-- x -->\nnew\n<!-- /x --> b"
    with pytest.raises(ValueError, match=r"the page must hold <!-- y -->"):
        front_page.filled(text, {"y": "new"})


def test_the_first_run_is_the_table_that_the_notebook_holds(tmp_path):
    row = {"layer": 3, "recall_mean": 0.99, "recall_p10": 0.9, "recall_min": 0.4}
    row |= {"density": 0.25, "output_error": 0.01, "seconds": 1.5}
    held = {LAYERS: {"model": "toy", "tokens": 8192, "layers": [row]}}
    cell = new_code_cell("x", outputs=[new_output("display_data", held)])
    path = tmp_path / "toy.ipynb"
    nbformat.write(new_notebook(cells=[cell]), path)
    said = front_page.first_run(path)
    assert said.startswith("```text\ntoy, 8192 tokens\n")
    assert "3       0.9900    0.9000     0.40    0.250       1.0e-02     1.50\n```\n" in said
