"""Put a function in the place of a transformers model's attention, for a while.

Everything goes through transformers' public attention interface. The mask function of the
implementation that was there is registered under the same name: without it, padded batches would
be computed with no mask at all, and nothing would say so.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

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
    # A name of its own for each use, so that uses can be nested.
    number = next(_numbers)
    names = {
        old: f"anchor_ref_{number}_{place}" for place, old in enumerate(dict.fromkeys(before))
    }
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


def _original(implementation: str) -> Callable:
    """What a module with that implementation calls for its attention."""
    from transformers import AttentionInterface

    def original(module, *args, **kwargs):
        if implementation == "eager":
            function = _eager(module)
        else:
            function = AttentionInterface()[implementation]
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
    found = {id(module.config): module.config for module in model.modules() if _has_config(module)}
    return list(found.values())


def _has_config(module) -> bool:
    return hasattr(getattr(module, "config", None), "_attn_implementation")
