"""What a model does with a few tokens: which layers attend, how often, what else mixes tokens.

What a model is called, and its layers, does not tell: it is tried.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Int
from torch import Tensor

from anchor_models.interface import replaced_attention

FEW = 2  # tokens: one would be decoding
FEW_IN_ORDER = 4  # tokens: two pairs
SOME = 256  # tokens: as many as what compresses or convolves them may look at together

# Other threads may run the model meanwhile, and pass by the same hooks.
_trying: ContextVar[object] = ContextVar("token_mixer", default=None)


@torch.no_grad()
def attention_calls(model, input_ids: Int[Tensor, "B N"]) -> dict[int, int]:
    """How often each layer attends in one forward pass, by its index, ascending.

    The model runs on the first two tokens. Its layers take the place of attention by each token's
    own value, so masks and caches play no part; layers that attend without transformers'
    interface, or not at all, are not among the found.

    Raises:
        ValueError: the model does not use the attention interface, see `replaced_attention`; or no
            layer attends.
    """
    calls: Counter[int] = Counter()

    def make(_original):
        def attention(module, query, key, value, *args, **kwargs):
            calls[getattr(module, "layer_idx", None)] += 1
            return own_values(query, value), None

        return attention

    with replaced_attention(model, make):
        model.base_model(input_ids=input_ids[:1, :FEW], use_cache=False)
    if not calls:
        raise ValueError(
            f"model must have layers that compute attention, none of {type(model).__name__} did"
        )
    n_layers = model.config.get_text_config().num_hidden_layers
    if strange := sorted({str(layer) for layer in calls if layer not in range(n_layers)}):
        raise ValueError(
            f"model must number its attention layers 0..{n_layers - 1}, got {strange[0]} in "
            f"{type(model).__name__}"
        )
    return {layer: calls[layer] for layer in sorted(calls)}


@torch.no_grad()
def token_mixer(
    model,
    input_ids: Int[Tensor, "B N"],
    attend: Callable[..., None],
) -> str | None:
    """What carries numbers from one token to another beside attention; None where nothing does.

    A recurrence, a convolution, a shift of tokens, an attention of the model's own: whatever it
    is, not-a-number in the embedding of one token comes out at another.

    Args:
        model: a transformers model; it runs on the beginning of the prompt, with each token's own
            value in the place of attention.
        input_ids: the prompt.
        attend: gets of each layer the module, what it hands to its attention by name, and what
            transformers was asked for when its mask was made: None where the layer has no mask,
            empty where it has one of its own making. It may raise.

    Returns:
        The name and the class of the first module that does, "layers.0.mamba, a JambaMambaMixer".
    """
    ids = input_ids[:1, :SOME]
    poisoned = ids.shape[1] // 2

    asked_for: dict[int, tuple[Tensor, Mapping]] = {}  # the mask stays, and its place its own

    def draw(asked: Mapping) -> Tensor:
        mask = torch.ones(1, 1, *[ids.shape[1]] * 2, dtype=torch.bool, device=ids.device).tril()
        asked_for[mask.untyped_storage().data_ptr()] = mask, asked
        return mask

    def make(_original):
        def attention(module, query, key, value, attention_mask=None, *args, **kwargs):
            asked = None
            if attention_mask is not None:
                place = attention_mask.untyped_storage().data_ptr()
                asked = asked_for.get(place, (None, {}))[1]
            attend(module, kwargs, asked)
            return own_values(query, value), None

        return attention

    def run() -> Tensor:
        return model.base_model(input_ids=ids, use_cache=False, return_dict=True)[0]

    def reaches_others(x: object) -> bool:
        x = x[0] if isinstance(x, tuple) and x else x
        if not isinstance(x, Tensor) or x.ndim < 3 or x.shape[:2] != ids.shape:
            return False
        lost = x.isnan().flatten(2).any(-1)
        lost[:, poisoned] = False
        return bool(lost.any())

    with replaced_attention(model, make, draw):
        with _poison(model, poisoned):
            mixes = reaches_others(run())
        # A model may come to not-a-number by itself.
        if not mixes or reaches_others(run()):
            return None
        found: list[str] = []
        with _poison(model, poisoned), _after_each(model, reaches_others, found):
            run()
    return found[0] if found else type(model).__name__


@torch.no_grad()
def needs_others(model, input_ids: Int[Tensor, "B N"], share: int) -> str | None:
    """What a token needs to know of others beside its own position; None where that is nothing.

    Positions may be counted by the model from the first token that it is given, whatever it is
    told, as the decoder of BART does; or be counted from 2, as RoBERTa's. How fast a rotary
    embedding turns may depend on how long the prompt is (longrope, dynamic).

    Args:
        model: a transformers model without other mixers (`token_mixer`); it runs on a few tokens,
            with each token's own value in the place of attention.
        input_ids: the prompt.
        share: how many tokens, from the first, are to be given alone.

    Returns:
        In words, what it is.
    """
    ids = input_ids[:1, :FEW_IN_ORDER]
    n, given = input_ids.shape[1], []

    def make(_original):
        def attention(module, query, key, value, *args, **kwargs):
            given.extend((query.transpose(1, 2), key.transpose(1, 2)))
            return own_values(query, value), None

        return attention

    def run(ids: Tensor, positions: list[int] | None) -> list[Tensor]:
        given.clear()
        told = {} if positions is None else {"position_ids": ids.new_tensor([positions]).long()}
        out = model.base_model(input_ids=ids, use_cache=False, return_dict=True, **told)[0]
        return [*given, out]

    def differ(found: list[Tensor], expected: list[Tensor]) -> bool:
        # More than a rounding: dtypes are as low as bfloat16, of 8 bits.
        pairs = zip(found, expected, strict=True)
        return any((a - b).abs().max() > 2**-5 * b.abs().max() for a, b in pairs)

    with replaced_attention(model, make):
        last = share - 1, n - 1
        pair = ids[:, :1].expand(1, 2)
        apart = [[x[:, 1:] for x in run(pair, [end, share - 1])] for end in last]
        # Afterwards, since it takes a rotary embedding that grew back to its beginning.
        whole = run(ids, None)
        turned = [x.flip(1) for x in run(ids.flip(1), [*range(ids.shape[1])][::-1])]
    if differ(turned, whole):
        return "positions that it counts itself"
    if differ(*apart):
        return "rotary embeddings that look at the length of the prompt"
    return None


@contextmanager
def _poison(model, token: int) -> Iterator[None]:
    """Inside the `with`, this context's embedding of one token is not a number."""
    mine = object()

    def hook(_module, _args, output: Tensor) -> Tensor | None:
        if _trying.get() is not mine:
            return None
        output = output.clone()
        output[:, token] = torch.nan
        return output

    setting, handle = _trying.set(mine), model.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
        _trying.reset(setting)


@contextmanager
def _after_each(model, holds: Callable[[object], bool], found: list[str]) -> Iterator[None]:
    """Inside the `with`, modules are noted of whose output something holds, of no input.

    Inner ones come first.
    """
    mine = _trying.get()

    def look(name: str) -> Callable:
        def hook(module, args, kwargs, output) -> None:
            given = (*args, *kwargs.values())
            if _trying.get() is mine and holds(output) and not any(map(holds, given)):
                found.append(f"{name or 'the model'}, a {type(module).__name__}")

        return hook

    hooks = [
        module.register_forward_hook(look(name), with_kwargs=True)
        for name, module in model.base_model.named_modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def own_values(query: Tensor, value: Tensor) -> Tensor:
    """Attention in which each token sees itself alone, `[B, N, Hq, Dv]`."""
    shared = query.shape[1] // value.shape[1]
    return value.repeat_interleave(shared, 1).transpose(1, 2).contiguous()
