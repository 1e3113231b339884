"""The command from end to end: one page that needs nothing else, and one line for bad input."""

import json
import re

import pytest
import torch

from anchor_ref import cli
from anchor_ref.figures import report as figures
from anchor_ref.report import page, results, tables
from anchor_ref.report.cost import H200
from anchor_ref.report.results import FarKey

SMALL = ["inspect", "--length", "2304", "--layers", "7", "--heads", "1", "5"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert cli.main([*SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def html(out) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found(out):
    return results.load_results(out / "results")


def test_the_page_needs_nothing_else_and_holds_its_pictures(html):
    assert page.loaded_urls(html) == set()
    pictures = re.findall(r'<img[^>]*src="data:image/png;base64', html)
    # Two overviews, two of θ, the scale, and for each of the two heads a map and a zoom.
    assert len(pictures) == 5 + 2 * 2
    alts = re.findall(r'alt="([^"]*)"', html)
    assert "attention map of layer 7, head 5, all tokens" in alts
    assert not [alt for alt in alts if "No description" in alt]
    assert "<math" in html
    assert "Traceback" not in html
    assert "draw_overview" not in html, "the page is for readers: no code"
    assert 'content="width=device-width' in html


def test_the_page_says_what_was_measured(html, found):
    theta = results.recommended_theta(found, 0.95)
    assert f"<b>{theta:g}</b>" in html
    recall = float(found.recall[found.thetas.index(theta)].mean())
    assert f"<b>{recall:.3f}</b>" in html
    assert "bundled (LlamaForCausalLM, 8 M)" in html
    assert "1 of 8 layers, 2 of 8 heads" in html
    assert H200.device in html
    assert "An estimate, not a measurement" in html


def test_the_notebook_beside_it_ran_and_can_be_stepped_through(out):
    notebook = json.loads((out / "report.ipynb").read_text())
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert max(len("".join(cell["source"]).splitlines()) for cell in notebook["cells"]) <= 30


def test_thresholds_lie_beside_the_page(out, found):
    from anchor_ref.lab import Calibration

    saved = Calibration.load(out / "calibration.json")
    assert saved.thetas == results.calibration(found, 0.95).thetas


def test_a_second_run_measures_nothing_and_another_length_is_refused(out, capsys, monkeypatch):
    from anchor_ref.report import inspect, render

    def no_more(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(inspect, "measure_layer", no_more)
    monkeypatch.setattr(inspect, "capture_qkv", no_more)
    monkeypatch.setattr(render, "render_report", lambda *_: out / "report.html")
    assert cli.main([*SMALL, "--out", str(out), "--theta", "9"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"memory beside the model: \d+ MiB for a head", said)
    assert re.search(
        r"θ = 9: recall 0\.\d{3}, density 0\.\d{3}; recommended for a recall of 0.95", said
    )
    assert re.search(r"peak memory [\d,]+ MiB", said)
    other = [*SMALL, "--out", str(out)]
    other[2] = "2400"
    assert cli.main(other) == 2
    assert_one_line(capsys, "holds results of other settings (text_sha256")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--length", "2048"], "longer than a group of 2048 tokens"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (["--model", "./nowhere"], "model must be 'bundled', a folder, or a name"),
        (["--target-recall", "1.5"], "target_recall must be in (0, 1), got 1.5"),
        (["--rates", "nowhere.json"], "nowhere.json"),
        (["--layers", "99"], "layers must be in 0..7, got 99"),
        (["--device", "nowhere"], "device must be one that PyTorch has here, got 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, complaint):
    short = ["inspect", "--length", "2304", "--out", str(tmp_path)]  # the last of two counts
    assert cli.main([*short, *arguments]) == 2
    assert_one_line(capsys, complaint)
    assert not list(tmp_path.rglob("*.json")), "the folder is free for a run that is right"


def test_a_text_too_short_and_too_little_memory_are_one_line(tmp_path, capsys, monkeypatch):
    text = tmp_path / "short.txt"
    text.write_text("Only a few words.")
    assert cli.main(["inspect", "--text", str(text), "--out", str(tmp_path)]) == 2
    assert_one_line(capsys, "text must have at least 8192 tokens, short.txt has")

    def too_large(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("anchor_ref.activations.models.load_model", too_large)
    assert cli.main(["inspect", "--out", str(tmp_path)]) == 2
    assert_one_line(capsys, "out of memory: take a shorter text, fewer layers or heads")


def assert_one_line(capsys, complaint: str) -> None:
    said = capsys.readouterr().err.strip()
    assert complaint in said
    assert said.startswith("anchor-ref: error: ")
    assert "\n" not in said


def test_text_of_the_model_cannot_become_markup():
    words = ["<b>", "&", "a", "\n", "x", "y"]
    rows = figures.data_far_keys([FarKey(1, 0.5, 4, 0.25)], words, reach=2)
    assert (
        rows[0] | {"key": 1, "before": "<b>", "word": "&", "after": "a⏎", "asked by": "a⏎x"}
        == rows[0]
    )
    shown = tables.far_keys_table(rows, kept={1})
    assert "&lt;b&gt;<mark>&amp;</mark>a⏎" in shown
    assert "<td>50.0000%</td>" in shown
    assert ">stripe<" in shown
    assert ">stripe<" not in tables.far_keys_table(rows, kept=set())


def test_the_table_of_thresholds_marks_the_one_shown(found):
    shown = tables.theta_table(found, 7.0, H200)
    marked = re.findall(r'<tr class="marked"><td>([^<]*)</td><td>([^<]*)</td>', shown)
    assert marked == [("7", f"{float(found.recall[7].mean()):.3f}")]
    assert shown.count("<tr") == 1 + 17 + 1, "heading, every second θ, and the one shown"


def test_the_estimate_is_for_the_whole_model(found):
    part = tables.estimate(
        found.density[7], found.n, found.head_dim, found.about["linear_parameters"], H200
    )
    whole = tables._estimate(found, 7, H200)
    assert whole.dense == pytest.approx(32 * part.dense), "2 of 64 heads were measured"
    assert whole.linear == part.linear


def test_overview_holds_each_head_and_curves_their_means(found):
    data = figures.data_overview(found, 9.0, "density")
    assert data["values"].equal(found.density[9])
    assert (data["layers"], data["heads"]) == ([7], [1, 5])
    curves = figures.data_thetas(found)
    assert curves["recall"] == pytest.approx(found.recall.mean((1, 2)).tolist())
    assert curves["worst head"][9] == float(found.recall[9].min())
