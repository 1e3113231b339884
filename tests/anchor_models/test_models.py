"""Any model by one argument, and one clear refusal for what is none."""

import json
import shutil

import pytest
import torch
import transformers

from anchor_models import bundled_model_path, capture_qkv, load_bundled
from anchor_models.models import load_pretrained
from tests.tiny_llama import LLAMA

SIZES = {**LLAMA, "vocab_size": 4096}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def save(model, folder):
    """The model with the bundled tokenizer, as `save_pretrained` leaves it."""
    model.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(bundled_model_path() / name, folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    return save(model, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def offline(monkeypatch):
    """As on a machine without a network, without the minute of retries."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", [None, "bundled"])
def test_the_bundled_model_is_the_default(name):
    model, tokenizer = load_pretrained(name, torch.float64)
    expected, _ = load_bundled(torch.float64)
    assert torch.equal(model.lm_head.weight, expected.lm_head.weight)
    assert model.dtype == torch.float64
    assert len(tokenizer) == 4096


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_a_folder_is_loaded_and_can_be_captured(folder, as_type):
    model, tokenizer = load_pretrained(as_type(folder), torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not model.training
    ids = tokenizer("The harbour was quiet.", return_tensors="pt").input_ids
    assert capture_qkv(model, ids)[1].q.shape == (1, 4, ids.shape[1], 8)


def test_a_folder_in_the_home_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    model, _ = load_pretrained(f"~/{folder.name}")
    assert model.config.num_hidden_layers == 2


def test_it_goes_to_the_device_asked_for(folder):
    model, _ = load_pretrained(folder, device="meta")
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["./nowhere", "/nothing/here/at/all", "two words", "", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(name):
    with pytest.raises(FileNotFoundError, match="model must be 'bundled', a folder, or a name"):
        load_pretrained(name)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"weights\.bin"):
        load_pretrained(tmp_path / "weights.bin")


def test_a_name_that_cannot_be_reached_is_named(offline):
    with pytest.raises(
        OSError, match=r"model 'nobody/no-such-model' must be .* could not be read"
    ):
        load_pretrained("nobody/no-such-model")


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"folder with a config\.json, found none in"):
        load_pretrained(tmp_path)


def test_an_encoder_decoder_is_refused(tmp_path):
    transformers.T5Config(d_model=16, num_layers=1, vocab_size=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"causal language model, got .* encoder-decoder \(t5\)"):
        load_pretrained(tmp_path)


def test_a_model_of_no_language_is_refused(tmp_path):
    transformers.ViTConfig(hidden_size=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"causal language model, got .* of type 'vit'"):
        load_pretrained(tmp_path)


def test_a_missing_tokenizer_is_named(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(OSError, match="must come with a tokenizer"):
        load_pretrained(tmp_path)


def test_missing_weights_are_not_made_up(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"must have all its weights, lacks 9: .*layers\.2\."):
        load_pretrained(tmp_path)


def test_attention_outside_the_interface_is_refused(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 4096}
    config = transformers.BloomConfig(**sizes, n_head=2)
    save(transformers.BloomForCausalLM(config), tmp_path)
    with pytest.raises(ValueError, match=r"must compute attention through .*AttentionInterface"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(folder, device):
    with pytest.raises(
        ValueError, match=f"device must be one that PyTorch has here, got '{device}'"
    ):
        load_pretrained(folder, device=device)


@pytest.mark.parametrize("dtype", [torch.int8, "float32"])
def test_a_dtype_of_no_weights_is_refused(dtype, unchecked_annotations):
    with pytest.raises(ValueError, match="dtype must be a floating-point"):
        load_pretrained(None, dtype)
