"""Put a function in the place of a transformers model's attention, for a while.

Everything goes through transformers' public attention interface. The mask function of the
implementation that was there is registered under the same name: without it, padded batches would
be computed with no mask at all, and nothing would say so.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from types import MappingProxyType

# What models hand to their attention besides q, k and v, and what it does to the scores.
BEYOND_QKV = MappingProxyType(
    {
        "softcap": "capped scores",
        "s_aux": "learned attention sinks",
        "sinks": "learned attention sinks",
        "position_bias": "a position bias",
        "indices": "a learned choice of keys",
        "block_indices": "a learned choice of keys",
        "head_mask": "a mask of heads",
        "cache": "a paged cache",
    }
)

_numbers = count()


@contextmanager
def replaced_attention(model, make: Callable[[Callable], Callable]) -> Iterator[None]:
    """Inside the `with`, every attention layer of `model` calls `make(original)`.

    Args:
        model: a transformers model whose attention goes through `AttentionInterface`.
        make: gets a function with the interface's signature that does what the model did before,
            and returns the function to call instead, with the same signature. It is called once
            for each implementation in use: the parts of a model may differ.

    Raises:
        ValueError: the model does not use the attention interface.

    The model is left as it was found, also after an exception.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    configs = _configs(model)
    before = [config._attn_implementation for config in configs]
    if model.config._attn_implementation is None or not model._can_set_attn_implementation():
        raise ValueError(
            "model must compute attention through transformers' AttentionInterface, got "
            f"{type(model).__name__} with attention implementation "
            f"{model.config._attn_implementation!r}"
        )
    number = next(_numbers)  # a name of its own for each use, so that uses can be nested
    names = {old: f"anchor_ref_{number}_{n}" for n, old in enumerate(dict.fromkeys(before))}
    masks = AttentionMaskInterface()
    try:
        for implementation, name in names.items():
            AttentionInterface.register(name, make(_original(implementation)))
            # An implementation without one gets the mask as the caller gave it.
            if implementation in masks:
                AttentionMaskInterface.register(name, masks[implementation])
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = names[implementation]
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation
        for name in names.values():
            AttentionInterface._global_mapping.pop(name, None)
            AttentionMaskInterface._global_mapping.pop(name, None)


def beyond_causal(
    module, kwargs: Mapping[str, object], *, masked: bool, table: Mapping[str, str] = BEYOND_QKV
) -> list[str]:
    """What a layer computes beyond causal softmax attention over q, k and v; empty for most.

    Args:
        module: the attention layer.
        kwargs: what the model hands over besides q, k, v, mask, dropout and scaling.
        masked: does something else, a mask or there being one query, settle who sees whom?
            `is_causal=False` then says no more than that.
        table: names of `kwargs` that count where they are not None, and what to call them.

    Returns:
        What was found, in words, in the order of the table.
    """
    found = [what for name, what in table.items() if kwargs.get(name) is not None]
    open_ended = kwargs.get("is_causal") is False and not masked
    if open_ended or not getattr(module, "is_causal", True):
        found.append("attention in both directions")
    return found


def _original(implementation: str) -> Callable:
    """What a module with that implementation calls for its attention."""
    from transformers import AttentionInterface

    def original(module, *args, **kwargs):
        eager = implementation == "eager"
        function = _eager(module) if eager else AttentionInterface()[implementation]
        # Flash attention looks up there which of its kernels to call.
        replaced = module.config._attn_implementation
        module.config._attn_implementation_internal = implementation
        try:
            return function(module, *args, **kwargs)
        finally:
            module.config._attn_implementation_internal = replaced

    return original


def _eager(module) -> Callable:
    """Eager attention is no entry of the interface: the file of each model has its own."""
    for kind in type(module).__mro__:  # a class derived elsewhere uses its parent's
        if function := getattr(sys.modules[kind.__module__], "eager_attention_forward", None):
            return function
    raise ValueError(f"{type(module).__name__} must have an eager attention, found none")


def _configs(model) -> list:
    """The configurations that name an attention implementation, each once."""
    found = {id(config): config for x in model.modules() if (config := getattr(x, "config", None))}
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]
