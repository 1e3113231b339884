"""Where it pays, on the CPU with pretended times: every row, the fit, the page."""

import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch

from anchor_lab.experiments.crossover import figure, fit, measure
from anchor_lab.experiments.crossover.page import EXPERIMENT, coefficients, errors, values
from anchor_lab.experiments.random_model import random_llama, scale_queries
from anchor_lab.experiments.store import Store, read
from anchor_models import load_bundled
from anchor_models.integration import cost
from anchor_ref import AnchorConfig
from tests.tree import ROOT

SETTINGS = {
    "device": "a made-up GPU",
    "torch": "2",
    "triton": "3",
    "transformers": "5",
    "kernels": "k",
    "generation": 9,
}
LAW = {
    "9.0": {"share": 0.2, "tokens": 8192, "exponent": -0.3},
    "12.0": {"share": 0.5, "tokens": 8192, "exponent": -0.4},
}


class Pretend:
    """Runs each call once, and tells of times that say which call it was."""

    def __init__(self):
        self.ran = 0

    def times(self, run):
        run()
        self.ran += 1
        return [float(self.ran)] * 3

    def whole(self, ways):
        return [self.times_of(way) for way in ways]

    def host(self, ways):
        return [self.times_of(way)[0] for way in ways]

    def times_of(self, way):
        with way() as run:
            return self.times(run)


def collect(path, tmp_path):
    store = Store(path, measure.KEY, SETTINGS, {"date": "today", "command": "c"})
    instruments, file = Pretend(), tmp_path / "cost.json"
    measure.collect(store, measure.QUICK, instruments, "cpu", "bundled", cost_file=file)
    return instruments.ran


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What a quick run writes."""
    folder = tmp_path_factory.mktemp("crossover")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(measure, "repository_text", lambda root: "A tale of keys. " * 4000)
        model = random_llama(measure.QUICK.shape, 4096, torch.float32, "cpu")
        patch.setattr(measure, "load_pretrained", lambda *_: (model, load_bundled()[1]))
        patch.setattr(fit, "kept_law", lambda: LAW)
        patch.setattr(measure, "kept_law", lambda: LAW)
        left = collect(folder / "quick.json", folder)
        assert left == len(read(folder / "quick.json")["rows"])
        assert collect(folder / "quick.json", folder) == 0  # nothing is measured twice
        EXPERIMENT.write_page(folder / "quick.json")
    return folder / "quick.json"


def test_every_cell_has_its_row_and_prefills_run_as_their_names_say(out):
    rows = read(out)["rows"]
    calls = [row for row in rows if row["part"] == "calls"]
    assert len(calls) == len(list(measure.cells(measure.QUICK)))
    hosts = [(row["way"], row["tail"]) for row in rows if row["part"] == "host"]
    ours = [("anchor", tail) for tail in (0, 64)]
    assert sorted(hosts, key=str) == sorted([("dense", None), *ours, ("masked", None)], key=str)
    assert all(row["host_ms"] > 0 for row in rows if row["part"] == "host")
    layers = [(row["model"], row["keys"], row["layers"]) for row in rows if row["part"] == "layer"]
    assert layers == [("bundled", 64, 2), ("bundled", 2304, 2), ("random", 2304, 2)]
    prefills = [row for row in rows if row["part"] == "prefill"]
    assert [(row["model"], row["keys"], row["way"]) for row in prefills] == [
        (model, n, way)
        for model in ("bundled", "random")
        for n in measure.QUICK.lengths
        for way in measure.WAYS
    ]
    sparse = {(row["keys"], row["way"]): row["sparse_layers"] for row in prefills}
    # On a processor nothing is expected: auto is always. A text no longer than a group is dense.
    assert sparse == {
        (n, way): 2 if n > 2048 and way != "sdpa" else 0
        for n in measure.QUICK.lengths
        for way in measure.WAYS
    }


def test_the_file_of_the_fit_is_written_before_the_prefills_read_it(out):
    found = json.loads(out.with_name("cost.json").read_text(encoding="utf-8"))
    assert found == fit.fit(read(out)["rows"], SETTINGS, LAW)
    assert found["device"] == "a made-up GPU"
    assert {
        "anchor",
        "dense",
        "masked",
        "margin",
        "kept",
        "layer_host_ms",
        "host_busy",
    } <= found.keys()
    assert any(found["layer_device_ms"].values())
    shape = cost.Shape(1, 9, 3, 4096, 4096, 64)
    assert cost._expected(cost.Coefficients(found), shape, AnchorConfig(), (12.0,)) is not None


def test_page_and_picture_lie_beside_the_rows(out):
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert out.with_suffix(".png").exists()
    assert "## What a model expects" in text
    (line,) = [x for x in text.splitlines() if x.startswith("| random | 2\u202f304 |")]
    rows = [r for r in read(out)["rows"] if r["part"] == "prefill" and r["keys"] == 2304]
    rows = [r for r in rows if r["model"] == "random"]
    sdpa, auto, always = (r["ms"]["median"] for r in rows)
    shown = [f"{x / sdpa:.3f} [{x / sdpa:.2f}–{x / sdpa:.2f}]" for x in (auto, always)]
    assert f"| {shown[0]} | {shown[1]} |" in line
    # Medians of turns: a turn in which the whole machine was slow says the same.
    turns = {"sdpa": [1.0, 1.0, 8.0], "auto": [2.0, 2.0, 16.0]}
    ways = {way: {"ms": {"median": x[1]}} for way, x in turns.items()}
    assert figure.over_sdpa(ways, "auto") == 2.0
    assert figure.over_sdpa({"auto": {"over_sdpa": {"median": 1.5}}}, "auto") == 1.5


# -- the fit


REST = {"rows": 0.05, "squares": 3e-5}


def made_up(device: dict, dense: dict, noise=lambda row: 1.0) -> list[dict]:
    """Rows whose times are exactly what these coefficients say."""
    rows = []
    for cell in measure.cells(measure.FULL):
        row = {"part": "calls", **vars(cell)}
        work, table = fit.of_row(row), device if cell.way == "anchor" else dense
        row["ms"] = {"median": noise(row) * sum(table[name] * work[name] for name in table)}
        rows.append(row)
        host = 0.3 if cell.way == "anchor" else 0.05
        rows.append({"part": "host", **vars(cell), "host_ms": host})
    rows.append({"part": "layer", "keys": 256, "layers": 30, "ms": {"median": 15.0, "p90": 24.0}})
    for heads, n in product(((9, 3, 64), (32, 8, 128)), (16_384, 32_768)):
        row = dict(zip(("q_heads", "kv_heads", "head_dim"), heads, strict=True))
        row |= {"part": "layer", "way": "dense", "queries": n, "keys": n, "layers": 4}
        attention = cost.device_ms(dense, fit.of_row(row))
        rest = cost.device_ms(REST, cost.layer_work(fit.shape_of(row)))
        rows.append(row | {"ms": {"median": 4 * (attention + rest)}})
    return rows


DEVICE = {"call": 0.08, "rows": 0.4, "products": 9e-3, "pooled": 5e-3, "tail": 7e-3}
DENSE = {"call": 0.01, "products": 6e-3, "scores": 0.3}


def test_the_fit_finds_the_coefficients_that_the_times_were_made_of():
    found = fit.fit(made_up(DEVICE, DENSE), SETTINGS, LAW)
    for way, known in (("anchor", DEVICE), ("dense", DENSE), ("masked", DENSE)):
        for name, value in found[way]["device_ms"].items():
            # "scores" is "products" over D: two head sizes tell the two apart.
            assert value == pytest.approx(known.get(name, 0.0), rel=0.05, abs=2e-4), (way, name)
    assert found["margin"] == pytest.approx(0, abs=1e-3)
    assert (found["anchor"]["host_ms"], found["dense"]["host_ms"]) == (0.3, 0.05)
    assert found["layer_host_ms"] == pytest.approx(15 / 30 - 0.05)
    assert found["host_busy"] == pytest.approx(24 / 15)
    assert found["layer_device_ms"] == pytest.approx(REST, rel=0.01)


def test_no_coefficient_is_negative_and_long_calls_do_not_drown_short_ones():
    def noise(row):
        return 0.5 if row["way"] == "anchor" and row["keys"] < 5000 else 1.0

    found = fit.fit(made_up(DEVICE, DENSE, noise), SETTINGS, LAW)
    assert all(x >= 0 for way in ("anchor", "dense") for x in found[way]["device_ms"].values())
    short = [
        fit.predicted(row, found) / row["ms"]["median"]
        for row in made_up(DEVICE, DENSE, noise)
        if row["part"] == "calls" and row["way"] == "anchor" and row["keys"] < 5000
    ]
    assert sum(short) / len(short) < 1.7  # absolute errors would leave it at two


def test_the_margin_is_what_held_out_calls_were_slower_than_expected():
    def noise(row):
        return 1.2 if row["way"] == "anchor" and fit.held_out(row) else 1.0

    assert fit.fit(made_up(DEVICE, DENSE, noise), SETTINGS, LAW)["margin"] == pytest.approx(
        0.2, abs=0.01
    )


def test_the_error_is_that_of_either_side_in_held_out_calls():
    def noise(row):
        return 0.8 if row["way"] == "dense" and fit.held_out(row) else 1.0

    found = fit.fit(made_up(DEVICE, DENSE, noise), SETTINGS, LAW)
    assert found["error"] == pytest.approx(0.25, abs=0.01)
    assert fit.fit(made_up(DEVICE, DENSE), SETTINGS, LAW)["error"] == pytest.approx(0, abs=1e-3)


def test_the_rate_of_a_product_is_that_of_the_same_device(tmp_path):
    for name, device, rate in (("a", "one", 1.0), ("b", "other", 2.0)):
        found = {"settings": {"device": device}, "runs": [{"matrix_tflops": rate}], "rows": []}
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    assert fit.matrix_tflops("other", tmp_path) == 2.0
    assert fit.matrix_tflops("third", tmp_path) is None
    found = fit.fit(made_up(DEVICE, DENSE), SETTINGS | {"device": "NVIDIA H200"}, LAW)
    assert found["matrix_tflops"] > 100, "attention was measured on one"
    assert "matrix_tflops" not in fit.fit(made_up(DEVICE, DENSE), SETTINGS, LAW)


def test_a_real_models_share_is_counted_among_the_candidates():
    """At 8192 tokens and θ = 12 SmolLM2 keeps 64 % of all pairs, and initial region and windows
    alone are 27 %."""
    rows = read(ROOT / "results" / "smollm2" / "smollm2.json")["rows"]
    law = fit.kept_law(ROOT / "results" / "smollm2" / "smollm2.json")
    assert set(law) == {"9.0", "12.0"}
    always, candidates, _, _ = cost.method_pairs(AnchorConfig(), 8192, 8192)
    for theta in (9.0, 12.0):
        densities = [
            row["density"]
            for row in rows
            if (row["part"], row.get("length"), row.get("theta")) == ("heads", 8192, theta)
        ]
        density = (always + cost.kept_share(law, theta, 8192) * candidates) * 2 / (8192 * 8193)
        assert density == pytest.approx(sum(densities) / len(densities), rel=0.05)
    assert law["12.0"]["exponent"] < 0 < law["9.0"]["share"] < law["12.0"]["share"] < 1


def test_what_a_model_reads_is_the_fit_of_what_is_committed():
    results = ROOT / "results" / "crossover" / "crossover.json"
    found = read(results)
    law = fit.kept_law(ROOT / "results" / "smollm2" / "smollm2.json")
    expected = fit.fit(found["rows"], found["settings"], law)
    committed = flat(json.loads(cost.FILE.read_text(encoding="utf-8")))
    assert committed == pytest.approx(flat(expected), rel=1e-2, abs=1e-6)  # another machine


def flat(values: dict, head: str = "") -> dict:
    """Numbers by their path; words are left to the eye."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{head}{name}.")
        elif not isinstance(value, str):
            found[head + name] = value
    return found


@pytest.mark.parametrize("part", ["calls", "host", "layer"])
def test_rows_without_what_the_fit_needs_are_refused(part):
    with pytest.raises(ValueError, match="rows must hold calls, host, layer"):
        fit.fit([x for x in made_up(DEVICE, DENSE) if x["part"] != part], SETTINGS, LAW)


# -- prefills


@torch.no_grad()
def test_scaled_queries_keep_the_share_that_is_wanted():
    sizes = measure.QUICK
    model = random_llama(sizes.shape, 4096, torch.float32, "cpu")
    tokens = torch.randint(3, 1000, (1, 2304))
    scale_queries(model, tokens, 0.3, 12.0)
    import anchor_models.transformers as anchor

    model.set_attn_implementation("anchor_attention")
    with anchor.options(theta=measure.THETA, tail=0), anchor.record() as stats:
        model(tokens)
    always, candidates, _, _ = cost.method_pairs(AnchorConfig(), 2304, 2304)
    share = (stats.density * 2304 * 2305 / 2 - always) / candidates
    assert share == pytest.approx(0.3, abs=0.1)


# -- what page and picture are made of


def test_numbers_of_the_picture():
    rows = made_up(DEVICE, DENSE)
    dense, ours = figure.data_calls(rows, (32, 8, 128), 0)
    assert list(dense) == sorted(measure.FULL.dense)
    assert list(ours) == list(measure.FULL.kept)
    assert list(ours[0.05]) == sorted(measure.FULL.anchor)
    assert ours[0.02][8192] < ours[0.5][8192]
    prefills = [
        {"part": "prefill", "model": "m", "keys": n, "way": way, "ms": {"median": n * times}}
        for n in (512, 256)
        for way, times in (("sdpa", 2.0), ("auto", 3.0))
    ]
    found = figure.data_prefills(prefills)
    assert list(found["m"]) == [256, 512]
    assert figure.data_ratios(found["m"], "auto") == {256: 1.5, 512: 1.5}
    assert figure.data_ratios(found["m"], "always") == {}


def test_numbers_of_the_page(monkeypatch):
    monkeypatch.setattr(fit, "kept_law", lambda: LAW)
    results = {"rows": made_up(DEVICE, DENSE), "settings": SETTINGS, "runs": [{"date": "today"}]}
    found = values(results)
    calls = [row for row in results["rows"] if row["part"] == "calls"]
    for heads, kept, tail, faster in found["crossings"]:
        q_heads, kv_heads, head_dim = (int(x) for x in heads.replace(" of", " /").split(" / "))
        dense, ours = figure.data_calls(calls, (q_heads, kv_heads, head_dim), tail)
        times = ours[float(kept.removesuffix(" %")) / 100]
        if faster == "–":
            assert times[max(times)] >= dense[max(times)]
        else:
            first = int(faster.replace("\u202f", ""))
            assert all(times[n] < dense[n] for n in times if n >= first)
            before = [n for n in times if n < first]
            assert not before or times[before[-1]] >= dense[before[-1]]
    (ours, *_) = coefficients(found["fit"])
    assert ours[:3] == ["anchor", "0.3", "0.08"]
    for way, held, count, middle, high, worst in errors(calls, found["fit"]):
        assert held in ("held out", "fitted")
        assert count == sum(
            row["way"] == way and fit.held_out(row) == (held == "held out") for row in calls
        )
        shown = [float(x.removesuffix(" %")) for x in (middle, high, worst)]
        assert shown == sorted(shown)
        assert math.isfinite(shown[-1])
    assert Path(EXPERIMENT.file).parts == ("crossover", "crossover.json")
