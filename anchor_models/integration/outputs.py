"""Whether the caller of a model waits for weights that AnchorAttention does not have."""

import torch


def weights_are_collected() -> bool:
    """Was the model called with output_attentions=True?

    transformers 5 takes it from the caller, and collects what layers put out; only some models
    hand it on to their attention. Without weights it would give an empty tuple and no word.
    """
    if torch.compiler.is_compiling():  # which cannot trace the look
        return False
    try:
        from transformers.utils.output_capturing import _active_collector
    except ImportError:  # transformers 4, which warns
        return False
    return "attentions" in (_active_collector.get() or ())
