"""README's tables are those that the notebooks and the committed results make."""

import io

import nbformat
import pandas
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from anchor_lab.report.run import Cost
from tools import front_page, notebooks

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
        front_page.course([header], "")
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


def results(*ms):
    settings = {"device": "GPU", "torch": "2", "triton": "3"}
    cells = []
    for n, ours, theirs in ms:
        for method, time in (("anchor", ours), ("sdpa-cudnn", theirs), ("sdpa-flash", None)):
            cell = {"source": "planted", "layer": None, "n": n, "density": 0.05, "run": 0}
            said = {"status": "skipped"} if time is None else {"status": "ok"}
            cells.append({**cell, **said, "method": method, "ms": {"median": time}, "kept": 0.067})
    return {"settings": settings, "runs": [{"date": "2026-01-01"}], "rows": cells}


def test_speeds_are_those_measured():
    long = (131_072, 23.6, 238.0)
    said = front_page.speed(
        results((4096, 4.0, 1.0), (16_384, 2.0, 4.0), long), results((16_384, 8.0, 4.0), long)
    )
    assert "| 16\u202f384 | 6.7 % | 2 ms | 4 ms | – | 2.0 |" in said
    assert "| 131\u202f072 | 6.7 % | 23.6 ms | 238 ms | – | 10.1 |" in said
    assert "4096" not in said
    assert "GPU, 2026-01-01, torch 2, Triton 3" in said
    assert "overtakes cuDNN at 10\u202f300 tokens" in said
    assert "another machine, with one GPU, it does so at 26\u202f500" in said


def test_times_of_several_runs_are_not_one_table():
    mixed = results((16_384, 2.0, 4.0), (131_072, 23.6, 238.0))
    mixed["rows"][0]["run"] = 1
    with pytest.raises(ValueError, match="lengths must be of one run, got runs"):
        front_page.speed(mixed, results((16_384, 2.0, 4.0), (131_072, 23.6, 238.0)))
    with pytest.raises(ValueError, match="lengths must be of one run, got runs"):
        front_page.speed(results((16_384, 2.0, 4.0), (131_072, 23.6, 238.0)), mixed)


def test_tables_go_between_their_marks():
    text = "a <!-- x -->\nold\n<!-- /x --> b"
    assert front_page.filled(text, {"x": "new\n"}) == "a <!-- x -->\nnew\n<!-- /x --> b"
    with pytest.raises(ValueError, match=r"the page must hold <!-- y -->"):
        front_page.filled(text, {"y": "new"})


def test_choices_are_those_measured():
    measures = ("recall_mean", "recall_p10", "recall_min", "executed_density", "output_error")
    rows, cells = [], []
    for number, method in enumerate(front_page.METHODS):
        for density, recall in ((0.4, 0.8), (0.6, 0.9 + number / 1000), (0.8, 1.0)):
            row = {"text": "document", "method": method, "configuration": f"{density}", "n": 4096}
            row |= {"layer": 0, "head": 0, "knob": "x", "value": density, "order": 0}
            row |= {"density": density, "total_cost": density, "identification_cost": 0.0}
            rows.append(row | dict.fromkeys(measures, recall))
        cell = {"length": 8192, "row": method, "task": "a", "density": 0.5, "kept": 0.5}
        cells.append({**cell, "right": number, "asked": 10, "prompts": 10})
    cells.append({**cells[0], "row": "Dense", "density": None, "right": 9})
    said = front_page.choice(pandas.DataFrame(rows), cells)
    assert "| AnchorAttention | 0.850 | 70 % | 0 % (0–28) |" in said
    assert "| FlexPrefill | 0.851 | 70 % | 20 % (6–51) |" in said
    assert "dense attention finds 90 %" in said
