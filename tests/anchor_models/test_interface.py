"""A replaced attention does what was there before, for every kind of implementation."""

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
