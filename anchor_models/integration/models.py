"""Which models can be told to use an attention function: those that ask transformers' interface.

transformers takes any registered name for any model. One that does not ask for it fails with a
KeyError while it is built, as Falcon, or runs its own attention without a word, as OpenAI-GPT.
"""

import sys
from functools import wraps


def refuse_models_that_do_not_ask(name: str) -> None:
    """From now on, building a model that does not ask the interface with that name is refused.

    transformers has no place for this: the method through which a model takes the name of its
    attention, while it is built and later, is wrapped. It does as before for all other names.
    """
    from transformers import PreTrainedModel

    takes_name = PreTrainedModel._check_and_adjust_attn_implementation
    sets_name = PreTrainedModel.set_attn_implementation
    if getattr(takes_name, "refuses", None) == name:  # imported again
        return

    @wraps(takes_name)
    def take(self, attn_implementation, *args, **kwargs):
        if attn_implementation == name:
            _refuse_unless_it_asks(type(self), self.config, name)
        return takes_name(self, attn_implementation, *args, **kwargs)

    @wraps(sets_name)
    def set_name(self, attn_implementation, *args, **kwargs):
        parts = attn_implementation if isinstance(attn_implementation, dict) else {}
        if name in (attn_implementation, parts.get("")):  # "" is the model itself
            _refuse_unless_it_asks(type(self), self.config, name)
        return sets_name(self, attn_implementation, *args, **kwargs)

    take.refuses = name
    PreTrainedModel._check_and_adjust_attn_implementation = take
    PreTrainedModel.set_attn_implementation = set_name


def _refuse_unless_it_asks(model: type, config, name: str) -> None:
    if not asks_interface(model, config):
        raise ValueError(
            f"attn_implementation={name!r} needs a model that computes attention through "
            f"transformers' AttentionInterface, got {model.__name__}, which does not: it has an "
            "attention of its own, or none"
        )


def asks_interface(model: type, config) -> bool:
    """Does a class of models ask transformers' interface for its attention?

    Models of several parts need not: each part is asked by itself. Nor need parts for images or
    sound, which keep the attention they have.
    """
    from transformers import PreTrainedModel

    kinds = set(model.__mro__) - set(PreTrainedModel.__mro__)
    files = [sys.modules.get(kind.__module__) for kind in kinds]
    if any(hasattr(file, "ALL_ATTENTION_FUNCTIONS") for file in files):
        return True
    if model.main_input_name != "input_ids":
        return True
    # One made of others, by transformers or by somebody, leaves the asking to them.
    own = not model.__module__.startswith("transformers.")
    return bool(own or config.sub_configs) and model._can_set_attn_implementation()
