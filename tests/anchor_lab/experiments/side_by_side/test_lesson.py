"""What notebook 12 shows of everyone's kernels."""

from matplotlib import pyplot as plt

from anchor_lab.drawing import style
from anchor_lab.experiments.side_by_side import figure
from anchor_lab.experiments.side_by_side import lesson as course
from anchor_lab.experiments.side_by_side.ladders import OURS
from anchor_lab.experiments.store import read
from tests.tree import RESULTS


def row(method: str, way: str, ms: float, goal: str | None = "recall 0.9", **fields) -> dict:
    made = {"part": "recall", "n": 64, "goal": goal, "method": method, "way": way}
    return made | {"status": "ok", "ms": {"median": ms}, "recall": 0.91} | fields


def test_the_fastest_way_of_each_method_is_shown_and_ours_with_every_tail():
    dense = row("dense", "A", 5.0, None)
    del dense["recall"]
    rows = [
        dense,
        row("other", "A", 3.0),
        row("other", "B", 2.0),
        row("other", "C", 0.1, status="failed"),
        row("other", "B", 0.1, "recall 0.8"),
        row("other", "B", 0.1, n=32),
        row(OURS, "tail 0", 1.0),
        row(OURS, "tail 512", 4.0),
    ]
    found = course.data_goal(rows, 64, "recall 0.9")
    shown = [(x["method"], x["way"], x["ms"]["median"]) for x in found]
    assert shown == [
        (OURS, "tail 0", 1.0),
        ("other", "B", 2.0),
        (OURS, "tail 512", 4.0),
        ("dense", "A", 5.0),
    ]
    assert found[-1]["recall"] == 1.0
    more = {"density": 0.25, "scored": 0.03}
    table = course.goal_table([each | more for each in found]).splitlines()
    assert len(table) == 5
    assert table[1].split()[-6:] == ["1", "25", "%", "0.910", "3", "%"]


def test_ratios_are_those_of_times_at_the_same_length():
    planted = {way: {8: 2.0, 16: 6.0} for way in course.LINES} | {
        course.FASTEST: {8: 1.0, 16: 4.0}
    }
    found = course.data_over_dense(planted)
    assert list(found) == list(course.LINES)
    assert found[OURS, "tail 0"] == {8: 2.0, 16: 1.5}
    assert found[course.FASTEST] == {8: 1.0, 16: 1.0}


def test_every_figure_draws_from_the_committed_results():
    style.use_style()
    rows = read(RESULTS / "side_by_side" / "side_by_side.json")["rows"]
    course.show_planted(course.data_over_dense(figure.data_planted(rows)), "here")
    assert course.data_goal(rows, 32_768, "recall 0.95")
    assert not plt.get_fignums()
