"""A prompt read in each way: against `generate`, dense attention, and calls by hand."""

import pytest
import torch
import transformers

import anchor_models.transformers as anchor
from anchor_lab.experiments.answers import ask
from anchor_lab.experiments.answers.ask import DENSE, Way, answers, write
from anchor_lab.experiments.answers.prompts import Prompt, make_prompt
from anchor_lab.methods import StreamingLLM
from anchor_lab.methods.corrections import DeltaCorrection
from anchor_models import load_bundled
from tests.tiny_llama import LLAMA

N, NEW = 170, 6
SMALL = {"block_size": 8, "step": 2, "init_blocks": 1}  # groups of 16
TOKENS = torch.randint(3, 63, (2, N), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {**LLAMA, "initializer_range": 0.5, "eos_token_id": None}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()


def generated(model, tokens=TOKENS):
    out = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, do_sample=False
    )
    return out[:, tokens.shape[1] :]


def first_logits(model, monkeypatch, way, document=None):
    """The logits of the last prompt token, which alone depend on how the prompt was read."""
    seen = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *a, **k: seen.append(forward(*a, **k)) or seen[-1]
    )
    monkeypatch.setattr(ask, "_last_only", lambda model: {"logits_to_keep": 1})
    with anchor.options(**SMALL):
        write(model, TOKENS, way, 1, document)
    monkeypatch.undo()
    return seen[-1].logits[:, -1]


def test_dense_writing_is_what_generate_writes(model):
    assert torch.equal(write(model, TOKENS, DENSE, NEW), generated(model))


def test_writing_after_anchor_attention_is_what_generate_writes(model):
    with anchor.options(**SMALL):
        found = write(model, TOKENS, Way(theta=-5.0, tail=0), NEW)
    model.set_attn_implementation("anchor_attention")
    with anchor.options(theta=-5.0, tail=0, when="always", **SMALL):
        expected = generated(model)
    assert torch.equal(found, expected)
    model.set_attn_implementation("sdpa")
    assert not torch.equal(expected, generated(model))


def test_each_way_reads_as_it_says(model, monkeypatch):
    dense = first_logits(model, monkeypatch, DENSE)
    sparse = first_logits(model, monkeypatch, Way(theta=-5.0))
    assert not torch.allclose(sparse, dense, atol=1e-2)
    whole = first_logits(model, monkeypatch, Way(theta=-5.0, tail=N))
    torch.testing.assert_close(whole, dense)
    method = StreamingLLM(0, 8)
    few = first_logits(model, monkeypatch, Way(method=method))
    assert not torch.allclose(few, dense, atol=1e-2)
    torch.testing.assert_close(first_logits(model, monkeypatch, Way(method=method, tail=N)), dense)
    every_row = Way(method=method, correction=DeltaCorrection(gamma=1))
    torch.testing.assert_close(first_logits(model, monkeypatch, every_row), dense)


def test_a_second_call_reads_the_rest_densely_over_what_was_read(model, monkeypatch):
    found = first_logits(model, monkeypatch, Way(theta=-5.0, second_call=True), document=120)
    model.set_attn_implementation("anchor_attention")
    with torch.no_grad(), anchor.options(theta=-5.0, tail=0, when="always", **SMALL):
        cache = model(TOKENS[:, :120], use_cache=True).past_key_values
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = model(TOKENS[:, 120:], past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(found, expected)
    # A document without which nothing was left out is read as dense attention reads it.
    nothing = first_logits(model, monkeypatch, Way(theta=-5.0, second_call=True), document=16)
    torch.testing.assert_close(nothing, first_logits(model, monkeypatch, DENSE))


def test_the_model_is_left_with_the_attention_that_it_had(model):
    model.set_attn_implementation("eager")
    with anchor.options(**SMALL):
        write(model, TOKENS, Way(theta=1.0), 2)
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="tail"):
        write(model, TOKENS, Way(theta=1.0, tail=-1), 2)
    assert model.config._attn_implementation == "eager"


def test_writing_ends_where_all_prompts_have_ended(model):
    written = write(model, TOKENS, DENSE, NEW)
    model.generation_config.eos_token_id = [int(written[0, 1]), int(written[1, 3])]
    ends = model.generation_config.eos_token_id
    last = max(row.tolist().index(next(x for x in row.tolist() if x in ends)) for row in written)
    assert torch.equal(write(model, TOKENS, DENSE, NEW), written[:, : last + 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"new_tokens": 0}, "new_tokens must be at least 1, got 0"),
        ({"document": None}, "document must be in 1..169 for a second call, got None"),
        ({"document": 170}, "document must be in 1..169 for a second call, got 170"),
    ],
)
def test_what_cannot_be_read_is_refused(model, given, message):
    with pytest.raises(ValueError, match=message):
        write(model, TOKENS, Way(theta=1.0, second_call=True), **{"document": 9, **given})


class Words:
    """A tokenizer whose words are its tokens."""

    def decode(self, tokens, skip_special_tokens):
        return " ".join(map(str, tokens))


def test_answers_are_in_the_order_of_the_prompts_whatever_is_read_together(model, monkeypatch):
    tokens = torch.randint(3, 63, (5, N), generator=torch.Generator().manual_seed(4))
    prompts = [
        Prompt(row[None], "", (range(1),), range(1), document)
        for row, document in zip(tokens, (90, 30, 150, 60, 120), strict=True)
    ]
    cut = []
    original = ask.write
    monkeypatch.setattr(ask, "write", lambda *given: cut.append(given[-1]) or original(*given))
    alone = answers(model, Words(), prompts, new_tokens=3)
    assert alone == [
        " ".join(map(str, write(model, row[None], DENSE, 3)[0].tolist())) for row in tokens
    ]
    cut.clear()
    assert answers(model, Words(), prompts, batch=2, new_tokens=3) == alone
    assert cut == [30, 90, 150]  # the shortest of each two neighbours
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        answers(model, Words(), prompts, batch=0)


def test_what_stands_behind_an_end_is_no_answer(model):
    written = write(model, TOKENS, DENSE, NEW).tolist()
    end = model.generation_config.eos_token_id = written[0][2]
    prompts = [Prompt(row[None], "", (range(1),), range(1), 9) for row in TOKENS]
    found = answers(model, Words(), prompts, batch=2, new_tokens=NEW)
    for words, row in zip(found, written, strict=True):
        kept = row[: row.index(end)] if end in row else row
        assert words == " ".join(map(str, kept))


def test_the_bundled_model_answers_what_is_a_number():
    """Words it takes from the prose around them."""
    model, tokenizer = load_bundled()
    for task in ("single", "multi-key", "secret"):
        prompts = [make_prompt(tokenizer, task, 600, seed) for seed in range(4)]
        words = answers(model, tokenizer, prompts, batch=4, new_tokens=8)
        found = sum(one.found(said) for one, said in zip(prompts, words, strict=True))
        assert found >= 3, (task, words)
