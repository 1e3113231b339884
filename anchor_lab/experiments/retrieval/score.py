"""Does it still answer? The model's own digits on a prompt, with any method's attention.

An answer is scored in place: the prompt goes on with the right one, and it counts when each of its
digits is the most likely token after those before it, which is what greedy decoding would say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from anchor_lab.analysis.intervals import wilson
from anchor_lab.experiments.retrieval.prompts import Prompt
from anchor_lab.methods.in_a_model import method_attention
from anchor_lab.methods.method import Method


@dataclass(frozen=True)
class Accuracy:
    """Share of the answers that were right.

    Attributes:
        right, asked: answers.
        prompts: that they belong to.
        low, high: `wilson` interval of the share for that many *prompts*: answers of one prompt
            are not independent.
        density: mean over layers and prompts of what was kept; None without a method.
    """

    right: int
    asked: int
    prompts: int
    low: float
    high: float
    density: float | None


def score(prompt: Prompt, predicted: Int[Tensor, "N"]) -> tuple[bool, ...]:
    """Of each answer, whether all its digits are predicted.

    Args:
        prompt: N tokens.
        predicted: at i the most likely token after tokens 0..i.
    """
    return tuple(
        torch.equal(
            predicted[answer.start - 1 : answer.stop - 1],
            prompt.tokens[answer.start : answer.stop],
        )
        for answer in prompt.answers
    )


@torch.no_grad()
def run_prompts(
    model, prompts: Sequence[Prompt], method: Method | None = None
) -> tuple[list[tuple[bool, ...]], float | None]:
    """(of each prompt the `score`, mean density over layers and prompts), in one prefill.

    Args:
        model: the bundled model.
        prompts: of `make_retrieval`, at least one, all of one length.
        method: in every layer; None leaves the model's own attention, and the density is None.

    Raises:
        ValueError: the prompts differ in length.
    """
    if len(lengths := {len(prompt.tokens) for prompt in prompts}) != 1:
        raise ValueError(f"prompts must have one length, got {sorted(lengths)}")
    if method is None:
        predicted, density = _predict(model, prompts), None
    else:
        with method_attention(model, method) as densities:
            predicted = _predict(model, prompts)
        density = sum(densities) / len(densities)
    return [score(prompt, row) for prompt, row in zip(prompts, predicted, strict=True)], density


def retrieval_accuracy(
    model, prompts: Sequence[Prompt], method: Method | None = None, *, batch: int = 1
) -> Accuracy:
    """How many answers the model finds, with its own attention or with a method's.

    Args:
        model, prompts, method: as in `run_prompts`.
        batch: prompts in one prefill, at least 1.

    Raises:
        ValueError: `prompts` is empty or differ in length, or `batch` is below 1.
    """
    if not prompts:
        raise ValueError("prompts must be at least one, got none")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    scores, kept = [], 0.0
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        found, density = run_prompts(model, part, method)
        scores += found
        kept += len(part) * (density or 0.0)
    right, asked = sum(map(sum, scores)), sum(map(len, scores))
    density = None if method is None else kept / len(prompts)
    return Accuracy(right, asked, len(prompts), *wilson(right / asked, len(prompts)), density)


def _predict(model, prompts: Sequence[Prompt]) -> Int[Tensor, "B N"]:
    """The most likely next token after each, -1 before the answers where nobody asks."""
    length = len(prompts[0].tokens)
    keep = length - min(prompt.answers[0].start for prompt in prompts) + 1
    tokens = torch.stack([prompt.tokens for prompt in prompts]).to(model.device)
    logits = model(tokens, use_cache=False, logits_to_keep=keep).logits
    predicted = torch.full((len(prompts), length), -1)
    predicted[:, -keep:] = logits.argmax(-1).cpu()
    return predicted
