"""The heads that come with the package: measured by definition, chosen by what is found."""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers

from anchor_lab.experiments.smollm2 import bundle
from anchor_lab.experiments.smollm2.prompts import Needle, needle
from anchor_models import Captured, load_bundled
from anchor_models.heads import load_bundled_heads
from anchor_ref import AnchorConfig, compute_anchor, identify_stripes
from anchor_ref.measure import density, recall
from anchor_ref.regions import groups
from tests.tiny_llama import LLAMA

LENGTH, GROUP, BLOCK = 2500, 2048, 128  # the last block is ragged, and has more than the 4 rows
FACT = range(700, 709)
SCALE = 0.4
THETAS = (2.0, 5.0)  # of random heads more would drop nothing


@pytest.fixture(scope="module")
def layer() -> Captured:
    """Four heads of one layer: one asks for the fact in one of the last rows, one too early."""
    random = torch.Generator().manual_seed(0)
    q = 2 * torch.randn(1, 4, LENGTH, 8, generator=random)
    k, v = (torch.randn(1, 2, LENGTH, 8, generator=random) for _ in range(2))
    k[0, 1, FACT.start + 3] = 3.0
    q[0, 2, -2] = q[0, 3, -5] = 3.0  # the fifth from the end is one row too early
    q[0, 3, -4:] = -1.0
    return Captured(q, k, v, SCALE, layer=7)


@pytest.fixture(scope="module")
def measured(layer) -> list[dict]:
    prompt = Needle(torch.zeros(1, LENGTH, dtype=torch.int64), "12345", FACT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "THETAS", THETAS)
        return bundle.of_layer(layer, prompt)


@pytest.fixture(scope="module")
def weights(layer) -> torch.Tensor:
    """Dense attention of every pair, by head, float64."""
    k = layer.k.double().repeat_interleave(2, 1)
    scores = layer.q.double() @ k.mT * SCALE
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    return scores.masked_fill_(later, -torch.inf).softmax(-1)[0]


def close(rows, name, expected):
    found = torch.tensor([row[name] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # written with four digits


def test_a_row_for_each_head_of_the_layer(measured):
    assert [(row["layer"], row["head"]) for row in measured] == [(7, head) for head in range(4)]


def test_sink_window_and_far_are_the_mass_of_all_rows_beyond_the_first_group(measured, weights):
    beyond = weights[:, GROUP:]
    close(measured, "sink", beyond[..., :BLOCK].sum(-1).mean(-1))
    close(measured, "window", beyond[..., GROUP:].sum(-1).mean(-1))
    close(measured, "far", beyond[..., BLOCK:GROUP].sum(-1).mean(-1))


def test_top_is_the_share_of_the_heaviest_hundredth_of_the_far_keys(measured, weights):
    columns = weights[:, GROUP:, BLOCK:GROUP].sum(1)
    heaviest = columns.sort(-1, descending=True).values[:, : columns.shape[1] // 100]
    close(measured, "top", heaviest.sum(-1) / columns.sum(-1))


def test_fact_is_the_most_mass_on_it_of_one_of_the_last_four_rows(measured, weights):
    seen = weights[:, -4:, FACT.start : FACT.stop].sum(-1).amax(-1)
    close(measured, "fact", seen)
    assert seen[2] > 0.9
    assert seen[3] < 0.5
    assert weights[3, -5, FACT.start + 3] > 0.9


def test_density_and_recall_are_those_of_the_method(measured, layer):
    for theta in THETAS:
        config = AnchorConfig(theta=theta)
        q, k, v = layer.q, layer.k, layer.v
        anchor = compute_anchor(q, k, v, config, SCALE).max
        stripes = identify_stripes(q, k, anchor, config, SCALE)
        close(measured, f"density {theta:g}", density(stripes, config, LENGTH, LENGTH)[0])
        rows = recall(q, k, stripes, config, SCALE)[0, :, GROUP:]
        close(measured, f"recall {theta:g}", rows.double().mean(-1))
        assert (rows.mean(-1) < 0.99).all()
    assert len(groups(AnchorConfig(), LENGTH, LENGTH)) == 2


# -- the choice


def row(layer, head, fact=0.0, far=0.1, top=0.1, density=0.9):
    return {
        "layer": layer,
        "head": head,
        "fact": fact,
        "far": far,
        "top": top,
        "density 12": density,
    }


def test_each_kv_head_is_chosen_for_what_one_of_its_heads_is_best_at():
    rows = [
        row(0, 0),
        row(0, 5, far=0.8, top=0.9, density=0.2),  # kv head 1
        row(1, 2, fact=0.7),
        row(2, 8, far=0.9, top=0.05),  # kv head 2
        row(3, 1),
    ]
    assert bundle.choose(rows, 3) == {"retrieval": (1, 0), "stripes": (0, 1), "diffuse": (2, 2)}


def test_stripes_are_not_looked_for_where_all_is_kept():
    rows = [
        row(0, 0, far=0.9, top=0.9, density=0.5),
        row(1, 0, far=0.5, top=0.5, density=0.49),
        row(2, 0, fact=1.0),
        row(3, 0),
    ]
    assert bundle.choose(rows, 1)["stripes"] == (1, 0)


def test_no_kv_head_is_chosen_twice():
    best = row(0, 1, fact=0.9, far=0.9, top=0.5, density=0.1)
    beside = row(0, 0, far=0.8, top=0.5, density=0.1)  # reads the same keys
    rows = [best, beside, row(1, 0, far=0.3, top=0.5, density=0.1), row(2, 0, far=0.2, top=0.1)]
    assert bundle.choose(rows, 2) == {"retrieval": (0, 0), "stripes": (1, 0), "diffuse": (2, 0)}


# -- the prompt, and what is written


@pytest.fixture(scope="module")
def tokenizer():
    return load_bundled()[1]


@pytest.fixture(scope="module")
def body(tokenizer) -> list[int]:
    return tokenizer(
        "the harbour was quiet and the sea " * 600, add_special_tokens=False
    ).input_ids


class Writer:
    """Writes the digits that stand in its prompt, from the nth prompt on."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, first):
        self.tokenizer, self.first, self.read = tokenizer, first, []

    def generate(self, tokens, *, attention_mask, max_new_tokens, do_sample):
        assert attention_mask.shape == tokens.shape
        assert not do_sample
        words = self.tokenizer.decode(tokens[0])
        self.read.append(words)
        (number,) = [word for word in words.replace(".", " ").split() if word.isdecimal()]
        told = f" {number}." if len(self.read) > self.first else " 0."
        new = self.tokenizer(told, add_special_tokens=False, return_tensors="pt").input_ids
        return torch.cat([tokens, new], 1)


def test_the_first_prompt_is_taken_that_is_answered(tokenizer, body):
    model = Writer(tokenizer, 2)
    prompt = bundle.prompt_that_is_answered(model, tokenizer, body, 300)
    assert len(model.read) == 3
    assert model.read[-1] == tokenizer.decode(prompt.tokens[0])
    assert len(set(model.read)) == 3
    assert model.read[-1].endswith(" is")  # its last row asks for the number
    assert 0.05 < prompt.place.start / 300 < 0.65


def test_a_model_that_answers_none_is_refused(tokenizer, body, monkeypatch):
    monkeypatch.setattr(bundle, "SEEDS", range(3))
    with pytest.raises(ValueError, match="must answer one of 3 prompts, it answers none"):
        bundle.prompt_that_is_answered(Writer(tokenizer, 9), tokenizer, body, 300)


def test_what_is_written_is_what_the_model_was_given(
    tokenizer, body, tmp_path, monkeypatch, capsys
):
    torch.manual_seed(0)
    sizes = {**LLAMA, "vocab_size": 4096, "num_hidden_layers": 3, "max_position_embeddings": 4096}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    prompt = needle(tokenizer, body, 2304, 0, start=0, begun=True)
    seen = SimpleNamespace()
    monkeypatch.setattr(bundle, "load_pretrained", lambda name, *_: (model, tokenizer))
    monkeypatch.setattr(bundle, "course_text", lambda root: "the course")
    monkeypatch.setattr(
        bundle, "prompt_that_is_answered", lambda *given: setattr(seen, "given", given) or prompt
    )
    out = tmp_path / "new" / "captured"
    arguments = ["--model", "tiny", "--length", "2304", "--device", "cpu", "--out", str(out)]
    assert bundle.main(arguments) == 0
    assert seen.given[2:] == (tokenizer("the course").input_ids, 2304)
    found = load_bundled_heads(out)
    assert sorted(path.name for path in out.iterdir()) == ["heads.json", "heads.safetensors"]
    assert "".join(found.words) == tokenizer.decode(prompt.tokens[0])
    assert (found.answer, found.fact) == (prompt.answer, prompt.place)
    assert found.answer in "".join(found.words[place] for place in found.fact)
    assert len(found.heads) == 3 * 4
    assert found.chosen == bundle.choose(found.heads, 2)
    assert set(found.chosen) == {"retrieval", "stripes", "diffuse"}
    whole = bundle.capture_qkv(model, prompt.tokens)
    for layer, x in found.captured.items():
        keys = sorted(key for other, key in found.chosen.values() if other == layer)
        places = [2 * key + i for key in keys for i in range(2)]
        assert x.heads == tuple(places)
        assert torch.equal(x.q.float(), whole[layer].q[:, places].float())
        assert torch.equal(x.k.float(), whole[layer].k[:, keys].float())
        assert torch.equal(x.v.float(), whole[layer].v[:, keys].float())
        assert x.scaling == whole[layer].scaling
    assert set(found.captured) == {layer for layer, _ in found.chosen.values()}
    about = json.loads((out / "heads.json").read_text(encoding="utf-8"))
    assert about["model"] == "tiny"
    assert len(about["weights"]) == 12
    assert str(out) in capsys.readouterr().out
