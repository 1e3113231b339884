"""A replaced attention does what was there before, for every kind of implementation."""

from threading import Thread

import pytest
import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.models.llama.modeling_llama import LlamaAttention

from anchor_models.interface import replaced_attention
from tests.tiny_llama import LLAMA, SPECIAL_TOKENS

SIZES = {**LLAMA, **SPECIAL_TOKENS, "initializer_range": 0.5}
IDS = torch.arange(3, 43).reshape(2, 20)
MASK = (torch.arange(20) >= torch.tensor([[0], [6]])).long()


def llama(implementation="sdpa"):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    model.set_attn_implementation(implementation)
    return model


def with_vision():
    vision = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**SIZES, layer_types=["full_attention"] * 2),
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=16, intermediate_size=16, **vision
        ),
        mm_tokens_per_image=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS, attention_mask=MASK).logits


def names():
    return set(AttentionInterface._global_mapping) | set(AttentionMaskInterface._global_mapping)


@pytest.fixture
def own_implementation():
    """One that a user registered, with no mask function, and that asks for its own name."""
    seen = []

    def attention(module, *args, **kwargs):
        seen.append(module.config._attn_implementation)
        return AttentionInterface()["sdpa"](module, *args, **kwargs)

    AttentionInterface.register("my_attention", attention)
    yield seen
    del AttentionInterface._global_mapping["my_attention"]


def test_each_part_of_a_model_keeps_its_own_implementation():
    model, used = with_vision(), []

    def named(original):
        def attention(module, *args, **kwargs):
            output, weights = original(module, *args, **kwargs)
            used.append(weights is not None)  # eager attention alone returns its weights
            return output, weights

        return attention

    before, expected = names(), logits(model)
    with replaced_attention(model, named):
        assert torch.equal(logits(model), expected)
    assert used == [True, True]
    assert names() == before
    assert model.config.text_config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_an_implementation_without_a_mask_function_runs_under_its_own_name(own_implementation):
    model = llama("my_attention")
    before = names()
    with torch.no_grad():
        expected = model(IDS).logits
        with replaced_attention(model, lambda original: original):
            assert torch.equal(model(IDS).logits, expected)
    assert set(own_implementation) == {"my_attention"}
    assert names() == before


def test_a_derived_attention_class_uses_the_eager_attention_of_its_parent():
    class Derived(LlamaAttention):
        pass

    model = llama("eager")
    expected = logits(model)
    for layer in model.model.layers:
        layer.self_attn.__class__ = Derived
    with replaced_attention(model, lambda original: original):
        assert torch.equal(logits(model), expected)


def test_nothing_is_left_behind_when_the_replacement_cannot_be_made():
    def fail(original):
        raise RuntimeError("no replacement")

    model, before = llama(), names()
    with pytest.raises(RuntimeError, match="no replacement"), replaced_attention(model, fail):
        pass
    assert names() == before
    assert model.config._attn_implementation == "sdpa"
    with replaced_attention(model, lambda original: original):
        pass
    assert names() == before


def beside(function):
    """What the function returns in another thread, while this one waits."""
    found = []
    thread = Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]  # nothing where the thread died


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "my_attention"])
@pytest.mark.usefixtures("own_implementation")
def test_other_threads_run_the_same_model_undisturbed(implementation):
    """One runs it while its attention is replaced, one replaces it for itself."""
    model, mine, theirs = llama(implementation), [], []
    before = names()
    with torch.no_grad():
        expected = model(IDS).logits

    def into(calls):
        def make(original):
            def attention(module, *args, **kwargs):
                calls.append(module.layer_idx)
                return original(module, *args, **kwargs)

            return attention

        return make

    @torch.no_grad()
    def run():
        return model(IDS).logits

    def replace_and_run():
        with replaced_attention(model, into(theirs)):
            return run()

    others = []

    def run_others(*_):
        if not others:
            others[:] = ["running"]
            others[:] = [beside(run), beside(replace_and_run)]

    hook = model.model.layers[1].register_forward_pre_hook(run_others)
    with replaced_attention(model, into(mine)):
        found = run()
    hook.remove()
    assert (mine, theirs) == ([0, 1], [0, 1])
    for logits_found in (found, *others, run()):
        assert torch.equal(logits_found, expected)
    assert names() == before
    assert model.config._attn_implementation == implementation


def test_a_thread_that_outlives_the_replacement_ends_well():
    """It has asked for its attention while it was replaced, and calls it afterwards."""
    model = llama()
    with replaced_attention(model, lambda original: original):
        attention = AttentionInterface()["sdpa"]
    assert attention is not AttentionInterface()["sdpa"]
    x = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    given = (model.model.layers[0].self_attn, x.repeat(1, 2, 1, 1), x, x, None)
    expected, _ = AttentionInterface()["sdpa"](*given, scaling=1.0)
    assert torch.equal(attention(*given, scaling=1.0)[0], expected)


def test_what_is_registered_meanwhile_stays():
    """Somebody else's function is not taken for what was put in the place of the first."""
    first = AttentionInterface()["sdpa"]

    def mine(*args, **kwargs):
        return first(*args, **kwargs)

    with replaced_attention(llama(), lambda original: original):
        AttentionInterface.register("sdpa", mine)
    try:
        assert AttentionInterface()["sdpa"] is mine
    finally:
        AttentionInterface.register("sdpa", first)


def test_masks_are_drawn_for_the_replaced_model_alone():
    model, other, drawn = llama(), llama(), []
    expected = logits(model)

    def draw(asked):
        drawn.append(asked["config"])
        return torch.ones(2, 1, 20, 20, dtype=torch.bool).tril()

    with replaced_attention(model, lambda original: original, draw):
        assert torch.equal(logits(other), expected)
        assert drawn == []
        assert not torch.equal(logits(model), expected)  # whose mask tells of padding
    assert drawn == [model.config]
    assert torch.equal(logits(model), expected)


def test_other_models_with_the_same_implementation_are_not_replaced():
    model, other, calls = llama(), llama(), []

    def make(original):
        def attention(module, *args, **kwargs):
            calls.append(module)
            return original(module, *args, **kwargs)

        return attention

    with replaced_attention(model, make):
        logits(other)
        assert calls == []
        logits(model)
    assert calls == [layer.self_attn for layer in model.model.layers]
