"""Write the trained weights as a model that plain transformers loads, offline."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from training.model import Llama

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def export(model: Llama, tokenizer: Path, out: Path) -> None:
    """bf16 weights in one safetensors file, configuration and tokenizer.

    Args:
        model: trained model; its parameter names are transformers' own.
        tokenizer: folder with the tokenizer's files.
        out: folder to write to, made when missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in model.state_dict().items()
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(_llama_config(model), indent=2) + "\n")
    for name in TOKENIZER_FILES:
        if tokenizer.resolve() != out.resolve():
            shutil.copy(tokenizer / name, out / name)


def _llama_config(model: Llama) -> dict:
    config = model.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 0,
        "dtype": "bfloat16",
        "eos_token_id": 1,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.width,
        "initializer_range": 0.02,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.max_positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.q_heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "pad_token_id": 2,
        "rms_norm_eps": config.norm_eps,
        # transformers 4 reads rope_theta and falls back to 10,000 without it; 5 reads the other.
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": config.vocabulary,
    }
