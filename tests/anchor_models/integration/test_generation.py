"""generate() in its many ways: the tokens that sdpa gives, where every key is kept."""

import math
import warnings

import pytest
import torch

from anchor_models import load_bundled
from anchor_models.documents import make_prompt
from anchor_models.transformers import options, record
from tests.anchor_models.integration.tiny import (
    ROUNDING,
    SIZES,
    THETA,
    N,
    build,
    far,
    logits,
    tokens,
)

# Most of the time would go into annotations, which the other files of this folder check.
pytestmark = pytest.mark.usefixtures("unchecked_annotations")

PADDED = (torch.arange(N) >= torch.tensor([[0], [30]])).long()


def generated(model, implementation, ids, **how):
    model.set_attn_implementation(implementation)
    given = {"max_new_tokens": 6, "attention_mask": torch.ones_like(ids)} | how
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # transformers', about its own settings
        return model.generate(ids, **given)[:, ids.shape[1] :]


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": False, "attention_mask": PADDED},
        {"do_sample": False, "cache_implementation": "static", "attention_mask": PADDED},
        {"do_sample": False, "use_cache": False, "max_new_tokens": 3},
        {"num_beams": 3, "do_sample": False, "attention_mask": PADDED},
        {"num_beams": 2, "do_sample": False, "cache_implementation": "static"},
        {"do_sample": False, "prefill_chunk_size": 45, "attention_mask": PADDED},
    ],
    ids=["greedy", "padded", "static", "no cache", "beams", "static beams", "chunks"],
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_generated_tokens_are_those_of_sdpa(family, how):
    model, ids = build(family), tokens(2)
    with options(theta=math.inf, **SIZES), record() as stats:
        found = generated(model, "anchor_attention", ids, **how)
    assert torch.equal(found, generated(model, "sdpa", ids, **how))
    assert "anchor" in {call.ran for call in stats.calls}


def test_generation_after_a_sparse_prefill_is_that_of_the_same_logits():
    """Decoding reads the cache that the prefill left, dense: greedy tokens step by step."""
    model, ids = build(), tokens()
    with options(theta=THETA, **SIZES):
        found = generated(model, "anchor_attention", ids, do_sample=False)[0]
        with torch.no_grad():
            step = model(ids, use_cache=True)
            for token in found.tolist():
                assert step.logits[0, -1].argmax() == token
                step = model(torch.tensor([[token]]), past_key_values=step.past_key_values)


def test_a_few_queries_against_a_cache_are_dense():
    model, ids = build(), tokens()
    with options(theta=-math.inf, dense_layers=[0, 1], **SIZES), torch.no_grad():
        cache = model(ids[:, :80]).past_key_values
    with options(theta=-math.inf, **SIZES), record() as stats:
        found = logits(model, ids[:, 80:95], past_key_values=cache)
    assert [call.why for call in stats.calls] == ["15 queries are fewer than a block"] * 2
    expected = logits(model, ids, "sdpa")[:, 80:95]
    assert far(found, expected) <= ROUNDING


def test_decoding_compiles_without_a_graph_break():
    import transformers

    model, ids = build(), tokens()
    with options(theta=math.inf, **SIZES), torch.no_grad():
        cache = transformers.StaticCache(config=model.config, max_cache_len=N + 4)
        model(ids[:, :-1], past_key_values=cache)
        torch.compiler.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        given = (
            {}
            if transformers.__version__.startswith("5")
            else {"cache_position": torch.tensor([N - 1])}
        )
        mask = torch.ones(1, 1, 1, N + 4, dtype=torch.bool)
        mask[..., N:] = False
        found = compiled(
            ids[:, -1:],
            past_key_values=cache,
            attention_mask=mask,
            position_ids=torch.tensor([[N - 1]]),
            **given,
        ).logits[:, -1]
    expected = logits(model, ids, "sdpa")[:, -1]
    assert far(found, expected) <= ROUNDING


GROUP = {"block_size": 128, "step": 2, "tail": 0}  # a group is a quarter of the prompt
RETRIEVAL = {5: 1, 6: 7, 7: 5}  # layer: head, from the model card


@pytest.fixture(scope="module")
def needle():
    """The bundled model, a prompt with its needle far from start and end, and what sdpa says."""
    model, tokenizer = load_bundled()
    ids, document = make_prompt(tokenizer, 1000, seed=1)
    ids = torch.tensor([ids])

    def say(implementation):
        found = generated(model, implementation, ids, max_new_tokens=5, do_sample=False)[0]
        return tokenizer.decode(found)

    assert say("sdpa") == document.answer
    return say, document.answer


def test_needles_are_found_at_the_threshold_of_the_paper(needle):
    say, right = needle
    with options(theta=12.0, **GROUP), record() as stats:
        assert say("anchor_attention") == right
    assert stats.density < 0.97


def test_a_low_threshold_loses_what_prefill_has_to_find_and_dense_heads_bring_it_back(needle):
    """Prefill gives the first digit alone: the others are decoded, and decoding is dense."""
    say, right = needle
    with options(theta=4.0, **GROUP):
        found = say("anchor_attention")
    assert (found[0] != right[0], found[1:]) == (True, right[1:])
    thetas = [[4.0] * 8 for _ in range(8)]
    for layer, head in RETRIEVAL.items():
        thetas[layer][head] = math.inf
    with options(theta=thetas, **GROUP), record() as stats:
        assert say("anchor_attention") == right
    assert stats.density < 0.65
