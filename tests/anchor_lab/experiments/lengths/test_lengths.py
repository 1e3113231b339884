"""What grows with the length: numbers against slow ones, rows, resuming, page and picture."""

import math
import time

import pytest
import torch
import torch.nn.functional as F

import anchor_models.transformers as anchor
from anchor_lab.experiments.lengths import figure, measure, prefills
from anchor_lab.experiments.lengths.page import EXPERIMENT, gain, layers, values
from anchor_lab.experiments.outliers.texts import tokens_of
from anchor_lab.experiments.store import Store, read
from anchor_models import Captured, load_bundled
from anchor_ref import AnchorConfig
from anchor_ref.measure import dense_attention, output_error, rows_beyond
from anchor_ref.measure import measure as of_one_theta
from tests.tree import ROOT

TINY = measure.Sizes({"prose": 2110, "code": 2100}, (2100, 2110), 4, (2100,), 1)


def run(path, *more) -> int:
    fixed = ["--quick", "--model", "bundled", "--device", "cpu", "--out", str(path)]
    return EXPERIMENT.run([*fixed, *more])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What a quick run on the bundled model writes."""
    path = tmp_path_factory.mktemp("lengths") / "quick.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(measure, "QUICK", TINY)
        assert run(path) == 0
    return path


# -- heads


@pytest.fixture(scope="module")
def layer():
    random = torch.Generator().manual_seed(0)
    q, k, v = (2 * torch.randn(1, heads, 170, 16, generator=random) for heads in (4, 2, 2))
    q[:, 0] *= 0.1  # of a head whose weights lie everywhere
    return Captured(q, k, v, 0.25)


def test_heads_are_what_one_threshold_at_a_time_says(layer):
    config = AnchorConfig(block_size=8, step=2)
    found = measure.heads(layer, config, blocks=99)
    beyond = rows_beyond(config, 170, 170)
    dense = dense_attention(layer.q, layer.k, layer.v, 0.25)
    for place, theta in enumerate(measure.THETAS):
        at = AnchorConfig(block_size=8, step=2, theta=theta)
        one = of_one_theta(layer.q, layer.k, layer.v, at, 0.25)
        rows = one.recall_summary(beyond)
        out = anchor_out(layer, at)
        error = output_error(out[:, :, beyond], dense[:, :, beyond])[0]
        expected = {
            "density": one.density.mean(),
            "density_most": one.density.max(),
            "recall": rows["mean"].mean(),
            "recall_p10": rows["p10"].mean(),
            "recall_least": rows["mean"].min(),
            "error": error.mean(),
            "error_most": error.max(),
        }
        for name, value in expected.items():
            assert found[name][place] == pytest.approx(value.item(), rel=6e-4, abs=1e-6), (
                name,
                theta,
            )
    assert found["floor"] == pytest.approx(found["density"][0], abs=1e-4)
    assert found["density"][0] < found["density"][1] < found["density"][-1]


def anchor_out(x, config):
    from anchor_ref import anchor_attention

    return anchor_attention(x.q, x.k, x.v, config, 0.25)


def test_few_blocks_give_the_error_of_their_own_rows(layer, monkeypatch):
    config = AnchorConfig(block_size=8, step=2)
    monkeypatch.setattr(measure, "spread_blocks", lambda n, count, phase: [range(128, 170)])
    found = measure.heads(layer, config)
    dense = dense_attention(layer.q, layer.k, layer.v, 0.25)
    for place, theta in enumerate(measure.THETAS):
        out = anchor_out(layer, AnchorConfig(block_size=8, step=2, theta=theta))
        error = output_error(out[:, :, 128:], dense[:, :, 128:]).mean().item()
        assert found["error"][place] == pytest.approx(error, rel=6e-4, abs=1e-6)


# -- reads


def test_whole_and_pieces_are_the_same_tokens_read_in_two_ways():
    model, tokenizer = load_bundled()
    tokens = torch.tensor([tokens_of("prose", tokenizer, 161, ROOT)])
    trained = model.config.max_position_embeddings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "stretch", lambda model, n: torch.no_grad())  # not what is asked
        patch.setattr(model.config, "max_position_embeddings", 40)
        found = measure.reads(model, tokens)
        assert measure.reads(model, tokens[:, :40])["pieces"] is None
    assert model.config.max_position_embeddings == trained
    whole = losses(model, tokens)
    # Four pieces of 40 and a single token; tokens that begin a piece count in neither.
    pieces = torch.cat([losses(model, tokens[:, at : at + 40]) for at in (0, 40, 80, 120)])
    kept = [row for row in range(160) if row + 1 not in (40, 80, 120, 160)]
    for name, expected in (("whole", whole[kept]), ("pieces", pieces)):
        parts = [part.mean().item() for part in expected.tensor_split(8)]
        assert found[name] == pytest.approx(parts, abs=2e-3)
    assert found["whole"][-1] != pytest.approx(found["pieces"][-1], abs=1e-2)


def losses(model, tokens):
    with torch.no_grad():
        logits = model(tokens).logits[0, :-1]
    return F.cross_entropy(logits, tokens[0, 1:], reduction="none")


def test_long_texts_are_read_by_yarn(monkeypatch):
    model, tokenizer = load_bundled()
    stretched = []
    monkeypatch.setattr(model.config, "max_position_embeddings", 64)
    original = measure.token_losses
    monkeypatch.setattr(
        measure,
        "token_losses",
        lambda model, tokens: (
            stretched.append((tokens.shape[1], model.config.rope_parameters["rope_type"]))
            or original(model, tokens)
        ),
    )
    measure.reads(model, torch.tensor([tokens_of("prose", tokenizer, 128, ROOT)]))
    assert stretched == [(128, "yarn"), (64, "default"), (64, "default")]


# -- times


class Clock:
    """Every mark is a millisecond after the one before, those of a slow machine ten."""

    def __init__(self):
        self.now, self.step = 0.0, 1.0

    def mark(self):
        self.now += self.step
        return self.now

    def ms(self, first, last):
        return last - first

    def wait(self):
        pass


@pytest.fixture(scope="module")
def timed():
    model, tokenizer = load_bundled()
    tokens = torch.tensor([tokens_of("prose", tokenizer, 150, ROOT)])
    with anchor.options(block_size=16, step=4), anchor.record() as stats:
        found = prefills.prefills(model, tokens, prefills.WAYS, 1, Clock())
    return model, found, [call.ran for call in stats.calls]


def test_a_prefill_tells_its_attention_from_the_rest(timed):
    model, found, _ = timed
    layers = model.config.num_hidden_layers
    for way in (prefills.SDPA, prefills.OURS):
        row = found[way]
        assert row["layers_ms"] == [1.0] * layers
        # A mark before, one after, and two for each layer: attention has every second step.
        assert row["whole_ms"]["median"] == 2 * layers + 1
        assert row["share"] == round(layers / (2 * layers + 1), 4)
    assert found[prefills.SDPA]["backend"] in {"FLASH_ATTENTION", "MATH"}
    assert found[prefills.OURS]["backend"] is None


def test_the_ways_run_what_they_are_called(timed):
    model, _, ran = timed
    layers = model.config.num_hidden_layers
    # Two rounds that warm up and one that counts; the others never come here.
    assert ran == ["anchor"] * (3 * layers)
    assert model.config._attn_implementation != anchor.NAME


def test_a_way_that_does_not_run_says_why_and_hinders_no_other(timed):
    _, found, _ = timed
    assert found[prefills.CUDNN]["status"] == "error"  # there is no cuDNN on a processor
    assert "No viable backend" in found[prefills.CUDNN]["message"]


# -- the run


def test_every_length_text_and_layer_has_its_row(out):
    rows = read(out)["rows"]
    found = [(row["part"], row["length"], row["text"], row["layer"]) for row in rows
             if row["part"] == "heads"]  # fmt: skip
    assert found == [
        ("heads", n, text, layer)
        for n, texts in ((2100, ("prose", "code")), (2110, ("prose",)))
        for text in texts
        for layer in (0, 4)
    ]
    reads = [(row["length"], row["text"]) for row in rows if row["part"] == "reads"]
    assert reads == [(2100, "prose"), (2100, "code"), (2110, "prose")]
    assert [row["way"] for row in rows if row["part"] == "times"] == [
        prefills.CUDNN, prefills.SDPA, prefills.OURS,
    ]  # fmt: skip


def test_what_is_there_is_not_measured_again_and_time_ends_a_run(out, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(measure, "QUICK", TINY)
    whole = read(out)
    left = [row for row in whole["rows"] if row["part"] != "heads" or row["layer"] == 0]
    path = tmp_path / "a.json"
    settings = dict(whole["settings"])
    Store(path, measure.KEY, settings, whole["runs"][0]).add(left)
    asked, original = [], measure.heads
    monkeypatch.setattr(
        measure, "heads", lambda x, phase: asked.append(x.layer) or original(x, phase=phase)
    )
    monkeypatch.setattr(measure, "reads", None)  # all are there
    assert run(path, "--parts", "heads", "--time-s", "0") == 1
    assert asked == []
    assert run(path, "--parts", "heads", "--lengths", "2100") == 0
    assert asked == [4, 4]
    assert run(path) == 0
    assert asked == [4, 4, 4]
    assert run(path) == 0  # nothing is left
    again = {tuple(row.get(name) for name in measure.KEY): row for row in read(path)["rows"]}
    for row in whole["rows"]:
        other = again[tuple(row.get(name) for name in measure.KEY)]
        assert other.get("recall") == row.get("recall")


def test_time_ends_between_two_layers(tmp_path, monkeypatch):
    model, tokenizer = load_bundled()
    texts = {"prose": torch.tensor([tokens_of("prose", tokenizer, 2100, ROOT)])}
    store = Store(tmp_path / "a.json", measure.KEY, {})
    clock = iter([0.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    (job,) = measure.head_jobs(
        store, model, texts, measure.Sizes({"prose": 2100}, (2100,), 3, (), 1)
    )
    assert not job(1.5)
    assert [row["layer"] for row in store.rows] == [0]


def test_a_length_that_is_none_of_them_is_refused(tmp_path, capsys):
    assert run(tmp_path / "a.json", "--lengths", "2304", "1234") == 2
    assert "--lengths must be of 2304, 2560, got 1234" in capsys.readouterr().err


# -- page and picture


def head_row(n, text, layer, density, recall=0.9):
    ten = len(measure.THETAS)
    row = {"part": "heads", "length": n, "text": text, "layer": layer, "floor": 0.1}
    row |= {name: [density] * ten for name in ("density", "density_most")}
    row |= {name: [recall] * ten for name in ("recall", "recall_p10", "recall_least")}
    return row | {name: [0.2] * ten for name in ("error", "error_most")}


THETAS = [None, *measure.THETAS[1:]]


def test_a_curve_keeps_to_texts_that_all_lengths_have():
    rows = [
        head_row(100, "prose", 0, 0.9),
        head_row(100, "code", 0, 0.6, 0.8),
        head_row(100, "code", 1, 0.8),  # prose was not read by this layer
        head_row(200, "code", 0, 0.4),
        head_row(200, "code", 1, 0.2, 0.7),
    ]
    found = figure.data_heads(rows, THETAS)
    assert [found[n]["texts"] for n in (100, 200)] == [["code"], ["code"]]
    assert found[100]["thetas"][12.0]["density"] == pytest.approx(0.7)
    assert found[200]["thetas"][12.0]["density"] == pytest.approx(0.3)
    assert found[200]["thetas"][None]["recall_least"] == 0.7
    texts = figure.data_texts(rows, THETAS, 12.0)
    assert texts[100]["prose"]["density"] == pytest.approx(0.9)
    assert texts[100]["code"]["density"] == pytest.approx(0.7)
    told = gain(found)
    assert told["less"]
    assert told["kept"] == ["70 %", "30 %"]
    assert gain({100: found[100]}) is None


def test_layers_that_a_text_lacks_are_in_no_mean():
    rows = [head_row(100, "prose", 0, 0.5), head_row(100, "code", 0, 0.7)]
    rows.append(head_row(100, "code", 1, 0.1))
    assert figure.data_heads(rows, THETAS)[100]["thetas"][6.0]["density"] == pytest.approx(0.6)
    assert figure.data_heads([], THETAS) == {}


def test_texts_that_are_read_worse_at_once_are_told_by_length():
    def one(n, text, whole, pieces):
        read = {"whole": [whole] * 8, "pieces": None if pieces is None else [pieces] * 8}
        return {"part": "reads", "length": n, "text": text, **read}

    rows = [
        one(8, "prose", 9.0, None),
        one(16, "prose", 3.0, 3.1),
        one(16, "code", 3.2, 3.1),
        one(32, "prose", 3.0, 3.1),
    ]
    # Better in the first eighth, and worse over all.
    rows.append({**one(32, "code", 3.0, 3.1), "whole": [3.0] * 7 + [5.0]})
    assert figure.data_worse(rows) == {16: ["code"], 32: ["code"]}


def test_of_an_even_count_of_layers_the_median_lies_between_the_two_middles():
    told = layers({8192: {"sdpa": {"layers_ms": [9.0, 1.0, 2.0, 4.0]}}})
    assert told == [["8\u202f192", "sdpa", "1", "3", "9"]]


def test_the_page_says_which_texts_are_read_worse_at_once(out):
    found = read(out)
    row = {"part": "reads", "text": "code", "whole": [3.2] * 8, "pieces": [3.1] * 8}
    found["rows"].append({**row, "length": 16})
    assert values(found)["worse"] == ["code of 16 tokens"]


def test_the_page_and_the_picture_are_written_from_the_rows(out):
    text = out.with_suffix(".md").read_text("utf-8")
    assert out.with_suffix(".png").exists()
    assert "read worse" not in text.replace("No text is read worse", "")
    found = values(read(out))
    line = found["times"][0]
    rows = {row["way"]: row for row in read(out)["rows"] if row["part"] == "times"}
    ms = [rows[way]["whole_ms"]["median"] for way in (prefills.SDPA, prefills.OURS)]
    assert line[2] == "–"
    assert line[4] == f"{ms[0] / ms[1]:.2f}"
    assert len(line) == len(["tokens", *found["ways"], "gain", *found["in_attention"]])
    assert found["gaps"][0][1] == prefills.CUDNN
    assert len(found["heads"]) == 2 * len(measure.THETAS)
    assert found["heads"][0][1] == "no stripes"
    assert math.isinf(measure.THETAS[0])
    assert read(out)["settings"]["thetas"][0] is None
