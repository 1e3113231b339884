"""AnchorAttention inside any transformers model, by one name.

    import anchor_models.transformers
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="anchor_attention")

Prefill runs AnchorAttention, text by text: padding is left out and packed texts do not see each
other. Dense attention (transformers' sdpa) runs where there is nothing to skip or too little to
choose from: for a single query, for fewer queries than a block, for a text no longer than a group,
in layers whose window or chunks are shorter than the prompt, and in those that `options` names;
and, unless `options` says `when="always"`, where times measured on such a GPU expect no gain
(`integration.cost`).

A chunk of a prompt chooses its stripes by the queries at hand (see `anchor_ref.anchor_attention`):
chunks that begin on group boundaries give what one call gives, others keep, where they begin on
blocks, a subset of it.

`torch.compile` takes the model as one graph: a layer's prefill is an operation of its own, which
reads options, record and mask when it runs (`integration.compiled`). Under a gradient, which flows
through dense layers alone, each layer is a break between graphs.

What AnchorAttention cannot compute is refused: learned sinks, capped scores, position biases,
masks other than causal with padding, dropout, gradients.
"""

import torch
from torch import Tensor

from anchor_models.integration.compiled import compiled_prefill, uncompiled_prefill
from anchor_models.integration.masks import causal_segments
from anchor_models.integration.models import refuse_models_that_do_not_ask
from anchor_models.integration.options import Options, options
from anchor_models.integration.outputs import NO_WEIGHTS, weights_are_collected
from anchor_models.integration.passes import decided
from anchor_models.integration.prefill import dense, prefill
from anchor_models.integration.record import LayerCall, LayerSummary, Record, record
from anchor_models.interface import beyond_causal, others

__all__ = [
    "NAME",
    "LayerCall",
    "LayerSummary",
    "Options",
    "Record",
    "options",
    "record",
    "register",
]

NAME = "anchor_attention"


def register() -> None:
    """Make `attn_implementation="anchor_attention"` known; importing this module does it too.

    From then on models that would not ask for it are refused with that name.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError(
            "anchor_models.transformers needs transformers: pip install '.[models]'"
        ) from error
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, causal_segments)
    refuse_models_that_do_not_ask(NAME)


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """What transformers calls in each attention layer, see its `AttentionInterface`."""
    if not torch.compiler.is_compiling():
        decision = decided(module, query, key, attention_mask, kwargs)
        if decision is not None:
            out = decision.attend(module, query, key, value, dropout, scaling)
            if out is not None:
                return out, None
    given = {"dropout": dropout, "scaling": scaling}
    if query.shape[2] == 1:  # decoding: torch.compile traces it
        _refuse_other_attention(module, query, attention_mask, kwargs)
        return dense(module, query, key, value, attention_mask, given), None
    asked = (module, query, key, value, attention_mask, given, kwargs)
    run = prefill
    if torch.compiler.is_compiling():
        if not (torch.is_grad_enabled() and query.requires_grad):
            refused = _why_refused(module, query, attention_mask, kwargs)
            return compiled_prefill(*asked, refused or ""), None
        run = uncompiled_prefill
    _refuse_other_attention(module, query, attention_mask, kwargs)
    return run(*asked), None


def _refuse_other_attention(module, query: Tensor, mask: Tensor | None, kwargs: dict) -> None:
    if refused := _why_refused(module, query, mask, kwargs):
        raise ValueError(refused)


def _why_refused(module, query: Tensor, mask: Tensor | None, kwargs: dict) -> str | None:
    if kwargs.get("output_attentions") or weights_are_collected():
        return NO_WEIGHTS
    masked = mask is not None or query.shape[2] == 1
    found = beyond_causal(module, kwargs, masked=masked)
    if not found:
        return None
    return (
        f"attn_implementation='{NAME}' must have plain causal attention over q, k and v, got "
        f"{type(module).__name__} with {found[0]}: give this part of the model another one, "
        f"such as {_others(type(module))}"
    )


@torch.compiler.assume_constant_result  # it looks into the layer's file: nothing to trace
def _others(layer: type) -> str:
    return others(layer)


register()
