"""The lab's committed answers: figure data, and a table that is the numbers' own."""

import json
from pathlib import Path

import pytest

from anchor_ref.figures import lab
from benchmarks.questions import table

HERE = Path(__file__).resolve().parents[1] / "benchmarks"
ROWS = [
    {
        "layer": layer,
        "head": head,
        "maxima": [0.5, 0.25, 0.25 * head],
        "tests": {
            "exact": {"density": 0.2, "recall": 0.9 + 0.1 * head},
            "method": {"density": 0.3 + 0.1 * layer, "recall": 0.8},
        },
        "certificate": [{"cost": 0.5, "promised": 0.9}, {"cost": 0.1, "promised": 0.1 * head}],
    }
    for layer in (0, 3)
    for head in (0, 1)
]


def test_maxima_are_laid_out_by_layer_and_head():
    assert lab.data_maxima(ROWS) == [[0.0, 0.25], [0.0, 0.25]]


def test_tests_are_means_over_heads():
    points = lab.data_tests(ROWS)
    assert points["exact"] == pytest.approx((0.2, 0.95))
    assert points["method"] == pytest.approx((0.45, 0.8))


def test_efforts_come_by_rising_cost_with_every_head():
    (cost, promised, mean), (dearer, _, most) = lab.data_certificate(ROWS)
    assert (cost, dearer) == (0.1, 0.5)
    assert promised == pytest.approx([0.0, 0.1, 0.0, 0.1])
    assert (mean, most) == pytest.approx((0.05, 0.9))


@pytest.mark.parametrize(
    ("data", "draw"),
    [
        (lab.data_maxima, lab.draw_maxima),
        (lab.data_tests, lab.draw_tests),
        (lab.data_certificate, lab.draw_certificate),
    ],
)
def test_every_figure_draws_its_data(data, draw):
    from matplotlib import pyplot as plt

    _, ax = plt.subplots()
    draw(data(ROWS), ax)
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    plt.close("all")


def test_the_committed_table_is_that_of_the_committed_numbers():
    results = json.loads((HERE / "questions.json").read_text())
    assert (HERE / "questions.md").read_text() == table(results)
