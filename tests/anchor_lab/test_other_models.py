"""The commands on models that attend in some layers, in none, or in another way."""

import json

import pytest
import torch
import transformers

from anchor_lab import cli
from anchor_models import bundled_model_path
from tests.tiny_llama import LLAMA, SPECIAL_TOKENS

SIZES = {**LLAMA, **SPECIAL_TOKENS, "vocab_size": 4096, "initializer_range": 0.2}
FAMILIES = {
    "Mamba": {"state_size": 4},
    "Jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 8,
        "expert_layer_offset": 7,
        "use_mamba_kernels": False,
    },
    "MiniCPM3": {
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
}


@pytest.fixture
def folder(tmp_path):
    def save(family):
        torch.manual_seed(0)
        sizes = SIZES | FAMILIES[family]
        if family == "Mamba":  # whose configuration knows of no heads
            sizes = {name: sizes[name] for name in ("vocab_size", "hidden_size", "state_size")}
            sizes["num_hidden_layers"] = 2
        config = getattr(transformers, f"{family}Config")(**sizes)
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path / family)
        tokenizer = transformers.AutoTokenizer.from_pretrained(bundled_model_path())
        tokenizer.save_pretrained(tmp_path / family)
        return str(tmp_path / family)

    return save


def compared(folder, out, *more):
    """Status of `compare`, and the layers in its table."""
    method = ("--methods", "StreamingLLM", "--length", "300", "--out", str(out))
    status = cli.main(["compare", "--model", folder, *method, "--group", "128", *more])
    if status:
        return status, []
    rows = (out / "compare.csv").read_text().splitlines()
    column = rows[0].split(",").index("layer")
    return status, sorted({int(row.split(",")[column]) for row in rows[1:]})


@pytest.mark.parametrize("command", ["compare", "inspect"])
def test_a_model_without_attention_is_refused_in_one_sentence(command, folder, tmp_path, capsys):
    length = ["--length", "2304"] if command == "inspect" else ["--length", "300"]
    status = cli.main([command, "--model", folder("Mamba"), *length, "--out", str(tmp_path / "x")])
    assert status == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == (
        "anchor-ref: error: model must have layers that compute attention, none of "
        "MambaForCausalLM did"
    )


def test_of_a_hybrid_all_layers_that_attend_are_compared(folder, tmp_path, capsys):
    where = folder("Jamba")
    assert compared(where, tmp_path / "all") == (0, [1, 3])
    assert compared(where, tmp_path / "one", "--layers", "3") == (0, [3])
    assert compared(where, tmp_path / "none", "--layers", "0")[0] == 2
    assert "layers must be of 1, 3, got 0" in capsys.readouterr().err.splitlines()[-1]


def test_of_a_hybrid_all_layers_that_attend_are_inspected(folder, tmp_path):
    from anchor_lab.report.inspect import inspect_layers
    from anchor_models import load_pretrained
    from anchor_models.texts import read_text

    model, tokenizer = load_pretrained(folder("Jamba"))
    text = read_text("document", tokenizer, 2304)
    inspect_layers(model, tokenizer, "jamba", text, tmp_path / "r", heads=[0], thetas=[6.0])
    rows = json.loads((tmp_path / "r" / "layers.json").read_text())["rows"]
    assert [row["layer"] for row in rows] == [1, 3]
    assert all("skipped" not in row for row in rows)


def test_latent_attention_is_compared(folder, tmp_path):
    """Its values are narrower than its keys."""
    assert compared(folder("MiniCPM3"), tmp_path / "out") == (0, [0, 1])
