"""All methods on a real model: what is measured where, against slow numbers, and what is made."""

import time

import pandas as pd
import pytest
import torch

from anchor_lab.experiments.compare.figure import ORACLES
from anchor_lab.experiments.compare.measure import compare_heads
from anchor_lab.experiments.rivals import figure, measure
from anchor_lab.experiments.rivals.page import EXPERIMENT, kind_of, values
from anchor_lab.experiments.store import Store
from anchor_lab.methods import METHODS
from anchor_models import Captured
from anchor_ref import AnchorConfig
from tests.tree import ROOT

GROUP = 64
SMALL = {
    "anchor": METHODS["AnchorAttention"](AnchorConfig(block_size=16, step=4, theta=1.0)),
    "skip": METHODS["SkipSoftmax"](0.3, 16),
    "top": METHODS["TokenTopK"](9),
    "one list": METHODS["HeadAveragedTopK"](9),
}


def layer(seed, scale=0.25):
    random = torch.Generator().manual_seed(seed)
    q, k, v = (2 * torch.randn(1, heads, 200, 16, generator=random) for heads in (4, 2, 2))
    return Captured(q, k, v, scale, layer=0)


def test_every_text_has_the_numbers_that_it_has_alone():
    texts = [layer(0), layer(1)]
    found = list(measure.of_layer(texts, SMALL, blocks=99, group_size=GROUP))
    assert len(found) == 2 * len(SMALL)
    for place, x in enumerate(texts):
        heads = compare_heads(x.q, x.k, x.v, list(SMALL.values()), 0.25, group_size=GROUP)
        rows = [row for at, row in found if at == place]
        assert [row["configuration"] for row in rows] == list(SMALL)
        for at, row in enumerate(rows):
            own = [head[at] for head in heads]
            for name, theirs in (
                ("recall_mean", "recall_beyond_mean"),
                ("recall_p10", "recall_beyond_p10"),
                *((name, name) for name in ("density", "executed_density", "total_cost")),
                ("identification_cost", "identification_cost"),
            ):
                expected = sum(one[theirs] for one in own) / len(own)
                assert row[name] == pytest.approx(expected, abs=2e-5), (row, name)
            least = min(one["recall_beyond_mean"] for one in own)
            assert row["recall_least"] == pytest.approx(least, abs=2e-5)
            assert row["output_error"] > own[0]["output_error"] / 4 > 0


def test_at_a_trained_length_all_texts_are_read_by_each_layer_and_all_that_is_swept():
    cells = measure.cells(8192, measure.FULL, 30)
    assert [cell.layer for cell in cells] == list(range(0, 30, 3))
    assert all(cell.texts == measure.TEXTS for cell in cells)
    assert [cell.phase for cell in cells] == [at / 10 for at in range(10)]
    counts = {name: len(one) for name, one in cells[0].methods.items()}
    assert counts == {name: len(method.sweep()) for name, method in METHODS.items()}


def test_beyond_it_layers_read_texts_in_turn_and_oracles_are_swept_with_half():
    cells = measure.cells(32_768, measure.FULL, 30)
    assert [cell.texts for cell in cells[:4]] == [("prose",), ("code",), ("chat",), ("prose",)]
    for name, one in cells[0].methods.items():
        whole = list(measure.cells(8192, measure.FULL, 30)[0].methods[name])
        assert list(one) == (whole[::2] if name in ORACLES else whole), name
    some = measure.cells(8192, measure.FULL, 30, ["XAttention"])
    assert list(some[0].methods) == ["XAttention"]


# -- the run


def run(path, *more) -> int:
    fixed = ["--quick", "--model", "bundled", "--device", "cpu", "--out", str(path)]
    return EXPERIMENT.run([*fixed, *more])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What a quick run on the bundled model writes, of some methods."""
    path = tmp_path_factory.mktemp("rivals") / "quick.csv.gz"
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        assert run(path, "--methods", "Dense", "StreamingLLM", "AnchorAttention") == 0
    return path


def prepare(patch):
    patch.chdir(ROOT)
    lengths = {2304: measure.ALL, 2310: measure.IN_TURN}
    patch.setattr(measure, "QUICK", measure.Sizes(lengths, 5, 2, ends=True))


def test_every_cell_has_its_rows(out):
    rows = EXPERIMENT.read(out)["rows"]
    found = {(row["length"], row["text"], row["layer"]) for row in rows}
    assert found == {
        *((2304, text, at) for text in measure.TEXTS for at in (0, 5)),
        (2310, "prose", 0),
        (2310, "code", 5),
    }
    of_one = [row["configuration"] for row in rows if row["method"] == "AnchorAttention"]
    assert set(of_one) == {"theta=1", "theta=17"}
    dense = [row for row in rows if row["method"] == "Dense"]
    assert {(row["recall_mean"], row["density"], row["output_error"]) for row in dense} == {
        (1, 1, 0)
    }
    assert "date" not in EXPERIMENT.read(out)["settings"]


def test_a_later_run_measures_what_is_missing_alone(out, tmp_path, monkeypatch):
    prepare(monkeypatch)
    whole = EXPERIMENT.read(out)
    gone = {("StreamingLLM", "code", 0), ("AnchorAttention", "chat", 5)}
    left = [
        row
        for row in whole["rows"]
        if row["length"] != 2304 or (row["method"], row["text"], row["layer"]) not in gone
    ]
    path = tmp_path / "a.csv.gz"
    Store(path, measure.KEY, whole["settings"], text=measure.TEXT_COLUMNS).add(left)
    asked, original = [], measure.of_layer

    def noted(captured, methods, phase):
        asked.append((captured[0].layer, phase, len(captured), next(iter(methods))))
        return original(captured, methods, phase)

    monkeypatch.setattr(measure, "of_layer", noted)
    methods = ["--methods", "Dense", "StreamingLLM", "AnchorAttention"]
    assert run(path, *methods, "--time-s", "-1") == 1
    assert asked == []
    assert run(path, *methods) == 0
    assert asked == [(0, 0.0, 1, "init=16 window=128"), (5, 0.5, 1, "theta=1")]
    assert run(path, *methods) == 0  # nothing is left
    key = measure.KEY
    again = {tuple(row[name] for name in key): row for row in EXPERIMENT.read(path)["rows"]}
    assert len(again) == len(whole["rows"])
    for row in whole["rows"]:
        assert again[tuple(row[name] for name in key)] == pytest.approx(row, abs=2e-5)


def test_what_was_measured_of_a_layer_is_kept_when_the_time_is_over(tmp_path, monkeypatch):
    store = Store(tmp_path / "a.csv", measure.KEY, {}, text=measure.TEXT_COLUMNS)
    methods = {name: {"default": METHODS[name]()} for name in ("Dense", "StreamingLLM", "MoBA")}
    plan = [measure.Cell(0, 0.0, ("prose",), methods)]
    clock = iter([0.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(measure, "captures", lambda *_: {"prose": {0: layer(0)}})
    row = {"configuration": "default", **dict.fromkeys(measure.MEASURES, 0.5)}
    monkeypatch.setattr(measure, "of_layer", lambda captured, methods, phase: iter([(0, row)]))
    model = type("Model", (), {"device": "cpu"})
    assert not measure.fill(store, model, {}, 200, plan, 2.5)
    assert [row["method"] for row in store.rows] == ["Dense", "StreamingLLM"]


def test_a_length_that_is_none_of_them_is_refused(tmp_path, capsys):
    assert run(tmp_path / "a.csv.gz", "--lengths", "4096") == 2
    assert "--lengths must be of 2304, 2560, got 4096" in capsys.readouterr().err


# -- page and picture


def row(text, layer, method, configuration, recall, density, cost=None):
    measures = dict.fromkeys(measure.MEASURES, density)
    recalls = {f"recall_{name}": recall for name in ("mean", "p10", "least")}
    spent = {"total_cost": density if cost is None else cost}
    place = {"length": 8192, "text": text, "layer": layer}
    names = {"method": method, "configuration": configuration}
    return {**place, **names, **measures, **recalls, **spent}


def results():
    rows = []
    for text, more in (("prose", 0.0), ("code", 0.1)):
        rows += [
            row(text, 0, "AnchorAttention", "theta=1", 0.9, 0.2 + more),
            row(text, 0, "AnchorAttention", "theta=9", 1.0, 0.4 + more),
            row(text, 0, "XAttention", "threshold=1", 0.94, 0.1 + more, 0.5),
            row(text, 0, "XAttention", "threshold=2", 0.96, 0.2 + more, 0.6),
            row(text, 0, "TokenTopK", "k=1", 0.5, 0.1 + more, 1.0),
        ]
    rows.append(row("prose", 0, "MoBA", "k=1", 1.0, 0.01))  # code is missing
    settings = dict.fromkeys(
        ("device", "torch", "transformers", "model", "weights", "dtype", "blocks"), "x"
    )
    return {"settings": settings, "runs": [], "rows": rows}


def test_curves_are_means_of_what_was_measured_everywhere():
    curves = figure.data_curves(results()["rows"], 8192)
    assert set(curves["method"]) == {"AnchorAttention", "XAttention", "TokenTopK"}
    ours = curves[curves["method"] == "AnchorAttention"]
    assert ours["density"].tolist() == pytest.approx([0.25, 0.45])
    assert curves["cells"].tolist() == [2] * 5
    alone = figure.data_curves(results()["rows"], 8192, "prose")
    assert isinstance(alone, pd.DataFrame)
    assert "MoBA" in set(alone["method"])


def test_what_a_recall_costs_is_read_off_between_two_configurations():
    curves = figure.data_curves(results()["rows"], 8192)
    needed = figure.data_needed(curves, "density")
    assert list(needed)[:2] == ["XAttention", "AnchorAttention"]
    assert needed["AnchorAttention"] == pytest.approx([0.35, 0.41, 0.43])
    assert needed["XAttention"][0] == pytest.approx(0.2)
    assert needed["XAttention"][1] != needed["XAttention"][1]  # NaN: not swept so far
    assert figure.data_needed(curves, "total_cost")["XAttention"][0] == pytest.approx(0.55)
    reached = figure.data_reached(curves, "density", 0.35)
    assert reached["AnchorAttention"] == pytest.approx((0.95, 0.95))


def test_a_sweep_ends_at_its_largest_recall():
    ends = figure.data_ends(figure.data_curves(results()["rows"], 8192))
    assert ends["XAttention"] == pytest.approx((0.96, 0.25))
    assert ends["AnchorAttention"] == pytest.approx((1.0, 0.45))
    rows = results()["rows"] + [  # keeps more, and finds less
        row(text, 0, "XAttention", "threshold=3", 0.95, 0.9) for text in ("prose", "code")
    ]
    assert figure.data_ends(figure.data_curves(rows, 8192))["XAttention"] == ends["XAttention"]


def test_the_page_says_where_sweeps_end_and_that_a_dash_is_such_an_end():
    (one,) = values(results())["lengths"]
    assert one["ends"] == ["TokenTopK (0.500)", "XAttention (0.960)"]
    text = EXPERIMENT.page(results(), ROOT / "rivals.md")
    assert "Sweeps that end below a recall of 0.99, and where: TokenTopK (0.500), XAtt" in text
    assert '"–": not reached by the configurations that were read' in text
    made = results()
    made["rows"] = [x for x in made["rows"] if x["method"] == "AnchorAttention"]
    assert "Sweeps that end" not in EXPERIMENT.page(made, ROOT / "rivals.md")


def test_the_page_says_who_is_ahead():
    (one,) = values(results())["lengths"]
    assert (one["place"], one["of"], one["ahead"]) == (2, 2, ["XAttention"])
    assert one["texts"] == ["prose", "code"]
    line = next(line for line in one["needed"] if line[0] == "XAttention")
    assert line[:5] == ["XAttention", "published", "0.200", "–", "–"]
    text = EXPERIMENT.page(results(), ROOT / "rivals.md")
    assert "number 2 of the 2 published methods that reach it, behind XAttention." in text


def test_oracles_and_variants_are_no_published_methods():
    kinds = {name: kind_of(name) for name in METHODS}
    assert kinds["HeadAveragedTopK"] == kinds["StripeOracle"] == "oracle"
    assert kinds["AnchorBlocks"] == kinds["SALEFloat"] == "variant"
    assert kinds["SALE"] == kinds["AnchorAttention"] == "published"
    assert kinds["Dense"] == "dense"


def test_page_and_picture_are_written_from_the_rows(out):
    assert out.with_name("quick.png").exists()
    text = out.with_name("quick.md").read_text("utf-8")
    assert "## 2\u202f304 tokens" in text
    assert "texts: prose, code, chat; 6 layers and texts together" in text
