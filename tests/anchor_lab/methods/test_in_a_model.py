"""A method in a model's attention: dense where all is kept, the reference's where stripes are."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_lab.methods import AnchorAttention, Dense, DifferenceOracle, StreamingLLM
from anchor_lab.methods.in_a_model import attend, method_attention
from anchor_models import capture_qkv
from anchor_ref import AnchorConfig, anchor_attention
from tests.tiny_llama import LLAMA

SIZES = {**LLAMA, "initializer_range": 0.5}
IDS = torch.arange(3, 63).repeat(2, 3)[:, :170]  # two blocks of query rows


def llama(**changes):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SIZES, **changes})
    return transformers.LlamaForCausalLM(config).eval()


@torch.no_grad()
def logits(model, **inputs):
    return model(IDS, use_cache=False, **inputs).logits


@settings(max_examples=10)
@given(
    n=st.sampled_from([1, 40, 129, 200]),
    theta=st.floats(-3, 3),
    kv_heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_attending_to_a_selection_is_what_the_reference_does(n, theta, kv_heads, seed):
    random = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(2, heads, n, 8, generator=random, dtype=torch.float64)
        for heads in (4, kv_heads, kv_heads)
    )
    config = AnchorConfig(8, 2, theta=theta)
    selection = AnchorAttention(config).select(q, k, 0.4)
    out, density = attend(q, k, v, selection, 0.4)
    expected = anchor_attention(q, k, v, config, 0.4)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert density == pytest.approx(selection.to_mask().double().mean().item() * 2 * n / (n + 1))


def test_a_model_that_keeps_all_is_the_model():
    model = llama()
    expected = logits(model)
    with method_attention(model, Dense()) as densities:
        torch.testing.assert_close(logits(model), expected)
    assert densities == [1.0, 1.0]
    assert torch.equal(logits(model), expected)


def test_a_model_that_drops_keys_is_another_until_it_is_left():
    model = llama()
    expected = logits(model)
    with method_attention(model, StreamingLLM(0, 16)) as densities:
        assert not torch.allclose(logits(model), expected, atol=1e-2)
        logits(model)
    kept = sum(min(row + 1, 16) for row in range(170)) / (170 * 171 / 2)
    assert densities == pytest.approx([kept] * 4)
    assert torch.equal(logits(model), expected)


def test_a_scaling_of_the_models_own_is_taken():
    model = llama()
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.9  # 1/sqrt(D) is 0.35
    with method_attention(model, Dense()):
        kept_all = logits(model)
    torch.testing.assert_close(kept_all, logits(model))
    method = DifferenceOracle(1.0)
    with method_attention(model, method) as densities:
        logits(model)
    x = capture_qkv(model, IDS, [0], dtype=None)[0]
    _, expected = attend(x.q, x.k, x.v, method.select(x.q, x.k, 0.9), 0.9)
    assert x.scaling == 0.9
    assert densities[0] == pytest.approx(expected)


def test_padding_is_refused():
    model, mask = llama(), torch.ones(2, 170, dtype=torch.long)
    mask[1, :5] = 0
    expected = logits(model)
    with (
        method_attention(model, Dense()),
        pytest.raises(ValueError, match="attention_mask must be None in layer 0"),
    ):
        logits(model, attention_mask=mask)
    assert torch.equal(logits(model), expected)


def test_a_window_of_the_models_own_is_refused():
    config = transformers.MistralConfig(**SIZES, sliding_window=512)
    model = transformers.MistralForCausalLM(config).eval()
    with (
        method_attention(model, Dense()),
        pytest.raises(ValueError, match="plain causal attention, got a sliding window in layer"),
    ):
        logits(model)


def test_a_tail_is_kept_whole_beside_what_a_method_keeps():
    model, method = llama(), StreamingLLM(0, 16)
    with method_attention(model, method, tail=170) as densities:
        torch.testing.assert_close(logits(model), logits(llama()))
    assert densities == [1.0, 1.0]
    with method_attention(model, method) as few:
        published = logits(model)
    with method_attention(model, method, tail=10) as more:
        tailed = logits(model)
    assert torch.equal(tailed[:, :160], published[:, :160])
    assert not torch.allclose(tailed[:, 160:], published[:, 160:], atol=1e-2)
    pairs = 170 * 171 / 2
    dropped = sum(row + 1 - 16 for row in range(160, 170))
    assert more == pytest.approx([x + dropped / pairs for x in few])
