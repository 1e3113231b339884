"""Prompts on held-out books: facts in a text, then questions with their answers."""

from dataclasses import replace

import torch
from torch import Tensor

from anchor_lab.experiments.retrieval.prompts import Prompt
from anchor_models.rows import ANSWER, Rows


def needle_prompt(
    rows: Rows,
    length: int,
    depth: float,
    facts: int = 1,
    questions: int = 1,
    *,
    needle: bool = True,
) -> Prompt:
    """Text of `length` tokens with facts in it, then questions and their answers.

    Args:
        rows: draws them.
        length: N.
        depth: where the fact asked for first stands, a share of the text; the others anywhere.
        facts: told.
        questions: about the first of them.
        needle: without it the fact asked for first is left out, and has no source.
    """
    keys = rows.keys(facts)
    values = [rows.number()[:5] for _ in keys]
    told = []
    for n, fact in enumerate(zip(keys, values, strict=True)):
        place = rows.rng.random() if n else depth
        told.append((place, rows.fact(*fact)))
    asked = [part for n in range(questions) for part in rows.asked(keys[n], values[n])]
    room = length - sum(len(tokens) for tokens, _ in asked)
    tokens = [rows.scatter(told[not needle :], room).tokens]
    answers, sources = [], []
    at = room
    for part, kind in asked:
        if kind == ANSWER:
            answers.append(range(at, at + len(part)))
            sources.append(_first_place(part, tokens[0]))
        tokens.append(part)
        at += len(part)
    return Prompt(torch.cat(tokens).long(), tuple(answers), tuple(sources))


def _first_place(value: Tensor, text: Tensor) -> range:
    found = (text.unfold(0, len(value), 1) == value).all(-1).nonzero().flatten()
    return range(int(found[0]), int(found[0]) + len(value)) if len(found) else range(0)


def needle_pairs(prompt: Prompt) -> list[tuple[int, int]]:
    """(row, key): where a digit is about to be said, and that digit in the fact."""
    answer = prompt.answers[0]
    return list(zip(range(answer.start - 1, answer.stop - 1), prompt.sources[0], strict=True))


def answered_as(prompt: Prompt, other: Prompt) -> Prompt:
    """A prompt in which the answers of another one stand."""
    tokens = prompt.tokens.clone()
    for own, foreign in zip(prompt.answers, other.answers, strict=True):
        tokens[own.start : own.stop] = other.tokens[foreign.start : foreign.stop]
    return replace(prompt, tokens=tokens)
