"""Prompts that hide numbers and ask for them, in the spirit of RULER (arXiv 2404.06654).

They are in the words that the bundled model was taught: facts, questions, variables and lists of
`key: number`; the keys are built from words that training never used. The right answers stand in
the prompt, after their questions, so that one prefill shows whether each digit would be said.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from anchor_models.documents import QUESTION, STATEMENTS, filler, make_keys, make_value

MOST_LINES = 400  # as many keys as the held-out words make
LINE = "\n {key}: {value}"
SET_NUMBER, SET_NAME = "\nLet {key} = {value}.", "\nLet {key} = {source}."
ASKED_NAME = "\nNow {key} is {value}."
SLOT = re.compile(r"( \{key\}| \{source\}|\{value\})")  # a word's first token holds the space


@dataclass(frozen=True, eq=False)
class Prompt:
    """A text with questions and their answers at the end.

    Attributes:
        tokens: `[N]` int64, <|bos|> first.
        answers: positions of the digits of each answer.
        sources: positions of the same digits where the text gives them.
    """

    tokens: Int[Tensor, "N"]
    answers: tuple[range, ...]
    sources: tuple[range, ...]


class _Passage(NamedTuple):
    """Tokens, and where among them the digits of a number stand: an empty range for nowhere."""

    tokens: list[int]
    number: range


class _Writer:
    """Puts passages together from the tokens of their parts, as the model was taught."""

    def __init__(self, tokenizer, rng: random.Random):
        self.encode = partial(tokenizer.encode, add_special_tokens=False)
        self.bos, self.rng = tokenizer.bos_token_id, rng

    def passage(self, form: str, **words: str) -> _Passage:
        """A sentence or line with its words filled in, each of them encoded for itself."""
        tokens, number = [], range(0)
        for part in SLOT.split(form):
            start = len(tokens)
            tokens += self.encode(part.format(**words))
            if part == "{value}":
                number = range(start, len(tokens))
        return _Passage(tokens, number)

    def fact(self, key: str, value: str) -> _Passage:
        return self.passage(self.rng.choice(STATEMENTS), key=key, value=value)

    def question(self, key: str, value: str) -> _Passage:
        return self.passage(QUESTION, key=key, value=value)

    def prompt(
        self,
        length: int,
        told: Sequence[tuple[float, _Passage]],
        asked: Sequence[tuple[int, _Passage]],
    ) -> Prompt:
        """Filler with each of `told` at its place (a share of the filler), then the questions.

        Each of `asked` names by index the passage that its answer is to be read from.
        """
        used = 1 + sum(len(passage.tokens) for _, passage in (*told, *asked))
        if used > length:
            raise ValueError(f"length must be at least {used} tokens here, got {length}")
        room = length - used
        text = self.encode(filler(6 * room, self.rng))[:room]  # about 4 characters are a token
        tokens, done, sources = [self.bos], 0, {}
        for index in sorted(range(len(told)), key=lambda index: told[index][0]):
            place, passage = told[index]
            at = round(place * room)
            tokens += text[done:at]
            sources[index] = _shifted(passage.number, len(tokens))
            tokens += passage.tokens
            done = at
        tokens += text[done:]
        answers = []
        for _, passage in asked:
            answers.append(_shifted(passage.number, len(tokens)))
            tokens += passage.tokens
        return Prompt(
            torch.tensor(tokens), tuple(answers), tuple(sources[index] for index, _ in asked)
        )


def _needles(writer: _Writer, length: int, keys: int, questions: int) -> Prompt:
    """Facts anywhere, and questions about the first of them."""
    rng = writer.rng
    pairs = [(key, make_value(rng)) for key in make_keys(keys, rng)]
    told = [(rng.random(), writer.fact(*pair)) for pair in pairs]
    asked = [(index, writer.question(*pair)) for index, pair in enumerate(pairs[:questions])]
    return writer.prompt(length, told, asked)


def _values(writer: _Writer, length: int, values: int) -> Prompt:
    """One key with several numbers, asked for as often, in the order of the text."""
    rng = writer.rng
    (key,) = make_keys(1, rng)
    numbers = [make_value(rng) for _ in range(values)]
    places = sorted(rng.random() for _ in numbers)
    told = [(at, writer.fact(key, value)) for at, value in zip(places, numbers, strict=True)]
    asked = [(index, writer.question(key, value)) for index, value in enumerate(numbers)]
    return writer.prompt(length, told, asked)


def _variables(writer: _Writer, length: int, chains: int, hops: int) -> Prompt:
    """Chains of variables, the first of each set to a number; asked for the end of one."""
    rng = writer.rng
    names = make_keys(chains * (hops + 1), rng)
    values = [make_value(rng) for _ in range(chains)]
    told = []
    for chain, value in enumerate(values):
        own = names[chain * (hops + 1) : (chain + 1) * (hops + 1)]
        passages = [writer.passage(SET_NUMBER, key=own[0], value=value)]
        passages += [writer.passage(SET_NAME, key=y, source=x) for x, y in pairwise(own)]
        places = sorted(rng.random() for _ in passages)
        told += zip(places, passages, strict=True)
    asked = writer.passage(ASKED_NAME, key=names[hops], value=values[0])
    return writer.prompt(length, told, [(0, asked)])


def _key_values(writer: _Writer, length: int, questions: int) -> Prompt:
    """As many lines `key: number` as fit, at most `MOST_LINES`; then some of them again."""
    rng = writer.rng
    keys = make_keys(MOST_LINES, rng)
    lines = [writer.passage(LINE, key=key, value=make_value(rng)) for key in keys]
    room = length - 1 - questions * max(len(line.tokens) for line in lines)
    told = []
    for line in lines:
        room -= len(line.tokens)
        if room < 0:
            break
        told.append((1.0, line))
    if len(told) < questions:
        raise ValueError(f"length must have room for {questions} lines twice, got {length}")
    asked = [(index, told[index][1]) for index in rng.sample(range(len(told)), questions)]
    return writer.prompt(length, told, asked)


TASKS = {
    "single": partial(_needles, keys=1, questions=1),
    "multi-key": partial(_needles, keys=4, questions=1),
    "multi-query": partial(_needles, keys=4, questions=4),
    "multi-value": partial(_values, values=4),
    "variable": partial(_variables, chains=1, hops=4),
    "variables": partial(_variables, chains=4, hops=1),
    "key-value": partial(_key_values, questions=4),
}


def make_retrieval(tokenizer, task: str, length: int, seed: int = 0) -> Prompt:
    """A prompt of exactly `length` tokens, its answers included.

    single: one fact, one question. multi-key: four facts, a question about one. multi-query: four
    facts, four questions. multi-value: four numbers of one key, asked for in the order of the
    text. variable: a = number, b = a, and so on to e; what is e? variables: four pairs a = number,
    b = a; what is one b? key-value: a list of `key: number`, four of its lines to be completed.

    Args:
        tokenizer: the bundled model's.
        task: one of `TASKS`.
        length: N.
        seed: everything drawn follows from it, the task and the length.

    Raises:
        ValueError: `task` is unknown, or `length` has no room for the facts and the questions.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return TASKS[task](_Writer(tokenizer, random.Random(f"{task} {length} {seed}")), length)


def _shifted(positions: range, by: int) -> range:
    return range(positions.start + by, positions.stop + by)
