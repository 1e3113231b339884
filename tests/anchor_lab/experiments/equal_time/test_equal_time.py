"""The experiment on rows asked in the same time: with the bundled model, resumed, written up."""

import math
from dataclasses import replace

import pytest
import torch

from anchor_lab.experiments.equal_time import figure, measure
from anchor_lab.experiments.equal_time.measure import attending
from anchor_lab.experiments.equal_time.page import EXPERIMENT, data_answers, values
from anchor_lab.experiments.equal_time.ways import DENSE, WAYS, Way
from anchor_lab.experiments.outliers.reading import token_losses
from anchor_lab.experiments.outliers.texts import CALIBRATION
from anchor_lab.experiments.page import spaced
from anchor_lab.experiments.store import read, write_json
from anchor_models import anchor_attention, capture_qkv, load_bundled, make_document
from anchor_ref import AnchorConfig
from anchor_ref.measure import density
from tests.tree import ROOT

CONFIG = AnchorConfig(16, 4, theta=5.0)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    path = tmp_path_factory.mktemp("equal_time") / "quick.json"
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        assert run(path) == 0
    return path


def prepare(patch):
    patch.chdir(ROOT)
    patch.setattr(measure, "QUICK_LENGTHS", (2100,))
    patch.setattr(measure, "QUICK_ASKED", 2100)
    patch.setattr("anchor_lab.experiments.outliers.measure.GRID", (1.0, 12.0))


@pytest.fixture
def timed(monkeypatch):
    """What is to be timed, which takes long and is done once, in `out`: way, with thresholds?"""
    calls = []

    def times(_bench, _tokens, way, thetas):
        calls.append((way.name, thetas is not None))
        return {"ms": [1.0] * 8}

    monkeypatch.setattr(measure._Bench, "_times", times)
    return calls


ASKED = [("dense", False), ("paper, θ = 15", False), ("R = 4, by head", True)]


def run(path, *more) -> int:
    fixed = ["--quick", "--model", "bundled", "--device", "cpu", "--out", str(path)]
    return EXPERIMENT.run([*fixed, *more])


def test_every_way_has_its_row_in_every_part(out):
    rows = read(out)["rows"]
    names = ["dense", "paper, θ = 15", "R = 4, by head"]
    found = [(row["part"], row["text"], row["way"]) for row in rows]
    thetas = ("thetas", CALIBRATION, "R = 4")
    assert found.count(thetas) == 1
    found.remove(thetas)
    assert found == [
        (part, text, name)
        for part, text in (("losses", "prose"), ("times", "prose"), ("answers", "single"))
        for name in names
    ]
    assert all(len(row["ms"]) == 8 and min(row["ms"]) > 0 for row in rows if "ms" in row)
    (thresholds,) = (row["thetas"] for row in rows if "thetas" in row)
    assert [len(layer) for layer in thresholds] == [8] * 8
    page = out.with_suffix(".md").read_text()
    assert f"## {spaced(2100)} tokens" in page
    assert "R = 4, by head" in page


def test_a_run_that_stopped_goes_on_with_what_is_missing_alone(out, tmp_path, monkeypatch, timed):
    prepare(monkeypatch)
    whole = read(out)
    left = [row for row in whole["rows"] if row["part"] != "times"]
    write_json(tmp_path / "a.json", whole["settings"], left, whole["runs"])
    assert run(tmp_path / "a.json", "--time-s", "0") == 1  # nothing is begun
    assert len(read(tmp_path / "a.json")["rows"]) == len(left)
    monkeypatch.setattr(measure, "token_losses", None)  # they are there, and so are thresholds
    monkeypatch.setattr(measure, "calibrate", None)
    assert run(tmp_path / "a.json") == 0
    assert len(read(tmp_path / "a.json")["rows"]) == len(whole["rows"])
    assert timed == ASKED


def test_times_of_other_kernels_are_measured_again_and_nothing_else_is(
    out, tmp_path, monkeypatch, timed
):
    prepare(monkeypatch)
    whole = read(out)
    runs = [{**run, "kernels": "of yesterday"} for run in whole["runs"]]
    write_json(tmp_path / "a.json", whole["settings"], whole["rows"], runs)
    monkeypatch.setattr(measure, "token_losses", None)
    monkeypatch.setattr(measure, "calibrate", None)
    monkeypatch.setattr(measure, "answers", None)
    assert run(tmp_path / "a.json") == 0
    found = read(tmp_path / "a.json")
    assert {row["part"]: row["run"] for row in found["rows"]} == {
        "losses": 0, "thetas": 0, "times": 1, "answers": 0
    }  # fmt: skip
    now = found["runs"][1]["kernels"]
    assert values(found)["kernels"] == [now] != ["of yesterday"]
    assert run(tmp_path / "a.json") == 0
    assert read(tmp_path / "a.json") == found, "nothing is left"
    assert timed == ASKED


def test_a_prompt_of_one_group_is_refused(tmp_path, capsys):
    assert run(tmp_path / "a.json", "--lengths", "2049") == 2
    assert "--lengths must be at least 2050, got 2049" in capsys.readouterr().err


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("rows", [{}, {"outliers": 2, "outlier_choice": "even"}])
def test_a_model_reads_with_the_layers_own_thresholds_and_tells_what_it_kept(rows, by_head):
    model, tokenizer = load_bundled()
    tokens = tokenizer(make_document(300, seed=1).text, return_tensors="pt").input_ids
    way = Way("tried", replace(CONFIG, **rows))
    thetas = [[1.0 + layer] * 8 for layer in range(8)] if by_head else None
    with attending(model, way, thetas) as kept:
        losses = token_losses(model, tokens)
    assert len(kept) == 8
    # The first layer sees what the model without a change gives it.
    x = capture_qkv(model, tokens, dtype=torch.float32)[0]
    first = None if thetas is None else thetas[0]
    _, trace = anchor_attention(
        *(x.q, x.k, x.v, way.config, x.scaling), theta_by_head=first, return_trace=True
    )
    n = tokens.shape[1]
    assert kept[0] == pytest.approx(density(trace.stripes, way.config, n, n).mean().item())
    assert not torch.allclose(losses, token_losses(model, tokens), atol=1e-3)
    everything = Way("all", replace(CONFIG, theta=math.inf))
    with attending(model, everything, None) as kept:
        same = token_losses(model, tokens)
    torch.testing.assert_close(same, token_losses(model, tokens), atol=1e-3, rtol=1e-3)
    assert kept == [1.0] * 8


def made(part, way, **found):
    return {"part": part, "length": 100, "text": "prose", "way": way, **found}


def rows_of(losses, ms):
    """A way's losses of two runs of tokens, and its milliseconds, by name."""
    return [
        row
        for way in losses
        for row in (
            made("losses", way, losses=losses[way], density=0.5),
            made("times", way, ms=[ms[way]], run=0),
        )
    ]


def test_what_is_saved_is_read_off_between_two_published_thresholds_in_the_same_time():
    losses = {
        "dense": [1.0, 2.0],
        "paper, θ = 12": [1.1, 2.1],
        "paper, θ = 9": [1.3, 2.3],
        "R = 4, 5/5": [1.05, 2.05],
        "R = 8, 7/7": [1.0, 2.0],
    }
    ms = dict(zip(losses, (4.0, 3.0, 1.0, 2.0, 5.0), strict=True))
    lines = figure.data_lines(rows_of(losses, ms), 100)
    assert [line.way for line in lines] == list(losses)[1:]
    assert [line.of_dense for line in lines] == [0.75, 0.25, 0.5, 1.25]
    assert [line.published for line in lines] == [True, True, False, False]
    four, eight = lines[2:]
    assert four.lost == pytest.approx(0.05)
    saved, low, high = figure.data_saved(four, lines)
    assert saved == pytest.approx(0.15)  # halfway between 0.1 and 0.3, less 0.05
    assert low == pytest.approx(high)
    assert figure.data_saved(eight, lines) is None
    runs = [{"date": "today", "kernels": "k"}]
    shown = values({"rows": rows_of(losses, ms), "runs": runs, "settings": {}})
    assert shown["tables"][0]["better"] == ["R = 4, 5/5"]


def test_a_way_that_was_not_timed_on_every_text_is_left_out():
    rows = rows_of({"dense": [1.0], "paper, θ = 9": [1.5]}, {"dense": 1.0, "paper, θ = 9": 2.0})
    assert figure.data_lengths(rows) == [100]
    assert figure.data_lines(rows[:-1], 100) == []


def test_answers_are_of_tasks_that_dense_attention_answers():
    def asked(task, way, found):
        return {"part": "answers", "length": 100, "text": task, "way": way, "found": found}

    rows = [
        *(asked("single", "dense", [1, 1, 1, 0]), asked("words", "dense", [0, 0, 0, 1])),
        *(asked("single", "R = 4, 5/5", [1, 0, 1, 1]), asked("words", "R = 4, 5/5", [1] * 4)),
    ]
    table, telling = data_answers(rows)
    assert telling == ["single"]
    ((way, dense, found, lost, won),) = table
    assert (way, lost, won) == ("R = 4, 5/5", "1", "1")
    assert dense.startswith("3 of 4")
    assert found.startswith("3 of 4")


def test_the_ways_are_named_once_and_only_published_ones_are_called_paper():
    assert len({way.name for way in WAYS}) == len(WAYS)
    assert [way.name.startswith("paper") for way in WAYS[1:]] == [w.published for w in WAYS[1:]]
    assert WAYS[0] == DENSE
    assert DENSE.published
