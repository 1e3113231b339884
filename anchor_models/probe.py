"""What a model does with a few tokens: which layers attend, and how often."""

from collections import Counter

import torch
from jaxtyping import Int
from torch import Tensor

from anchor_models.interface import replaced_attention

FEW = 2  # tokens: one would be decoding


@torch.no_grad()
def attention_calls(model, input_ids: Int[Tensor, "B N"]) -> dict[int, int]:
    """How often each layer attends in one forward pass, by its index, ascending.

    The model runs on the first two tokens. Its layers take the place of attention by each token's
    own value, so masks and caches play no part; layers that attend without transformers'
    interface, or not at all, are not among the found.

    Raises:
        ValueError: the model does not use the attention interface, see `replaced_attention`; or no
            layer attends.
    """
    calls: Counter[int] = Counter()

    def make(_original):
        def attention(module, query, key, value, *args, **kwargs):
            calls[getattr(module, "layer_idx", None)] += 1
            return own_values(query, value), None

        return attention

    with replaced_attention(model, make):
        model.base_model(input_ids=input_ids[:1, :FEW], use_cache=False)
    if not calls:
        raise ValueError(
            f"model must have layers that compute attention, none of {type(model).__name__} did"
        )
    n_layers = model.config.get_text_config().num_hidden_layers
    if strange := sorted({str(layer) for layer in calls if layer not in range(n_layers)}):
        raise ValueError(
            f"model must number its attention layers 0..{n_layers - 1}, got {strange[0]} in "
            f"{type(model).__name__}"
        )
    return {layer: calls[layer] for layer in sorted(calls)}


def own_values(query: Tensor, value: Tensor) -> Tensor:
    """Attention in which each token sees itself alone, `[B, N, Hq, Dv]`."""
    shared = query.shape[1] // value.shape[1]
    return value.repeat_interleave(shared, 1).transpose(1, 2).contiguous()
