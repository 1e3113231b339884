"""The paper trail leads somewhere: every file, function, test and heading in it is there."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

import anchor_ref
from tests.tree import ROOT

PAGE = ROOT / "docs" / "paper_trail.md"
COLUMNS = "step", "code", "test", "notebook"
PLACE = re.compile(r"`([\w/.]+\.py):(\w+)`")
CELL = re.compile(r"\[(.+)\]\(\.\./(notebooks/\w+\.ipynb)\)")


def rows(page: str) -> list[dict[str, str]]:
    """The table of the page."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
    return [dict(zip(COLUMNS, row, strict=True)) for row in cells]


def defined(path: Path) -> set[str]:
    """Functions and classes of a file's top level."""
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)}


def headings(path: Path) -> set[str]:
    """Headings of a notebook, without their numbers."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return {
        re.sub(r"^\d+ · ", "", found) for found in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


def faults(row: dict[str, str]) -> list[str]:
    """What of a row does not exist."""
    found = []
    for column in ("code", "test"):
        match = PLACE.fullmatch(row[column])
        if match is None:
            found.append(f"{column} must be `file.py:name`, got {row[column]}")
        elif not (ROOT / match[1]).is_file() or match[2] not in defined(ROOT / match[1]):
            found.append(f"no {match[2]} in {match[1]}")
        elif column == "test" and not match[2].startswith("test_"):
            found.append(f"no test: {match[2]}")
    match = CELL.fullmatch(row["notebook"])
    if match is None:
        found.append(f"notebook must be [heading](../notebooks/...), got {row['notebook']}")
    elif not (ROOT / match[2]).is_file() or match[1] not in headings(ROOT / match[2]):
        found.append(f"no heading {match[1]!r} in {match[2]}")
    return found


TABLE = rows(PAGE.read_text())


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["code"].strip("`"))
def test_code_test_and_heading_of_a_step_exist(row):
    assert faults(row) == []


def test_no_stage_and_no_component_is_missing():
    named = {PLACE.fullmatch(row["code"])[2] for row in TABLE}
    stages = {
        name
        for name in anchor_ref.__all__
        if callable(value := getattr(anchor_ref, name)) and not isinstance(value, type)
    }
    assert stages <= named, stages - named
    steps = " ".join(row["step"] for row in TABLE)
    for number, component in enumerate(("Pattern", "Difference", "Fine"), 1):
        assert f"**({number}) {component}" in steps


@pytest.mark.parametrize(
    ("column", "cell", "fault"),
    [
        ("code", "`anchor_ref/anchor.py:compute_anchors`", "no compute_anchors in"),
        ("code", "`anchor_ref/anchors.py:compute_anchor`", "no compute_anchor in"),
        ("code", "`compute_anchor`", "code must be"),
        ("test", "`tests/anchor_ref/test_invariants.py:test_nothing`", "no test_nothing in"),
        ("test", "`tests/brute_force.py:brute_force`", "no test: brute_force"),
        ("notebook", "[Stage 4](../notebooks/00_start_here.ipynb)", "no heading 'Stage 4'"),
        ("notebook", "[Stage 1](../notebooks/99_none.ipynb)", "no heading 'Stage 1'"),
        ("notebook", "notebook 00", "notebook must be"),
    ],
)
def test_a_trail_that_leads_nowhere_is_found(column, cell, fault):
    assert fault in faults({**TABLE[0], column: cell})[0]


def test_a_row_with_a_missing_cell_is_found():
    with pytest.raises(ValueError, match="zip"):
        rows("| a | b |\n| --- | --- |\n| only | two |")
