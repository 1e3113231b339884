"""The experiment on a real model, with the bundled one: every row, resumed, written up."""

import random
from types import SimpleNamespace

import pytest
import torch

from anchor_lab.experiments.smollm2 import figure, measure
from anchor_lab.experiments.smollm2.page import EXPERIMENT, answers, shown, values
from anchor_lab.experiments.smollm2.prompts import needle, repository_text
from anchor_lab.experiments.store import Store, read, write_json
from anchor_models import capture_qkv, load_bundled
from anchor_models.documents import filler
from anchor_models.integration.options import current_options
from anchor_ref import AnchorConfig
from anchor_ref.measure import measure as measured
from tests.tree import ROOT

LENGTH = measure.QUICK_LENGTHS[0]
HEADS = 8


@pytest.fixture(scope="module")
def text() -> str:
    """The beginning of the course, read once: who edits a page meanwhile changes no test."""
    return repository_text(ROOT)[:50_000]


@pytest.fixture(scope="module")
def out(text, tmp_path_factory):
    """What a quick run on the bundled model writes; two tokens of an answer are enough here."""
    path = tmp_path_factory.mktemp("smollm2") / "quick.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "repository_text", lambda root: text)
        patch.setattr(measure, "NEW_TOKENS", 2)
        assert run(path) == 0
    return path


def run(path, *more) -> int:
    fixed = ["--quick", "--model", "bundled", "--device", "cpu", "--out", str(path)]
    return EXPERIMENT.run([*fixed, *more])


def part(path, name) -> list[dict]:
    return [row for row in read(path)["rows"] if row["part"] == name]


def test_every_head_and_every_answer_has_its_rows_and_no_time_comes_from_a_processor(out):
    found = [(row["layer"], row["head"], row["theta"]) for row in part(out, "heads")]
    wanted = [(i, h, theta) for i in range(8) for h in range(HEADS) for theta in measure.THETAS]
    assert sorted(found) == wanted
    asked = [(row["prompt"], row["way"]) for row in part(out, "answers")]
    assert asked == [(seed, way) for seed in range(2) for way in measure.WAYS]
    assert part(out, "times") == []
    assert read(out)["settings"]["model"] == "bundled"


def test_heads_are_measured_as_the_method_is(out, text):
    model, tokenizer = load_bundled()
    body = tokenizer(text, verbose=False).input_ids
    prompt = needle(tokenizer, body, LENGTH, seed=0, depth=0.35)
    x = capture_qkv(model, prompt.tokens, [5])[5]
    for theta in measure.THETAS:
        config = AnchorConfig(theta=theta)
        expected = measured(x.q, x.k, x.v, config, x.scaling)
        beyond = expected.recall[0, :, config.group_size :].double()
        rows = [row for row in part(out, "heads") if (row["layer"], row["theta"]) == (5, theta)]
        for head, row in enumerate(sorted(rows, key=lambda row: row["head"])):
            assert row["density"] == pytest.approx(expected.density[0, head].item(), abs=1e-4)
            assert row["recall"] == pytest.approx(beyond[head].mean().item(), abs=1e-4)
            tenth = beyond[head].quantile(0.1).item()
            assert row["recall_p10"] == pytest.approx(tenth, abs=1e-4)


def test_a_run_that_stopped_goes_on_with_what_is_missing_alone(out, text, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "repository_text", lambda root: text)
    whole = read(out)
    left = [row for row in whole["rows"] if row["part"] == "answers" or row["layer"] != 6]
    write_json(tmp_path / "a.json", whole["settings"], left, whole["runs"])
    captured = []
    original = measure.capture_qkv
    monkeypatch.setattr(
        measure,
        "capture_qkv",
        lambda model, tokens, layers: captured.append(layers) or original(model, tokens, layers),
    )
    for _ in range(2):  # the second time nothing is left
        assert run(tmp_path / "a.json", "--parts", "heads") == 0
    assert captured == [[6]]
    again = read(tmp_path / "a.json")
    assert len(again["runs"]) == 2
    missing = [row for row in whole["rows"] if row not in left]
    assert again["rows"] == left + [{**row, "run": 1} for row in missing]


def test_the_page_says_what_was_found_and_its_picture_lies_beside_it(out):
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    assert out.with_suffix(".png").exists()
    assert "](quick.png)" in page
    assert "How long a layer takes" not in page
    assert "| 2\u202f304 | 12 | 64 |" in page
    rows = part(out, "heads")
    twelve = [row["density"] for row in rows if row["theta"] == 12]
    (line,) = [line for line in page.splitlines() if line.startswith("| 2\u202f304 | 12 |")]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[4:6] == [
        f"{100 * sum(twelve) / len(twelve):.3g} %",
        f"{100 * min(twelve):.3g} %",
    ]
    assert f"| 2\u202f304 | 2 | {shown(0, 2)} |" in page


# -- how each way is asked


class Model:
    """Notes how its prefill would run, and writes the number with a tail alone."""

    device = torch.device("cpu")

    def __init__(self, tokenizer):
        self.config = SimpleNamespace(_attn_implementation="eager", num_hidden_layers=2)
        self.tokenizer, self.ran, self.number = tokenizer, [], ""

    def set_attn_implementation(self, name):
        self.config._attn_implementation = name

    def generate(self, tokens, *, attention_mask, max_new_tokens, do_sample):
        assert not do_sample
        assert (max_new_tokens, attention_mask.min()) == (measure.NEW_TOKENS, 1)
        name, tail = self.config._attn_implementation, current_options(self.config).sizes.tail
        self.ran.append((name, tail))
        words = self.tokenizer.decode(tokens[0])
        (number,) = [word for word in words.replace(".", " ").split() if word.isdecimal()]
        told = f" {number}." if self.ran[-1] == ("anchor_attention", measure.TAIL) else " none."
        new = self.tokenizer(told, add_special_tokens=False, return_tensors="pt").input_ids
        return torch.cat([tokens, new], 1)


def test_each_way_is_asked_as_its_name_says_once_and_the_model_is_left_as_it_was(tmp_path):
    _, tokenizer = load_bundled()
    text = filler(20_000, random.Random(0))
    body = tokenizer(text, add_special_tokens=False).input_ids
    model, store = Model(tokenizer), Store(tmp_path / "a.json", measure.KEY, {})
    for _ in range(2):  # the second time nothing is left
        measure.answers(store, model, tokenizer, body, quick=True)
    assert model.ran[:3] == [
        ("sdpa", measure.TAIL),  # which nobody reads
        ("anchor_attention", 0),
        ("anchor_attention", measure.TAIL),
    ]
    assert len(model.ran) == 6
    assert model.config._attn_implementation == "eager"
    assert [row["found"] for row in store.rows] == [False, False, True] * 2
    # What stands in the prompt is no answer.
    assert {row["written"].strip() for row in store.rows if not row["found"]} == {"none."}
    assert all(0 < row["depth"] < 1 for row in store.rows)


def test_weights_have_one_hash_whatever_their_dtype_and_another_when_one_changes():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3).bfloat16()
    before = measure.weights_hash(model)
    assert measure.weights_hash(model.float()) == before
    with torch.no_grad():
        model.bias[2] += 1
    assert measure.weights_hash(model) != before


# -- what page and picture are made of


def results() -> dict:
    """Two lengths, two layers of two heads, times and answers, made up."""
    rows = [
        {
            "part": "heads",
            "length": n,
            "layer": layer,
            "head": head,
            "theta": theta,
            "density": (layer + head + 1) / 10 * 8192 / n * theta / 12,
            "recall": 0.9,
            "recall_p10": 0.8,
        }
        for n in (16_384, 8192)
        for layer in (0, 3)
        for head in (0, 1)
        for theta in (9.0, 12.0)
    ]
    rows += [
        {"part": "times", "length": 8192, "layer": layer, "way": way, "ms": {"median": ms + layer}}
        for layer in (0, 1, 8)
        for way, ms in {"cudnn": 3.0, "sdpa": 4.0, "tail 0": 1.0, "tail 512": 2.0}.items()
    ]
    rows += [
        {"part": "answers", "length": 4096, "way": way, "prompt": seed, "found": seed < right}
        for way, right in zip(measure.WAYS, (4, 0, 3), strict=True)
        for seed in range(4)
    ]
    settings = {"model": "tiny", "device": "none", "torch": "2", "transformers": "5"}
    return {"rows": rows, "settings": settings, "runs": [{"date": "today"}]}


def test_numbers_of_the_picture():
    rows = results()["rows"]
    first, second = figure.data_heads(rows, 8192, 12.0)
    assert first == pytest.approx([0.1, 0.2])
    assert second == pytest.approx([0.4, 0.5])
    lengths = figure.data_lengths(rows)
    assert list(lengths) == [(8192, 9.0), (8192, 12.0), (16_384, 9.0), (16_384, 12.0)]
    assert lengths[8192, 12.0]["heads"] == 4
    assert lengths[8192, 12.0]["density"] == pytest.approx(0.3)
    assert lengths[16_384, 12.0]["least"] == pytest.approx(0.05)
    assert figure.data_times(rows) == {8192: {"cudnn": 4, "sdpa": 5, "tail 0": 2, "tail 512": 3}}


def test_numbers_of_the_page():
    found = values(results())
    assert found["heads"][1][:5] == ["8\u202f192", "12", 4, "30 %", "10 %"]
    assert found["times"] == [["8\u202f192", "4", "5", "2", "3", "2.00", "1.33"]]
    assert answers(results()["rows"]) == [(4096, 4, [4, 0, 3])]
    assert found["answers"][0][:2] == ["4\u202f096", 4]
    assert found["answers"][0][2:] == ["4 (51–100 %)", "0 (0–49 %)", "3 (30–95 %)"]


def test_a_picture_with_times_has_two_panels_and_a_line_for_each_way():
    from matplotlib import pyplot as plt

    drawn = figure.draw(results())
    heads, times = drawn.axes[:2]
    assert len(times.lines) == 4
    assert times.get_title("left").startswith("From which length on")
    shown_heads = heads.collections[0].get_array()
    assert shown_heads.size == 4
    assert "left N = 8192, θ = 12" in "".join(text.get_text() for text in drawn.texts)
    plt.close(drawn)
