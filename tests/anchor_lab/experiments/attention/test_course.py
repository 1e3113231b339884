"""What notebook 12 draws, on results made for it and on those that are committed."""

from math import inf, sqrt

import pytest
from matplotlib import pyplot as plt

from anchor_lab.drawing import style
from anchor_lab.experiments.attention import cells as found
from anchor_lab.experiments.attention import course, figure
from anchor_lab.experiments.store import read
from tests.tree import RESULTS

FOLDER = RESULTS / "attention"


def cell(method: str, n: int, ms: float, **fields) -> dict:
    made = {
        "source": "planted",
        "layer": None,
        "n": n,
        "density": 0.05,
        "method": method,
        "status": "ok",
        "ms": {"median": ms},
        "floor_ms": ms / 2,
        "flop": 6e9 * ms,
        "bytes": 2e9,
        "tflops": 6.0,
        "kept": 0.5,
        "extra_mib": n / 1024,
        "input_output_mib": n / 100,
    }
    return made | fields


@pytest.fixture
def results() -> dict:
    times = {
        "anchor": (4.0, 8.0, 16.0),
        "sdpa-cudnn": (1.0, 8.0, 64.0),
        "stage1": (2.0, 3.0, 4.0),
        "stage2": (1.0, 1.0, 4.0),
        "stage3": (1.0, 4.0, 8.0),
        "flex": (2.0, 9.0, 70.0),
    }
    cells = [
        cell(method, 1024 * 2**i, ms)
        for method, of_method in times.items()
        for i, ms in enumerate(of_method)
    ]
    cells += [
        cell("sdpa-flash", 1024, 1.0, status="skipped"),
        cell("anchor", 1024, 9, density=0.2),
    ]
    cells += [
        cell(method, 1024, ms, source="tiny", layer=3, density=None)
        for method, ms in (("anchor", 4.0), ("sdpa-cudnn", 2.0))
    ]
    return {"settings": {}, "runs": [{"matrix_tflops": 10.0, "copy_tbs": 2.0}], "rows": cells}


def test_only_measured_planted_results_of_one_density_count(results):
    assert list(found.cells(results, "anchor")) == [1024, 2048, 4096]
    assert found.cells(results, "anchor")[1024]["ms"]["median"] == 4.0
    assert found.cells(results, "sdpa-flash") == {}
    race = figure.data_times(results)
    assert race["floor"] == ([1024, 2048, 4096], [2.0, 4.0, 8.0])
    assert "sdpa-flash" not in race


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({1: 1.0, 2: 2.0}, {1: 2.0, 2: 3.0}, 0),
        ({1: 1.0, 2: 4.0}, {1: 2.0, 2: 3.0}, inf),
        ({1: 2.0, 2: 1.0, 4: 5.0}, {1: 1.0, 2: 2.0, 4: 4.0}, inf),
        ({1: 2.0, 4: 2.0}, {1: 1.0, 4: 4.0}, 2.0),
        ({1: 2.0, 4: 2.0, 8: 1.0}, {1: 1.0, 4: 4.0}, 2.0),
        ({1: 1.0, 2: 3.0, 4: 3.0}, {1: 2.0, 2: 2.0, 4: 4.5}, 2 * sqrt(2)),
        ({1: 2.0, 3: 0.1, 4: 2.0}, {1: 1.0, 2: 9.0, 4: 4.0}, 2.0),
    ],
)
def test_break_even_is_the_last_crossing_of_the_shared_lengths(ours, theirs, expected):
    assert found.break_even(ours, theirs) == pytest.approx(expected)


def test_shares_are_of_the_sum_of_the_stages_where_calls_are_long(results, monkeypatch):
    assert course.data_shares(results)["at"] == []
    monkeypatch.setattr(course, "BY_ITSELF", 2048)
    data = course.data_shares(results)
    assert data["at"] == [2048, 4096]
    assert data["stage3"] == pytest.approx([4 / 8, 8 / 16])
    for shares in zip(*(data[stage] for stage in found.STAGES), strict=True):
        assert sum(shares) == pytest.approx(1)


def test_roofline_and_layers_are_those_of_the_file(results):
    roof = course.data_roofline(results, 2048)
    assert (roof["peak"], roof["bandwidth"]) == (10.0, 2.0)
    assert roof["points"]["3 sparse"] == (4 * 6e9 / 2e9, 6.0)
    assert course.data_floor(results, 2048) == dict.fromkeys(
        (*found.STAGES.values(), "all three", "dense, cuDNN"), 2.0
    )
    assert course.data_held(results, 2048) == (2.0, 20.48)
    assert figure.data_layers(results) == [("tiny", 1024, 3, 0.5, 0.5)]


@pytest.mark.parametrize("committed", [None, "attention", "attention_h100"])
def test_every_figure_draws(results, committed, monkeypatch):
    monkeypatch.setattr(course, "BY_ITSELF", 2048)
    if committed:
        results = read(FOLDER / f"{committed}.json")
    n = 131072 if committed else 2048
    race = figure.data_times(results)
    style.use_style()
    drawn, axes = plt.subplots(1, 2, figsize=(10, 4))
    figure.draw_times(race, axes[0])
    figure.draw_layers(figure.data_layers(results), axes[1])
    drawn.canvas.draw()
    plt.close(drawn)
    course.show_shares(course.data_shares(results), "here")
    course.show_roofline(course.data_roofline(results, n), n, "here")
    assert not plt.get_fignums()


def test_figures_say_their_numbers(results, monkeypatch):
    said = []

    def show(figure, alt):
        plt.close(figure)
        said.append(alt)

    monkeypatch.setattr(style, "show", show)
    monkeypatch.setattr(course, "BY_ITSELF", 1024)
    course.show_shares(course.data_shares(results), "here")
    assert "stage 1 anchor from 50% to 25%" in said[0]
    assert "stage 3 sparse from 25% to 50%" in said[0]
    course.show_roofline(course.data_roofline(results, 2048), 2048, "here")
    assert "3 sparse 60%" in said[1]


def test_lengths_are_named_shortly():
    assert [figure.short(n) for n in (1000, 131072, 2**20)] == ["1000", "128k", "1M"]
