"""The numbers behind the figures of the retrieval bench; drawing must not fail."""

import math

import pytest
from matplotlib import pyplot as plt

from anchor_lab.experiments.retrieval import figure as figures
from anchor_lab.experiments.retrieval.score import wilson


def cell(row, density, right, task="single", length=1024, kept=None):
    """One of the bench's cells, with a hundred prompts of one question."""
    return {
        "length": length,
        "density": density,
        "row": row,
        "task": task,
        "right": right,
        "asked": 100,
        "prompts": 100,
        "kept": kept if kept is not None else density,
    }


def answers_of(cells):
    lengths = sorted({each["length"] for each in cells})
    return {length: figures.data_answers(cells, length) for length in lengths}


CELLS = [
    cell("Dense", None, 100),
    cell("Dense", None, 80, "list"),
    cell("Dense", None, 49, "too hard"),
    cell("Dense", None, 10, length=2048),
    cell("own", None, 60),
    cell("own", None, 50, "list"),
    cell("a", 0.5, 30),
    cell("a", 0.5, 10, "list"),
    cell("a", 0.75, 90),
    cell("a", 0.75, 70, "list"),
    cell("half done", 0.5, 30),
]


def test_answers_are_means_over_the_tasks_that_can_be_done():
    data = figures.data_answers(CELLS, 1024)
    assert list(data) == ["Dense", "own", "a"]
    assert data["Dense"][None] == pytest.approx((0.9, *wilson(0.9, 200)))
    assert data["a"][0.5] == pytest.approx((0.2, *wilson(0.2, 200)))
    assert data["a"][0.75][0] == pytest.approx(0.8)
    assert figures.answerable_tasks(CELLS, 1024) == ["single", "list"]
    assert figures.answerable_tasks(CELLS, 2048) == []


def test_tasks_are_laid_out_by_row():
    data = figures.data_tasks(CELLS, 1024, 0.5, ["Dense", "own", "a", "half done"])
    assert data["single"] == [1.0, 0.6, 0.3, 0.3]
    assert data["list"][:3] == [0.8, 0.5, 0.1]
    assert math.isnan(data["list"][3])
    assert figures.data_tasks(CELLS, 1024, 0.75, ["a"]) == {"single": [0.9], "list": [0.7]}


def test_every_figure_draws():
    figure, (left, right) = plt.subplots(1, 2)
    data = figures.data_answers(CELLS, 1024)
    figures.draw_answers(data, left)
    figures.draw_tasks(figures.data_tasks(CELLS, 1024, 0.5, list(data)), right)
    figure.canvas.draw()
    assert [label.get_text() for label in left.get_yticklabels()] == list(data)
    drawn = sorted(round(float(x), 6) for dots in left.collections for x, _ in dots.get_offsets())
    assert drawn == [0.2, 0.55, 0.8, 0.9]
    assert [text.get_text() for text in right.texts] == ["100", "80", "60", "50", "30", "10"]
    plt.close(figure)
