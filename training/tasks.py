"""The data mix: rows of tokens, and for each next token what kind of target it is.

Retrieval is taught densely: many answers a row, at random distances, because one answer in a long
row gives no gradient to speak of and a fixed distance is learnt as a position. Tokens that nobody
could predict are not scored.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from anchor_models.rows import ANSWER, COPY, FIRST_TEXT_TOKEN, NOTHING, TEXT, Part, Row, Rows

STAGE_0 = {"book": 0.20, "repeated_book": 0.15, "repeated_block": 0.35, "recall_pairs": 0.30}
LATER = {
    "book": 0.36,
    "needles": 0.32,
    "key_values": 0.08,
    "scattered_copies": 0.08,
    "repeated_book": 0.04,
    "recall_pairs": 0.06,
    "variables": 0.06,
}


class Tasks(Rows):
    """Draws the rows of all tasks; one instance for each worker."""

    def __init__(self, books: Sequence[Tensor], tokenizer, seed: int, held_out: bool = False):
        super().__init__(books, tokenizer, seed, held_out)
        self.newline, self.colon, self.let, self.equals, self.stop, self.say = (
            self.encode(text) for text in ("\n", ": ", "\nLet", " = ", ".", "\nNow")
        )

    def batch(self, mix: dict[str, float], length: int, rows: int) -> tuple[Tensor, Tensor]:
        """`rows` rows of `length` + 1 tokens, int32, and their kinds, uint8."""
        names = self.rng.choice(list(mix), size=rows, p=list(mix.values()))
        drawn = [getattr(self, name)(length + 1) for name in names]
        return torch.stack([row.tokens for row in drawn]), torch.stack(
            [row.kinds for row in drawn]
        )

    def repeated_book(self, length: int) -> Row:
        """Half a row of text, a gap, and the same text again."""
        gap = int(self.rng.integers(0, 9))
        half = self.text((length - gap) // 2)
        return self.row([(half, TEXT), (self.random_tokens(gap), NOTHING), *_again(half)], length)

    def repeated_block(self, length: int) -> Row:
        """A block of random tokens, again and again with gaps of random length between."""
        size = int(self.rng.integers(max(length // 8, 2), length // 2 + 1))
        block = self.random_tokens(size)
        parts, filled = [(block, NOTHING)], size
        while filled < length:
            gap = int(self.rng.integers(0, 9))
            parts += [(self.random_tokens(gap), NOTHING), *_again(block)]
            filled += gap + size
        return self.row(parts, length)

    def scattered_copies(self, length: int) -> Row:
        """Blocks of random tokens in text, each repeated at a random distance."""
        blocks = [
            self.random_tokens(int(self.rng.integers(8, 65))) for _ in range(max(length // 512, 1))
        ]
        inserts = []
        for block in blocks:
            first, *later = np.sort(self.rng.random(3))
            inserts += [(first, [(block, NOTHING)]), *((place, _again(block)) for place in later)]
        return self.scatter(inserts, length)

    def recall_pairs(self, length: int) -> Row:
        """Multi-query associative recall: random pairs, then the keys again, shuffled."""
        pairs = min(int(self.rng.integers(4, max(length // 4, 5))), 512)
        symbols = self.rng.permutation(self.vocabulary - FIRST_TEXT_TOKEN)[: 2 * pairs]
        symbols = torch.from_numpy(symbols + FIRST_TEXT_TOKEN).int().view(pairs, 2)
        kinds = torch.tensor([NOTHING, ANSWER], dtype=torch.uint8).repeat(pairs)
        parts, filled = [(symbols.flatten(), NOTHING)], 2 * pairs
        while filled < length:
            order = torch.from_numpy(self.rng.permutation(pairs))
            parts.append((symbols[order].flatten(), kinds))
            filled += 2 * pairs
        return self.row(parts, length)

    def needles(self, length: int) -> Row:
        """Facts scattered in text; questions about them all over the rest and at the end."""
        count = min(int(self.rng.integers(1, max(length // 256, 1) + 1)), 32)
        facts = [(key, self.number()) for key in self.keys(count)]
        places = self.rng.random(count)
        inserts = [(place, self.fact(*fact)) for fact, place in zip(facts, places, strict=True)]
        most = min(2 * count, 16 if length < 8192 else 32)
        order = np.concatenate([self.rng.permutation(count), self.rng.permutation(count)])
        for n in order[: int(self.rng.integers(1, most + 1))]:
            # Half of the questions stand at the very end, as they do in use.
            place = 1.0 if self.rng.random() < 0.5 else self.rng.uniform(places[n], 1.0)
            inserts.append((place, self.asked(*facts[n])))
        return self.scatter(inserts, length)

    def key_values(self, length: int) -> Row:
        """A list of `key: number` lines; then some of the lines again, the number to be given."""
        line = 14
        asked_share = self.rng.uniform(0.3, 0.6)
        available = len(self.key_first) * len(self.key_second)
        count = int(min(max((1 - asked_share) * length / line, 2), 600, available))
        facts = [(key, self.number()) for key in self.keys(count)]

        def lines(order: Iterable[int], kind: int) -> list[Part]:
            return [
                part
                for key, value in (facts[n] for n in order)
                for part in (
                    (self.newline, NOTHING),
                    (key, NOTHING),
                    (self.colon, NOTHING),
                    (value, kind),
                )
            ]

        parts = lines(range(count), NOTHING)
        filled = _size(parts)
        while filled < length:
            again = lines(self.rng.permutation(count)[: max(count // 2, 1)], ANSWER)
            parts += again
            filled += _size(again)
        return self.row(parts, length)

    def variables(self, length: int) -> Row:
        """Variables that are set to numbers or to each other, then asked for by name."""
        count = int(min(max(length // 96, 2), 64))
        names = self.keys(count)
        values: list[Tensor] = []
        inserts = []
        places = np.sort(self.rng.random(count)) * 0.8
        for n, place in enumerate(places):
            if n and self.rng.random() < 0.4:
                source = int(self.rng.integers(n))
                values.append(values[source])
                words = (self.equals[:-1], names[source])  # the name brings its own space
            else:
                values.append(self.number())
                words = (self.equals, values[n])
            words = (self.let, names[n], *words, self.stop)
            inserts.append((place, [(tokens, NOTHING) for tokens in words]))
        for _ in range(count):
            n = self.rng.integers(count)
            answer = self.sentence(self.say, names[n], values[n], self.stop, ANSWER)
            inserts.append((self.rng.uniform(places[n], 1.0), answer))
        return self.scatter(inserts, length)


def _again(block: Tensor) -> list[Part]:
    """A copy, whose first token nobody could predict."""
    return [(block[:1], NOTHING), (block[1:], COPY)]


def _size(parts: Sequence[Part]) -> int:
    return sum(len(tokens) for tokens, _ in parts)
