"""The command from end to end: one page that needs nothing else, and one line for bad input."""

import json
import re
import shutil
from dataclasses import replace

import nbformat
import pytest
import torch

from anchor_lab import cli
from anchor_lab.report import figure as figures
from anchor_lab.report import inspected, page, rates, render, tables
from anchor_lab.report.far_keys import FarKey
from anchor_lab.report.forecast import forecast, prefill_speedup
from anchor_lab.report.run import NotebookError, with_parameters
from anchor_models import Calibration, load_bundled
from anchor_models.integration.cost import read_values
from anchor_models.texts import read_text
from tests.anchor_lab.report.test_forecast import VALUES
from tools import notebooks

SMALL = ["inspect", "--length", "2304", "--layers", "7", "--heads", "1", "5"]


@pytest.fixture(scope="module", autouse=True)
def _each_speed_is_measured_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "ON_CPU", replace(rates.ON_CPU, repeats=1))
        yield


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
    return inspected.load_inspected(out / "results")


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
    theta = inspected.recommended_theta(found, 0.95)
    assert f"<b>{theta:g}</b>" in html
    recall = float(found.recall[found.thetas.index(theta)].mean())
    assert f"<b>{recall:.3f}</b>" in html
    assert "bundled (LlamaForCausalLM, 8 M)" in html
    assert "1 of 8 layers, 2 of 8 heads" in html
    assert f"<b>{100 * found.floor:.0f} %</b>" in html
    assert "An expectation, not a measurement" in html


def test_the_forecast_stands_first_on_the_page_and_on_the_terminal(
    html, out, found, capsys, tmp_path
):
    names = {}
    exec(nbformat.read(out / "report.ipynb", as_version=4).cells[2].source, names)
    told = str(forecast(found, names["THETA"], names["COSTS"][0]))
    assert "use sdpa at 2304 tokens" in told, "of 2304 tokens 81 % are kept with any θ"
    assert html.index(told) < html.index("<b>") + 10, "nothing is told before it"
    assert html.index("At this length do not use it here.") < html.index('class="cards"')
    out = shutil.copytree(out, tmp_path / "again")
    path = tmp_path / "made_up.json"
    path.write_text(json.dumps(VALUES))
    assert cli.main([*SMALL, "--out", str(out), "--rates", str(path)]) == 0
    said = capsys.readouterr().out
    told = forecast(found, names["THETA"], VALUES)
    assert "\n".join(told.lines()) in said
    assert said.index(str(told)) < said.index("recommended for a recall of")
    assert "a made-up GPU" in (out / "report.html").read_text(encoding="utf-8")


def test_the_notebook_beside_it_ran_and_can_be_stepped_through(out):
    notebook = json.loads((out / "report.ipynb").read_text())
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert max(len("".join(cell["source"]).splitlines()) for cell in notebook["cells"]) <= 30


def test_its_parameters_are_those_given(out, found):
    """Set after the defaults, by papermill's convention."""
    cells = nbformat.read(out / "report.ipynb", as_version=4).cells
    tags = [tag for cell in cells[1:3] for tag in cell.metadata.tags]
    assert tags == ["parameters", "injected-parameters"]
    names = {}
    exec(cells[2].source, names)
    assert (names["FOLDER"], names["TARGET"]) == ("results", 0.95)
    assert names["THETA"] == inspected.recommended_theta(found, 0.95)
    here, ours = names["COSTS"]  # measured here, and the project's own
    assert here["device"].startswith("cpu, ")
    assert here["margin"] > 0
    assert ours == read_values()


def test_the_notebook_of_the_package_is_sound_and_was_not_run():
    notebook = nbformat.read(render.NOTEBOOK, as_version=4)
    assert notebooks.normalised(notebook) == notebook, "run tools.notebooks.normalised"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert with_parameters(notebook).cells[2].source == ""


@pytest.mark.parametrize(
    ("change", "values", "complaint"),
    [
        (lambda cells: cells[1].metadata.clear(), {}, "one cell must be tagged 'parameters', 0"),
        (lambda cells: cells[2].metadata.update(tags=["parameters"]), {}, "'parameters', 2 are"),
        (lambda cells: None, {"THETAS": 1}, "no parameter THETAS"),
    ],
)
def test_parameters_that_a_notebook_has_not_are_refused(change, values, complaint):
    notebook = nbformat.read(render.NOTEBOOK, as_version=4)
    change(notebook.cells)
    with pytest.raises(NotebookError, match=complaint):
        with_parameters(notebook, **values)


def test_thresholds_lie_beside_the_page(out, found):
    saved = Calibration.load(out / "calibration.json")
    assert saved.thetas == inspected.calibration(found, 0.95).thetas


def test_a_second_run_measures_nothing_and_another_length_is_refused(out, capsys, monkeypatch):
    from anchor_lab.report import inspect

    def no_more(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(inspect, "measure_layer", no_more)
    monkeypatch.setattr(inspect, "capture_qkv", no_more)
    monkeypatch.setattr(render, "render_report", lambda *_, **__: out / "report.html")
    assert cli.main([*SMALL, "--out", str(out), "--theta", "9"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"memory beside the model: \d+ MiB for a head", said)
    assert re.search(
        r"θ = 9: recall beyond the first group 0\.\d{3}, density 0\.\d{3} with a floor of "
        r"0\.\d{3}; recommended for a recall of 0.95",
        said,
    )
    assert re.search(r"peak memory [\d,]+ MiB", said)
    other = [*SMALL, "--out", str(out)]
    other[2] = "2400"
    assert cli.main(other) == 2
    assert_one_line(capsys, "holds results made with text_sha256")


def test_every_option_reaches_what_it_is_for(found, tmp_path, capsys, monkeypatch):
    """Nothing is measured and no page drawn: what was found above stands in for it."""
    seen, measured = {}, tmp_path / "made_up.json"
    measured.write_text(json.dumps(VALUES))

    def load(*given):
        seen["model"] = given
        return load_bundled()

    def read(source, tokenizer, *more):
        seen["text"] = (source, *more)
        return read_text("document", tokenizer, 2304)

    def note(name, result=None):
        return lambda *given, **more: seen.update({name: (*given, more)}) or result

    monkeypatch.setattr("anchor_models.models.load_pretrained", load)
    monkeypatch.setattr("anchor_models.texts.read_text", read)
    monkeypatch.setattr("anchor_lab.report.inspect.inspect_layers", note("layers"))
    at_half = replace(found, thetas=[8.5 if theta == 8 else theta for theta in found.thetas])
    monkeypatch.setattr(inspected, "load_inspected", lambda _: at_half)
    monkeypatch.setattr("anchor_lab.report.render.render_report", note("page"))
    recommended = inspected.recommended_theta(at_half, 0.98)
    assert recommended != inspected.recommended_theta(at_half, 0.95)
    asked = f"--text document --length 2400 --seed 3 --dtype bfloat16 --theta 8.5 --out {tmp_path}"
    asked += f" --rates {measured} --target-recall 0.98"
    assert cli.main([*SMALL, *asked.split()]) == 0
    assert seen["model"] == ("bundled", torch.bfloat16, "cpu")
    assert seen["text"] == ("document", 2400, 3)
    more = seen["layers"][-1]
    assert (more["layers"], more["heads"]) == ([7], [1, 5])
    assert 8.5 in more["thetas"]
    assert seen["page"][0] == tmp_path
    assert seen["page"][-1] == {
        "FOLDER": "results",
        "THETA": 8.5,
        "TARGET": 0.98,
        "COSTS": [VALUES],
        "LOST": seen["page"][-1]["LOST"],
        "ANSWERS": [],
    }
    words, against = seen["page"][-1]["LOST"][0]
    assert words.startswith("Nothing can be lost at 2304 tokens")
    assert not against
    assert Calibration.load(tmp_path / "calibration.json").target_recall == 0.98
    assert f"recommended for a recall of 0.98: θ = {recommended:g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--length", "2048"], "longer than a group of 2048 tokens"),
        (["--length", "0"], "length must be longer than a group of 2048 tokens"),
        (["--text", "nowhere.txt"], "- or a text file, got 'nowhere.txt', no such file"),
        (["--text", "a.txt", "--seed", "0"], "--text a.txt makes no use of --seed"),
        (["--model", "./nowhere"], "model must be 'bundled', a folder, or a name"),
        (["--target-recall", "1.5"], "target_recall must be in (0, 1), got 1.5"),
        (
            ["--rates", "nowhere.json"],
            "rates must be a file of anchor_lab.experiments.crossover.fit, got 'nowh",
        ),
        (["--out", __file__], f"out must be a folder, got {__file__!r}, a file"),
        (["--layers", "99"], "layers must be in 0..7, got 99"),
        (["--length", "99999"], "length must be at most the model's 32768 positions, got 99999"),
        (["--device", "nowhere"], "device must be one that PyTorch has here, got 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, complaint):
    short = ["inspect", "--length", "2304", "--out", str(tmp_path)]  # the last of two counts
    assert cli.main([*short, *arguments]) == 2
    assert_one_line(capsys, complaint)
    assert not list(tmp_path.rglob("*.json")), "the folder is free for a run that is right"


@pytest.mark.parametrize("theta", ["inf", "-inf", "nan"])
def test_a_theta_that_is_no_number_is_refused_before_anything_is_loaded(
    tmp_path, capsys, monkeypatch, theta
):
    monkeypatch.setattr("anchor_models.models.load_pretrained", None)
    assert cli.main(["inspect", "--out", str(tmp_path), f"--theta={theta}"]) == 2
    assert_one_line(capsys, f"theta must be finite, got {theta}")


def test_a_text_too_short_and_too_little_memory_are_one_line(tmp_path, capsys, monkeypatch):
    text = tmp_path / "short.txt"
    text.write_text("Only a few words.")
    assert cli.main(["inspect", "--text", str(text), "--out", str(tmp_path)]) == 2
    assert_one_line(capsys, "text must have at least 8192 tokens, short.txt has")

    def too_large(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("anchor_models.models.load_pretrained", too_large)
    assert cli.main(["inspect", "--out", str(tmp_path)]) == 2
    assert_one_line(capsys, "out of memory: take a shorter text, fewer layers or heads")


def assert_one_line(capsys, complaint: str) -> None:
    said = capsys.readouterr().err.strip()
    assert complaint in said
    assert said.startswith("anchor-ref: error: ")
    assert "\n" not in said


def test_text_of_the_model_cannot_become_markup():
    words = ["<b>", "&", "a", "\n", "x", "y"]
    far = [FarKey(1, 0.5, 4, 0.25)]
    shown = tables.far_keys_table(far, words, kept={1}, reach=2)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", shown)
    assert cells == [
        *("1", "&lt;b&gt;<mark>&amp;</mark>a⏎", "50.0000 %", "stripe", "a⏎x", "0.250")
    ]
    assert ">stripe<" not in tables.far_keys_table(far, words, kept=set())


def test_the_table_of_thresholds_marks_the_one_shown(found):
    shown = tables.theta_table(found, 7.0, VALUES)
    marked = re.findall(r'<tr class="marked"><td>([^<]*)</td><td>([^<]*)</td>', shown)
    assert marked == [("7", f"{float(found.recall[7].mean()):.3f}")]
    assert shown.count("<tr") == 1 + 17 + 1, "heading, every second θ, and the one shown"


def of_a_model(found, heads: int, skipped: dict[int, str]):
    """Results of a model of 4 layers and 8 heads, so many of each layer measured."""
    layers = [layer for layer in range(4) if layer not in skipped]
    table = torch.full((len(found.thetas), len(layers), heads), 0.3, dtype=torch.float64)
    shares = torch.full((len(found.thetas), len(layers), 8), 0.1, dtype=torch.float64)
    return replace(
        found,
        **dict.fromkeys(("recall", "p10", "least", "density"), table),
        shares=shares,
        settings={**found.settings, "length": 16384},
        model={**found.model, "layers": 4, "heads": 8},
        layers=layers,
        heads=list(range(heads)),
        skipped=skipped,
        captured=dict.fromkeys(layers, found.captured[7]),
    )


def test_the_forecast_does_not_hang_on_how_many_heads_were_measured(found):
    one, all_of_them = (forecast(of_a_model(found, h, {}), 7.0, VALUES) for h in (1, 8))
    assert one == all_of_them


def test_layers_not_measured_are_on_no_side_of_a_prefill_and_the_page_says_so(found):
    some, whole = of_a_model(found, 8, {1: "sees a window", 3: "sees"}), of_a_model(found, 8, {})
    expected = forecast(whole, 7.0, VALUES).here.expected
    linear = 2 * found.model["linear_parameters"] * 16384 / VALUES["matrix_tflops"] / 1e9
    for one, layers in ((some, 2), (whole, 4)):
        wanted = (layers * expected.dense + linear) / (layers * expected.anchor + linear)
        assert prefill_speedup(one, expected, VALUES) == pytest.approx(wanted)
    shown = tables.settings_table(some, [VALUES])
    assert "layer 3</td>" in shown
    assert shown.count("not measured, on neither side of a prefill: sees") == 2
    assert "a side&#39;s time may be off by 7 %" in shown


def test_overview_holds_each_head_and_curves_their_means(found):
    data = figures.data_overview(found, 9.0, "density")
    assert data["values"].equal(found.density[9])
    assert (data["layers"], data["heads"]) == ([7], [1, 5])
    curves = figures.data_thetas(found)
    assert curves["recall"] == pytest.approx(found.recall.mean((1, 2)).tolist())
    assert curves["worst head"][9] == float(found.recall[9].min())
