"""Random models of a few thousand parameters, and what the tests run them on."""

import torch
import transformers

from tests.tiny_llama import LLAMA, SPECIAL_TOKENS

# Groups of 32 tokens, so that a prompt of 100 has three and a ragged last one, and no tail, which
# would be all of it.
SIZES = {"block_size": 16, "step": 2, "tail": 0}
N = 100
THETA = 4.0  # keeps about half of what the regions leave
# The models are float64, but their norms round to float32 and hide what float64 attention rounds
# otherwise. Where a number lies on the edge between two float32 numbers it may fall on either
# side, by 2^-23 of its size at most; 8 such steps are allowed for.
ROUNDING = 8 * 2.0**-23

COMMON = {
    **LLAMA,
    **SPECIAL_TOKENS,
    "initializer_range": 0.15,
    "max_position_embeddings": 512,
}
SLIDING_SECOND = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 24}
FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "llama_one_kv_head": ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 1}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {}),
    "qwen2_sliding": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {"use_sliding_window": True, "max_window_layers": 1, **SLIDING_SECOND},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": None}),
    "mistral_sliding": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 24}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {}),
    "deepseek_v3": (  # keys of 12 numbers, values of 6
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "head_dim": 4,
            "v_head_dim": 6,
            "first_k_dense_replace": 2,
        },
    ),
    # Windows that hide nothing, and layers that are called otherwise than what they do.
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {"sliding_window": 2048, "initializer_range": 0.4}),
    "exaone4": (
        "Exaone4ForCausalLM",
        "Exaone4Config",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 24,
            "sliding_window_pattern": None,
        },
    ),
    "llama4": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {"intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 128}
        | {"use_qk_norm": False},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        SLIDING_SECOND | {"query_pre_attn_scalar": 1},
    ),
}
if not transformers.__version__.startswith("4."):  # where it makes a mask of its own
    FAMILIES |= {
        "falcon_h1": (
            "FalconH1ForCausalLM",
            "FalconH1Config",
            {
                "mamba_d_ssm": 32,
                "mamba_n_heads": 4,
                "mamba_d_head": 8,
                "mamba_d_state": 8,
                "mamba_n_groups": 1,
                "mamba_chunk_size": 16,
            },
        ),
    }


def build(family: str = "llama", **changes) -> transformers.PreTrainedModel:
    """A model in float64 that runs AnchorAttention; the same weights for the same family."""
    model, config, special = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, config)(**(COMMON | special | changes))
    config._attn_implementation = "anchor_attention"
    built = getattr(transformers, model)(config).double().eval()
    # Sharper scores: a random model looks everywhere alike, and no threshold would matter.
    with torch.no_grad():
        for name, weight in built.named_parameters():
            if name.endswith("weight") and any(
                part in name for part in ("q_proj", "k_proj", "q_norm", "q_b_proj", "kv_b_proj")
            ):
                weight.mul_(4 if "norm" in name or "_b_" in name else 2)
    return built


def tokens(batch: int = 1, n: int = N, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 64, (batch, n), generator=generator)


@torch.no_grad()
def logits(model, ids, implementation: str | None = None, **kwargs) -> torch.Tensor:
    if implementation is not None:
        model.set_attn_implementation(implementation)
    return model(ids, **kwargs).logits


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return ((a - b).abs().max() / b.abs().max()).item()
