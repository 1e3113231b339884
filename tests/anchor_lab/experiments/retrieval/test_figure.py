"""The numbers behind the figures of the answers that methods find, and what is drawn of them."""

import pytest
from matplotlib import pyplot as plt

from anchor_lab.analysis.intervals import wilson
from anchor_lab.experiments.retrieval import figure as figures


def cell(row, density, right, task="single", length=1024, kept=None):
    """A row of the results, with a hundred prompts of one question."""
    return {
        "length": length,
        "density": density,
        "row": row,
        "task": task,
        "right": right,
        "asked": 100,
        "prompts": 100,
        "low": wilson(right / 100, 100)[0],
        "high": wilson(right / 100, 100)[1],
        "kept": kept if kept is not None else density,
    }


CELLS = [
    cell("Dense", None, 100),
    cell("Dense", None, 80, "list"),
    cell("Dense", None, 49, "too hard"),
    cell("Dense", None, 10, length=2048),
    cell("own", None, 60, kept=0.3),
    cell("own", None, 50, "list", kept=0.4),
    cell("a", 0.5, 30),
    cell("a", 0.5, 10, "list"),
    cell("a", 0.75, 90),
    cell("a", 0.75, 70, "list"),
    cell("half done", 0.5, 30),
]


def test_answers_are_means_over_the_tasks_that_can_be_done():
    data = figures.data_answers(CELLS)[1024]
    assert list(data) == ["Dense", "own", "a"]
    assert data["Dense"][None][:3] == pytest.approx((0.9, *wilson(0.9, 200)))
    assert data["a"][0.5][:3] == pytest.approx((0.2, *wilson(0.2, 200)))
    assert data["a"][0.75].share == pytest.approx(0.8)
    kept = {name: [found.kept for found in row.values()] for name, row in data.items()}
    assert kept == {"Dense": [None], "own": [pytest.approx(0.35)], "a": [0.5, 0.75]}


def test_no_answers_are_told_of_a_length_at_which_dense_attention_cannot_do_any_task():
    assert figures.data_answers(CELLS)[2048] == {}


def test_tasks_are_laid_out_by_row():
    data = figures.data_answers(CELLS)[1024]
    assert figures.data_tasks(data, 0.5) == {
        "Dense": {"single": 1.0, "list": 0.8},
        "own": {"single": 0.6, "list": 0.5},
        "a": {"single": 0.3, "list": 0.1},
    }
    assert figures.data_tasks(data, 0.75)["a"] == {"single": 0.9, "list": 0.7}
    assert figures.data_tasks({"a": {0.5: data["a"][0.5]}}, 0.75) == {"a": {}}


def drawn(axes):
    """(share, name of the row) of every mark, from left to right."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    marks = [line for line in axes.lines if line.get_marker() not in ("None", "", None)]
    points = [(x, y) for line in marks for x, y in line.get_xydata()]
    return sorted((round(float(x), 6), names[round(float(y))]) for x, y in points if x == x)


def test_every_figure_draws():
    figure, (left, right) = plt.subplots(1, 2)
    data = figures.data_answers(CELLS)[1024]
    figures.draw_answers(data, left)
    figures.draw_tasks(figures.data_tasks(data, 0.5), right)
    figure.canvas.draw()
    assert [label.get_text() for label in left.get_yticklabels()] == list(data)
    assert drawn(left) == [(0.2, "a"), (0.55, "own"), (0.8, "a"), (0.9, "Dense")]
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "50% of the pairs",
        "density of its own",
        "75% of the pairs",
    ]
    assert [text.get_text() for text in right.texts] == ["100", "80", "60", "50", "30", "10"]
    plt.close(figure)


def test_bars_reach_from_one_end_of_the_interval_to_the_other():
    figure, axes = plt.subplots()
    data = figures.data_answers(CELLS)[1024]
    figures.draw_answers(data, axes)
    ends = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    bars = sorted((low, high) for low, high in ends if low < high)
    wanted = sorted((found.low, found.high) for row in data.values() for found in row.values())
    assert bars == [pytest.approx(interval) for interval in wanted]
    plt.close(figure)
