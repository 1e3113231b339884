"""AnchorAttention inside any transformers model, by one name.

    import anchor_models.transformers
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="anchor_attention")

Prefill runs AnchorAttention, text by text: padding is left out and packed texts do not see each
other. Dense attention (transformers' sdpa) runs where there is nothing to skip or too little to
choose from: for a single query, for fewer queries than a block, for a text no longer than a group,
in layers whose window or chunks are shorter than the prompt, and in those that `options` names. A
chunk of a prompt chooses its stripes by the queries at hand (see `anchor_ref.anchor_attention`):
chunks that begin on group boundaries give what one call gives, others keep, where they begin on
blocks, a subset of it.

What AnchorAttention cannot compute is refused: learned sinks, capped scores, position biases,
masks other than causal with padding, dropout, gradients.
"""

from torch import Tensor

from anchor_models.integration.masks import causal_segments
from anchor_models.integration.models import refuse_models_that_do_not_ask
from anchor_models.integration.options import Options, options
from anchor_models.integration.outputs import weights_are_collected
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
    _refuse_other_attention(module, query, attention_mask, kwargs)
    given = {"dropout": dropout, "scaling": scaling}
    if query.shape[2] == 1:  # decoding: torch.compile traces it without a break
        return dense(module, query, key, value, attention_mask, given), None
    return prefill(module, query, key, value, attention_mask, given, kwargs), None


def _refuse_other_attention(module, query: Tensor, mask: Tensor | None, kwargs: dict) -> None:
    if kwargs.get("output_attentions") or weights_are_collected():
        raise ValueError(
            f"output_attentions must be False with attn_implementation='{NAME}', got True: it "
            "makes no matrix of weights; for that use model.set_attn_implementation('eager')"
        )
    masked = mask is not None or query.shape[2] == 1
    if found := beyond_causal(module, kwargs, masked=masked):
        raise ValueError(
            f"attn_implementation='{NAME}' must have plain causal attention over q, k and v, got "
            f"{type(module).__name__} with {found[0]}: give this part of the model another one, "
            f"such as {others(module)}"
        )


register()
