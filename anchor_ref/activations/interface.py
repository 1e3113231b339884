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
            and returns the function to call instead, with the same signature.

    Raises:
        ValueError: the model does not use the attention interface.

    The model is left as it was found, also after an exception.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    functions, masks = AttentionInterface(), AttentionMaskInterface()
    configs = _configs(model)
    before = [config._attn_implementation for config in configs]
    implementation = model.config._attn_implementation
    if implementation is None or not _uses_interface(model):
        raise ValueError(
            "model must compute attention through transformers' AttentionInterface, "
            f"got {type(model).__name__} with attention implementation {implementation!r}"
        )

    def original(module, *args, **kwargs):
        if implementation == "eager":
            # Eager attention is no entry of the interface: each model's file has its own.
            return sys.modules[type(module).__module__].eager_attention_forward(
                module, *args, **kwargs
            )
        return functions[implementation](module, *args, **kwargs)

    # A name of its own for each use, so that uses can be nested.
    name = f"anchor_ref_{next(_numbers)}"
    AttentionInterface.register(name, make(original))
    AttentionMaskInterface.register(name, masks[implementation])
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        for config, name_before in zip(configs, before, strict=True):
            config._attn_implementation_internal = name_before
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


def _configs(model) -> list:
    """The configurations that name an attention implementation, each once."""
    found = {id(module.config): module.config for module in model.modules() if _has_config(module)}
    return list(found.values())


def _has_config(module) -> bool:
    return hasattr(getattr(module, "config", None), "_attn_implementation")


def _uses_interface(model) -> bool:
    return bool(model._can_set_attn_implementation())
