"""A prompt read in one way or another, and the answer that the model then writes.

Ways differ in how the prompt is read. The answer is written greedily, and writing is dense, as it
is wherever AnchorAttention runs: only the prefill is sparse.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from anchor_lab.experiments.answers.prompts import Prompt
from anchor_lab.methods import TriangleMix
from anchor_lab.methods.corrections import Correction
from anchor_lab.methods.in_a_model import method_attention
from anchor_lab.methods.method import Method

NEW_TOKENS = 12  # the answer has begun: a number or two words, and what ends it


@dataclass(frozen=True)
class Way:
    """How a prompt is read.

    Attributes:
        theta: of AnchorAttention, as `options` takes it; None for another attention.
        tail: last rows that see every key, of AnchorAttention or of a method.
        method: in the place of AnchorAttention; None with `theta` None is dense attention.
        correction: what stands for the keys that a method drops; None for nothing.
        second_call: AnchorAttention reads the document alone, and a second, dense call reads what
            follows over the cache.
    """

    theta: object = None
    tail: int = 0
    method: Method | TriangleMix | None = None
    correction: Correction | None = None
    second_call: bool = False


DENSE = Way()


@contextmanager
def implementation(model, name: str) -> Iterator[None]:
    """Inside the `with`, all layers of the model compute attention by this implementation."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def reading(model, way: Way) -> Iterator[None]:
    """Inside the `with`, prompts are read in this way."""
    if way.theta is not None:
        import anchor_models.transformers as anchor

        # Also where dense attention would be as fast: what the method answers is the question.
        with (
            implementation(model, anchor.NAME),
            anchor.options(theta=way.theta, tail=way.tail, when="always"),
        ):
            yield
        return
    chosen = nullcontext()
    if way.method is not None:
        chosen = method_attention(model, way.method, tail=way.tail, correction=way.correction)
    with implementation(model, "sdpa"), chosen:
        yield


@torch.no_grad()
def write(
    model,
    tokens: Int[Tensor, "B N"],
    way: Way = DENSE,
    new_tokens: int = NEW_TOKENS,
    document: int | None = None,
) -> Int[Tensor, "B M"]:
    """What the model writes after prompts of one length: the most likely token, again and again.

    Args:
        model: a transformers causal model, in eval mode.
        tokens: the prompts, without padding.
        way: how they are read.
        new_tokens: M at most, at least 1; fewer are written where all prompts come to an end. What
            stands behind an end is no answer.
        document: tokens of the first call, in 1..N-1; for a way with a second one.

    Raises:
        ValueError: `new_tokens` or `document` is out of range; or see `options` and
            `method_attention`.
    """
    n = tokens.shape[1]
    if new_tokens < 1:
        raise ValueError(f"new_tokens must be at least 1, got {new_tokens}")
    if way.second_call and (document is None or not 1 <= document < n):
        raise ValueError(f"document must be in 1..{n - 1} for a second call, got {document}")
    first = document if way.second_call else n
    last = _last_only(model)
    tokens = tokens.to(model.device)
    with reading(model, way):
        out = model(tokens[:, :first], use_cache=True, **last)
    ends = torch.tensor(end_tokens(model), device=model.device)
    written, over = [], torch.zeros(len(tokens), 1, dtype=torch.bool, device=model.device)
    with implementation(model, "sdpa"):
        if first < n:
            cache = out.past_key_values
            out = model(tokens[:, first:], past_key_values=cache, use_cache=True, **last)
        while True:
            token = out.logits[:, -1:].argmax(-1)
            written.append(token)
            over |= torch.isin(token, ends)
            if len(written) == new_tokens or bool(over.all()):
                return torch.cat(written, 1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)


def answers(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    way: Way = DENSE,
    *,
    batch: int = 1,
    new_tokens: int = NEW_TOKENS,
) -> list[str]:
    """The words that the model writes after each prompt.

    Args:
        model, way, new_tokens: as in `write`.
        tokenizer: the model's.
        prompts: all of one length.
        batch: prompts read at once, at least 1. With a second call those of a batch are cut at the
            shortest document among them: neighbours by length share one.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    words = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: prompts[index].document)
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        tokens = torch.cat([prompts[index].tokens for index in part])
        document = min(prompts[index].document for index in part)
        found = write(model, tokens, way, new_tokens, document).tolist()
        for index, written in zip(part, found, strict=True):
            ends = [place for place, token in enumerate(written) if token in end_tokens(model)]
            kept = written[: ends[0]] if ends else written
            words[index] = tokenizer.decode(kept, skip_special_tokens=True)
    return words


def end_tokens(model) -> list[int]:
    """The tokens with which the model ends a text."""
    found = model.generation_config.eos_token_id
    if found is None:
        return []
    return [found] if isinstance(found, int) else list(found)


def _last_only(model) -> dict[str, int]:
    """Logits of a long prompt's last token alone, where the model can."""
    known = inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in known else {}
