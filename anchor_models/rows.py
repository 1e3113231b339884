"""Rows of tokens drawn from books, with facts among them and questions about the facts.

A row is one sequence that starts with <|bos|>. Each of its tokens has a kind: what it is as the
target of the token before it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from anchor_models import documents

BOS, FIRST_TEXT_TOKEN = 0, 3
NOTHING, TEXT, ANSWER, COPY = range(4)  # kinds; nobody could predict a token of the first

# Tokens with their kind: one for all, or one for each.
Part = tuple[Tensor, int | Tensor]


@dataclass(frozen=True, eq=False)
class Row:
    """Tokens, int32, and the kind of each; the first is never a target."""

    tokens: Int[Tensor, "N"]
    kinds: UInt8[Tensor, "N"]


class Rows:
    """Draws rows: book text, and facts and questions as the bundled model was taught them.

    Args:
        books: token ids of each, int32, to draw text from.
        tokenizer: the bundled model's, a `tokenizers.Tokenizer`.
        seed: everything drawn follows from it.
        held_out: use the key words that training must not see.
    """

    def __init__(
        self, books: Sequence[Int[Tensor, "_"]], tokenizer, seed: int, held_out: bool = False
    ):
        import numpy as np

        self.rng = np.random.default_rng(seed)
        self.books = books
        self.vocabulary = tokenizer.get_vocab_size()
        self.encode = partial(_encode, tokenizer)
        self.digits = torch.cat([self.encode(str(digit)) for digit in range(10)])
        # A fact is put together from the tokens of its parts, which is exact: words and digits
        # are encoded one by one, and it is a hundred times as fast as encoding each sentence.
        part = slice(-documents.HELD_OUT, None) if held_out else slice(None, -documents.HELD_OUT)
        self.key_first = [self.encode(" " + word) for word in documents.KEY_FIRST[part]]
        self.key_second = [self.encode(" " + word) for word in documents.KEY_SECOND[part]]
        self.statements = [self._split(text) for text in documents.STATEMENTS]
        asks, answers = documents.QUESTION.split(" {key}?")
        self.asks, self.answers = self.encode(asks), self._split("?" + answers)
        self.told = self.encode(" is ")
        self.made_up = _made_up(tokenizer, seed)

    def text(self, length: int) -> Int[Tensor, "N"]:
        """A piece of one book."""
        fitting = [book for book in self.books if len(book) > length]
        total = sum(map(len, fitting))
        book = fitting[self.rng.choice(len(fitting), p=[len(book) / total for book in fitting])]
        start = self.rng.integers(len(book) - length)
        return book[start : start + length]

    def filler(self, length: int) -> Int[Tensor, "N"]:
        """Book text, or in a third of the rows made-up sentences."""
        if length < len(self.made_up) and self.rng.random() < 1 / 3:
            start = self.rng.integers(len(self.made_up) - length)
            return self.made_up[start : start + length]
        return self.text(length)

    def random_tokens(self, length: int) -> Int[Tensor, "N"]:
        """Any tokens but the special ones."""
        drawn = self.rng.integers(FIRST_TEXT_TOKEN, self.vocabulary, length)
        return torch.from_numpy(drawn).int()

    def number(self) -> Int[Tensor, "N"]:
        """Five to seven digits, the first not zero."""
        digits = self.rng.integers(0, 10, self.rng.choice([5, 5, 5, 6, 7]))
        digits[0] = self.rng.integers(1, 10)
        return self.digits[torch.from_numpy(digits)]

    def keys(self, count: int) -> list[Int[Tensor, "_"]]:
        """Distinct two-word keys, as tokens."""
        first, second = self.key_first, self.key_second
        pairs = self.rng.choice(len(first) * len(second), size=count, replace=False)
        return [
            torch.cat([first[pair // len(second)], second[pair % len(second)]]) for pair in pairs
        ]

    def book(self, length: int) -> Row:
        """Plain text."""
        return self.row([(self.text(length - 1), TEXT)], length)

    def fact(self, key: Tensor, value: Tensor) -> list[Part]:
        """A sentence that tells the number of a key."""
        before, after = self.statements[self.rng.integers(len(self.statements))]
        return self.sentence(before, key, value, after, NOTHING)

    def asked(self, key: Tensor, value: Tensor) -> list[Part]:
        """A question about a key, with its answer."""
        before, after = self.answers
        answer = self.sentence(before, key, value, after, ANSWER)
        return [(self.asks, NOTHING), (key, NOTHING), *answer]

    def sentence(
        self, before: Tensor, key: Tensor, value: Tensor, after: Tensor, kind: int
    ) -> list[Part]:
        """ "... {key} is {value} ...", the value of that kind, the rest never a target."""
        words = ((before, NOTHING), (key, NOTHING), (self.told, NOTHING))
        return [*words, (value, kind), (after, NOTHING)]

    def scatter(self, inserts: Sequence[tuple[float, list[Part]]], length: int) -> Row:
        """Filler with the inserts at their places, shares of the filler, in their order."""
        inserts = sorted(inserts, key=lambda insert: insert[0])
        room = length - 1 - sum(len(tokens) for _, parts in inserts for tokens, _ in parts)
        if room < 16:  # too many facts for a short row: keep those that come first
            return self.scatter(inserts[: max(len(inserts) // 2, 1)], length)
        text = self.filler(room)
        parts, done = [], 0
        for place, insert in inserts:
            at = round(place * room)
            parts += [(text[done:at], TEXT), *insert]
            done = at
        return self.row([*parts, (text[done:], TEXT)], length)

    def row(self, parts: Sequence[Part], length: int) -> Row:
        """<|bos|> and the parts, cut to a length."""
        parts = [(torch.tensor([BOS], dtype=torch.int32), NOTHING), *parts]
        kinds = [
            kind
            if isinstance(kind, Tensor)
            else torch.full((len(tokens),), kind, dtype=torch.uint8)
            for tokens, kind in parts
        ]
        return Row(torch.cat([tokens for tokens, _ in parts])[:length], torch.cat(kinds)[:length])

    def _split(self, template: str) -> tuple[Tensor, Tensor]:
        """Tokens before the key and after the value of a sentence "... {key} is {value}..."."""
        before, after = template.split(" {key} is {value}")
        return self.encode(before), self.encode(after)


def _encode(tokenizer, text: str) -> Int[Tensor, "N"]:
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.int32)


@lru_cache(maxsize=64)  # an evaluation begins anew with the same seeds
def _made_up(tokenizer, seed: int) -> Int[Tensor, "N"]:
    """Some 100,000 tokens of made-up sentences."""
    return _encode(tokenizer, documents.filler(400_000, random.Random(seed)))
