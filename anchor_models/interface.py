"""Put a function in the place of a transformers model's attention, for a while.

Everything goes through transformers' public attention interface. Models ask it by the name in
their configuration, which all threads share: so the name stays as it is, and what is found under
it asks who calls. Calls of the context that replaced the attention go to the replacement, all
others to what was there before, and run on undisturbed. Masks stay the model's own unless asked.
"""

import inspect
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType

import torch

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

# transformers 4 asks no registry for eager attention: its configurations get this name meanwhile.
EAGER_4 = "anchor_ref_eager"


@dataclass(frozen=True, eq=False)
class _Replacement:
    """What one `with` put in the place of some modules' attention, by implementation."""

    modules: frozenset[torch.nn.Module]
    functions: dict[str, Callable]
    configs: list
    draw: Callable[[Mapping], torch.Tensor | None] | None


@dataclass
class _Entry:
    """An implementation whose places in the registries are taken by what asks who calls."""

    before: Callable
    asks: Callable
    mask_before: Callable | None
    mask_asks: Callable
    uses: int = 0


_replacements: ContextVar[tuple[_Replacement, ...]] = ContextVar("replaced_attention", default=())
_entries: dict[str, _Entry] = {}
_uses: Counter[int] = Counter()  # of configurations that are renamed, by id
_lock = threading.Lock()


@contextmanager
def replaced_attention(
    model,
    make: Callable[[Callable], Callable],
    draw: Callable[[Mapping], torch.Tensor | None] | None = None,
) -> Iterator[None]:
    """Inside the `with`, every attention layer of `model` calls `make(original)`.

    Args:
        model: a transformers model whose attention goes through `AttentionInterface`.
        make: gets a function with the interface's signature that does what the model did before,
            and returns the function to call instead, with the same signature. It is called once
            for each implementation in use: the parts of a model may differ.
        draw: makes the masks instead of the implementation's mask function, from what it is asked
            for; None leaves them as they are.

    Raises:
        ValueError: the model does not use the attention interface.

    The model is left as it was found, also after an exception. Only what this context calls is
    replaced: other threads may run the model meanwhile, and replace its attention for themselves.
    Uses may be nested; `original` is then what the outer one put there.
    """
    if model.config._attn_implementation is None or not model._can_set_attn_implementation():
        raise ValueError(
            "model must compute attention through transformers' AttentionInterface, got "
            f"{type(model).__name__} with attention implementation "
            f"{model.config._attn_implementation!r}"
        )
    around = _replacements.get()
    configs = _configs(model)
    with _registered(configs) as before:
        functions = {name: make(partial(_attend, around, name, before[name])) for name in before}
        mine = _Replacement(frozenset(model.modules()), functions, configs, draw)
        token = _replacements.set((*around, mine))
        try:
            yield
        finally:
            _replacements.reset(token)


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
    found = []
    if [name for name in kwargs if name in table]:  # a call has few, the table many
        found = [what for name, what in table.items() if kwargs.get(name) is not None]
    open_ended = kwargs.get("is_causal") is False and not masked
    if open_ended or not getattr(module, "is_causal", True):
        found.append("attention in both directions")
    return found


def others(layer: type) -> str:
    """What a layer can compute its attention with instead, in words: not all models know sdpa."""
    from transformers import PreTrainedModel

    file = vars(sys.modules[layer.__module__]).values()
    models = [x for x in file if isinstance(x, type) and issubclass(x, PreTrainedModel)]
    sdpa = all(model._supports_sdpa for model in models if model is not PreTrainedModel)
    return "'sdpa' or 'eager'" if sdpa else "'eager'"


def _attend(around: tuple[_Replacement, ...], name: str, before: Callable, module, *args, **more):
    """Attention of a module: by the innermost replacement that is for it, else as before."""
    for place in reversed(around):
        # A function of the registry may itself ask for another one: that is not the model's call.
        if module in place.modules and implementation_of(module.config) == name:
            return place.functions[name](module, *args, **more)
    return before(module, *args, **more)


@contextmanager
def _registered(configs: list) -> Iterator[dict[str, Callable]]:
    """Inside the `with`, the implementations in use ask who calls; what they were, by name."""
    from transformers import AttentionInterface

    known = AttentionInterface()
    names = {name: None for config in configs if (name := implementation_of(config)) is not None}
    names = [name for name in names if name == "eager" or name in known]
    with _lock:
        for name in names:
            entry = _entries.get(name) or _enter(name, known)
            entry.uses += 1
        before = {name: _entries[name].before for name in names}
        renamed = _rename(configs)
    try:
        yield before
    finally:
        with _lock:
            for name in names:
                _entries[name].uses -= 1
                if not _entries[name].uses:
                    _leave(name, _entries.pop(name))
            _rename_back(renamed)


def _enter(name: str, known: Mapping[str, Callable]) -> _Entry:
    from transformers import AttentionInterface, AttentionMaskInterface

    before = _eager_attention if name == "eager" else known[name]
    mask_before = AttentionMaskInterface._global_mapping.get(name)

    # Who calls is nothing that torch.compile could know while it traces.
    @torch.compiler.disable
    def asks(module, *args, **kwargs):
        return _attend(_replacements.get(), name, before, module, *args, **kwargs)

    @torch.compiler.disable
    def mask_asks(**asked):
        for place in reversed(_replacements.get()):
            if place.draw is not None and any(asked["config"] is x for x in place.configs):
                return place.draw(asked)
        return mask_before(**asked)

    _entries[name] = _Entry(before, asks, mask_before, mask_asks)
    AttentionInterface.register(_key(name), asks)
    # An implementation without one gets the mask as the caller gave it.
    if mask_before is not None:
        AttentionMaskInterface.register(_key(name), mask_asks)
    return _entries[name]


def _leave(name: str, entry: _Entry) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    key, functions = _key(name), AttentionInterface._global_mapping
    masks = AttentionMaskInterface._global_mapping
    # Somebody may have registered others meanwhile: those stay.
    if masks.get(key) is entry.mask_asks:
        masks[key] = entry.mask_before
    if functions.get(key) is not entry.asks:
        return
    if name != "eager":
        functions[key] = entry.before
    elif not _renames():  # else another thread may be about to look it up
        del functions[key]


def implementation_of(config) -> str | None:
    """The attention that a configuration names, "eager" under whatever name it has meanwhile."""
    name = config._attn_implementation
    return "eager" if name == EAGER_4 else name


def _key(name: str) -> str:
    return EAGER_4 if name == "eager" and _renames() else name


def _renames() -> bool:
    """Is this transformers 4, which asks the registry for all but eager attention?"""
    from transformers import AttentionInterface

    return not hasattr(AttentionInterface, "get_interface")


def _rename(configs: list) -> list:
    """Let transformers 4 ask for the eager attention of these configurations; which they are."""
    if not _renames():
        return []
    renamed = [config for config in configs if implementation_of(config) == "eager"]
    for config in renamed:
        _uses[id(config)] += 1
        config._attn_implementation_internal = EAGER_4
    return renamed


def _rename_back(renamed: list) -> None:
    for config in renamed:
        _uses[id(config)] -= 1
        if not _uses[id(config)]:
            config._attn_implementation_internal = "eager"


def _eager_attention(module, *args, **kwargs):
    return _eager(type(module))(module, *args, **kwargs)


@lru_cache
def _eager(kind: type) -> Callable:
    """Eager attention is no entry of the interface: the file of each model has its own."""
    for parent in kind.__mro__:  # a class derived elsewhere uses its parent's
        forward = inspect.unwrap(vars(parent).get("forward", _eager_attention))
        for name in forward.__code__.co_names:  # some files have several, for their parts
            if name.endswith("eager_attention_forward"):
                return forward.__globals__[name]
        if function := getattr(sys.modules[parent.__module__], "eager_attention_forward", None):
            return function
    raise ValueError(f"{kind.__name__} must have an eager attention, found none")


def _configs(model) -> list:
    """The configurations that name an attention implementation, each once."""
    found = {id(config): config for x in model.modules() if (config := getattr(x, "config", None))}
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]
