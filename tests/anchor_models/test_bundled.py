"""The bundled model: complete, small, loadable without a network, the same in every precision."""

import json
import socket
import sys

import pytest
import torch

from anchor_models import bundled, bundled_model_path, capture_qkv, load_bundled, make_document


@pytest.fixture(scope="module")
def loaded():
    return load_bundled()


@pytest.fixture(scope="module")
def tokens(loaded):
    return loaded[1](make_document(4000).text, return_tensors="pt").input_ids[:, :512]


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits.float()


def test_it_loads_without_a_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model, tokenizer = load_bundled(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert tokenizer.is_fast


def test_it_goes_to_the_device_and_dtype_asked_for():
    model, _ = load_bundled(torch.float16, torch.device("meta"))
    places = {(weight.device.type, weight.dtype) for weight in model.parameters()}
    assert places == {("meta", torch.float16)}
    assert load_bundled()[0].dtype == torch.float32


def test_it_is_a_small_llama_with_grouped_heads(loaded):
    model, tokenizer = loaded
    config = model.config
    assert type(model).__name__ == "LlamaForCausalLM"
    assert config.num_attention_heads == 4 * config.num_key_value_heads
    assert config.head_dim == 64
    assert len(tokenizer) == config.vocab_size == 4096
    assert (bundled_model_path() / "model.safetensors").stat().st_size <= 16 * 2**20


def test_both_generations_of_transformers_read_the_same_rotary_base():
    config = json.loads((bundled_model_path() / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]


def test_the_tokenizer_gives_back_the_text(loaded):
    _, tokenizer = loaded
    text = "The brass key is 4711.\n  Ünïcode, “quotes” — and\ttabs."
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_attention_implementations_agree(loaded, tokens):
    model, _ = loaded
    sdpa = logits(model, tokens)
    assert sdpa.isfinite().all()
    model.set_attn_implementation("eager")
    try:
        eager = logits(model, tokens)
    finally:
        model.set_attn_implementation("sdpa")
    # Two orders of the same float32 sums.
    assert (sdpa - eager).abs().max() <= 1e-3


def test_bfloat16_changes_the_distribution_little(loaded, tokens):
    exact = logits(loaded[0], tokens).log_softmax(-1)
    rounded = logits(load_bundled(torch.bfloat16)[0], tokens).log_softmax(-1)
    divergence = (exact.exp() * (exact - rounded)).sum(-1).mean()
    assert divergence <= 0.01


def test_its_heads_can_be_captured(loaded, tokens):
    model, _ = loaded
    last = model.config.num_hidden_layers - 1
    captured = capture_qkv(model, tokens, layers=[0, last])
    q_heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    for layer in (0, last):
        assert captured[layer].q.shape == (1, q_heads, 512, 64)
        assert captured[layer].k.shape == captured[layer].v.shape == (1, kv_heads, 512, 64)
        assert captured[layer].scaling == 64**-0.5
        assert captured[layer].sliding_window is None
        assert captured[layer].q.isfinite().all()


def test_a_missing_transformers_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[models\]'"):
        load_bundled()


def test_missing_files_are_named(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(bundled, "bundled_model_path", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors, tokenizer\.json"):
        load_bundled()
