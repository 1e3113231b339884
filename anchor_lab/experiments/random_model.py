"""A Llama with random weights and the layers of a large model, for times and memory alone."""

import torch
from jaxtyping import Int
from torch import Tensor

from anchor_models.integration.cost import method_pairs
from anchor_models.parallel.cost import ModelShape
from anchor_ref.config import AnchorConfig

STEPS = 12  # of the bisection, in powers of two


def random_llama(shape: ModelShape, positions: int, dtype: torch.dtype, device):
    """A model of this shape for prompts of up to `positions` tokens, the same in every run."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.q_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        max_position_embeddings=positions,
    )
    torch.manual_seed(0)
    with torch.device(device):
        # Not `.to(dtype)` afterwards: it would round the rotary frequencies, too.
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


@torch.no_grad()
def scale_queries(model, tokens: Int[Tensor, "1 N"], wanted: float, theta: float) -> None:
    """Scale the queries of all layers until about this share of the candidates is kept.

    Random queries and keys have no heavy ones: as they are, every key lies within θ of the anchor.
    The larger the scores, the fewer do.
    """
    import anchor_models.transformers as anchor

    n = tokens.shape[1]
    always, candidates, _, _ = method_pairs(AnchorConfig(), n, n)
    if candidates == 0:
        return  # one group
    model.set_attn_implementation("anchor_attention")
    projections = [layer.self_attn.q_proj.weight for layer in model.model.layers]
    before = [weight.clone() for weight in projections]
    low, high = -2.0, 12.0  # powers of two
    for _ in range(STEPS):
        middle = (low + high) / 2
        for weight, original in zip(projections, before, strict=True):
            weight.copy_(original * 2**middle)
        with anchor.options(theta=theta, tail=0, when="always"), anchor.record() as stats:
            model(tokens, logits_to_keep=1)
        share = (stats.density * n * (n + 1) / 2 - always) / candidates
        low, high = (middle, high) if share > wanted else (low, middle)
