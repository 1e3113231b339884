"""The committed answers about heads: figure data, and a table that is the numbers' own."""

import pytest
import torch

from anchor_lab.analysis import TESTS
from anchor_lab.experiments.questions import figure as lab
from anchor_lab.experiments.questions import measure
from anchor_lab.experiments.questions.measure import look
from anchor_lab.experiments.questions.page import EXPERIMENT
from anchor_lab.experiments.store import read, write_json
from anchor_models import Captured
from tests.tree import RESULTS

HERE = RESULTS / "questions"
ROWS = [
    {
        "layer": layer,
        "head": head,
        "maxima": [0.5, 0.25, 0.25 * head],
        "tests": {
            **{name: {"density": 0.9, "recall": 0.9} for name in TESTS},
            "exact": {"density": 0.2, "recall": 0.9 + 0.1 * head},
            "method": {"density": 0.3 + 0.1 * layer, "recall": 0.8},
        },
    }
    for layer in (0, 3)
    for head in (0, 1)
]
CALIBRATION = [
    {"target": 0.95, "per": "head", "recall": 0.97, "least": 0.9, "density": 0.7},
    {"target": 0.9, "per": "head", "recall": 0.9, "least": 0.8, "density": 0.5},
    {"target": 0.9, "per": "layer", "recall": 0.98, "least": 0.9, "density": 0.8},
    {"per": "all", "theta": 9.0, "recall": 0.5, "least": 0.4, "density": 0.3},
    {"per": "all", "theta": 10.0, "recall": 0.97, "least": 0.8, "density": 0.85},
]


def test_maxima_are_laid_out_by_layer_and_head():
    assert lab.data_maxima(ROWS) == [[0.0, 0.25], [0.0, 0.25]]


def test_tests_are_means_over_heads():
    points = lab.data_tests(ROWS)
    assert points["exact"] == pytest.approx((0.2, 0.95))
    assert points["method"] == pytest.approx((0.45, 0.8))


def test_calibrations_are_laid_out_by_rising_recall():
    assert lab.data_calibration(CALIBRATION) == {
        "head": [(0.5, 0.9), (0.7, 0.97)],
        "layer": [(0.8, 0.98)],
        "all": [(0.3, 0.5), (0.85, 0.97)],
    }


@pytest.mark.parametrize(
    ("data", "draw"),
    [
        (lab.data_maxima(ROWS), lab.draw_maxima),
        (lab.data_tests(ROWS), lab.draw_tests),
        (lab.data_calibration(CALIBRATION), lab.draw_calibration),
    ],
)
def test_every_figure_draws_its_data(data, draw):
    from matplotlib import pyplot as plt

    _, ax = plt.subplots()
    draw(data, ax)
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    plt.close("all")


def test_the_committed_table_is_that_of_the_committed_numbers():
    results, page = read(HERE / "questions.json"), HERE / "questions.md"
    assert page.read_text() == EXPERIMENT.page(results, page)


def test_the_table_says_what_was_measured(tmp_path):
    results = {
        "settings": {"n": 4096, "config": {"theta": 9.0}},
        "runs": [{"date": "2026-01-02", "torch": "2.13.0", "command": "measure"}],
        "rows": [*ROWS, *CALIBRATION],
    }
    lines = EXPERIMENT.page(results, tmp_path / "mine.md").splitlines()
    assert lines[2].endswith("](mine.png)")
    assert "| 3 | 50.0% | 25.0% | 12.5% | 25.0% (head 1) |" in lines
    assert "| all | 50.0% | 25.0% | 12.5% | 25.0% |" in lines
    assert "| 0.95 | head | 0.9700 | 0.9000 | 0.700 | 10 | 0.8000 | 0.850 |" in lines


def test_measuring_a_layer_answers_for_each_head():
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, 2304, 8, generator=random) * 2 for h in (2, 1, 1))
    rows = look(Captured(q, k, v, 8**-0.5, layer=5))
    assert [(row["layer"], row["head"]) for row in rows] == [(5, 0), (5, 1)]
    for row in rows:
        assert sum(row["maxima"]) == pytest.approx(1, abs=1e-3)
        assert list(row["tests"]) == list(TESTS)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("quick") / "questions.json"
    assert EXPERIMENT.run(["--quick", "--device", "cpu", "--out", str(out)]) == 0
    return out


def test_a_quick_run_writes_numbers_page_and_picture(quick):
    assert {x.name for x in quick.parent.iterdir()} == {
        *("questions.json", "questions.md", "questions.png")
    }
    rows = read(quick)["rows"]
    heads = [(layer, head) for layer in (0, 1) for head in range(8)]
    assert [(row["layer"], row["head"]) for row in rows if "layer" in row] == heads
    judged = [(row["target"], row["per"]) for row in rows if "per" in row and row["target"]]
    assert judged == [(t, per) for t in measure.TARGETS for per in ("head", "layer")]
    page = quick.with_suffix(".md").read_text()
    assert "512 tokens, θ = 9, 16 heads" in page
    assert "answers nothing" in page


@pytest.mark.parametrize(
    ("lost", "looked"), [(lambda row: row.get("layer") == 1, [1]), (lambda row: "per" in row, [])]
)
def test_an_interrupted_run_goes_on_with_what_it_lacks(quick, tmp_path, monkeypatch, lost, looked):
    found, out = read(quick), tmp_path / "questions.json"
    kept = [row for row in found["rows"] if not lost(row)]
    write_json(out, found["settings"], kept, found["runs"])
    seen = []
    monkeypatch.setattr(measure, "look", lambda x, *given: seen.append(x.layer) or look(x, *given))
    assert EXPERIMENT.run(["--quick", "--device", "cpu", "--out", str(out)]) == 0
    assert seen == looked
    again = read(out)["rows"]
    added = [row for row in found["rows"] if lost(row)]
    assert again == [*kept, *({**row, "run": 1} for row in added)]


def test_a_text_of_one_group_is_refused(tmp_path):
    with pytest.raises(ValueError, match="n must be above 128, got 128"):
        EXPERIMENT.run(["--quick", "--n", "128", "--out", str(tmp_path / "a.json")])
