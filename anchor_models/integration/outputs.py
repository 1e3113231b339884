"""Whether the caller of a model waits for weights that AnchorAttention does not have."""

import torch

try:
    from transformers.utils.output_capturing import _active_collector as _collector
except ImportError:  # transformers 4 collects nothing so, and warns
    _collector = None

NO_WEIGHTS = (
    "output_attentions must be False with attn_implementation='anchor_attention', got True: it "
    "makes no matrix of weights; for that use model.set_attn_implementation('eager')"
)


def weights_are_collected() -> bool:
    """Was the model called with output_attentions=True?

    transformers 5 takes it from the caller, and collects what layers put out; only some models
    hand it on to their attention. Without weights it would give an empty tuple and no word.
    """
    if _collector is None:
        return False
    # torch.compile cannot trace a context variable: transformers has an attribute for its sake.
    compiling = torch.compiler.is_compiling()
    collected = _collector.global_var if compiling else _collector.get()
    return "attentions" in (collected or ())
