"""Whether the caller of a model waits for weights that AnchorAttention does not have."""

import sys

import torch

NO_WEIGHTS = (
    "output_attentions must be False with attn_implementation='anchor_attention', got True: it "
    "makes no matrix of weights; for that use model.set_attn_implementation('eager')"
)


def weights_are_collected() -> bool:
    """Was the model called with output_attentions=True?

    transformers 5 takes it from the caller, and collects what layers put out; only some models
    hand it on to their attention. Without weights it would give an empty tuple and no word.
    """
    if not _are_ever():
        return False
    from transformers.utils.output_capturing import _active_collector

    # torch.compile cannot trace a context variable: transformers has an attribute for its sake.
    if torch.compiler.is_compiling():
        collected = _active_collector.global_var
    else:
        collected = _active_collector.get()
    return "attentions" in (collected or ())


@torch.compiler.assume_constant_result
def _are_ever() -> bool:
    """transformers 4 collects nothing so, and warns."""
    return "transformers.utils.output_capturing" in sys.modules
