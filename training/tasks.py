"""The data mix: rows of tokens, and for each next token what kind of target it is.

A row is one sequence of T + 1 tokens that starts with <|bos|>. Retrieval is taught densely: many
answers a row, at random distances, because one answer in a long row gives no gradient to speak of
and a fixed distance is learnt as a position. Tokens that nobody could predict are not scored.
"""

import random
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from anchor_models import documents

BOS, FIRST_TEXT_TOKEN = 0, 3
NOTHING, TEXT, ANSWER, COPY = range(4)  # kinds of target

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


@dataclass
class Row:
    """Tokens and, for each, what it is as a target (the first token never is one)."""

    tokens: np.ndarray
    kinds: np.ndarray


class Tasks:
    """Draws rows; one instance for each worker.

    Args:
        books: token arrays to draw text from.
        tokenizer: the model's.
        seed: of this worker.
        held_out: use the key words that training must not see (evaluation).
    """

    def __init__(
        self, books: list[np.ndarray], tokenizer: Tokenizer, seed: int, held_out: bool = False
    ):
        self.rng = np.random.default_rng(seed)
        self.words = random.Random(seed)
        self.books = books
        self.share = np.array([len(book) for book in books], dtype=np.float64)
        self.share /= self.share.sum()
        self.vocabulary = tokenizer.get_vocab_size()
        self.held_out = held_out
        self.encode = lambda text: np.array(
            tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint16
        )
        self.digits = np.array([self.encode(str(d))[0] for d in range(10)], dtype=np.uint16)
        # A needle is put together from the tokens of its parts, which is exact: words and digits
        # are encoded one by one, and it is a hundred times as fast as encoding each sentence.
        part = slice(-documents.HELD_OUT, None) if held_out else slice(None, -documents.HELD_OUT)
        self.key_first = [self.encode(" " + word) for word in documents.KEY_FIRST[part]]
        self.key_second = [self.encode(" " + word) for word in documents.KEY_SECOND[part]]
        self.statements = [self._split(text) for text in documents.STATEMENTS]
        asks, answers = documents.QUESTION.split("{key}?")
        self.asks = self.encode(asks.removesuffix(" "))
        self.answers = self._split("?" + answers)
        self.made_up = self.encode(documents.filler(400_000, self.words))
        self.space, self.newline = self.encode(" "), self.encode("\n")
        self.colon, self.let, self.equals, self.stop = (
            self.encode(text) for text in (": ", "\nLet", " = ", ".")
        )
        self.say, self.now = self.encode("\nNow"), self.encode(" is ")

    def batch(
        self, mix: dict[str, float], length: int, rows: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`rows` rows of `length` + 1 tokens, and their kinds: uint16 and uint8."""
        names = self.rng.choice(list(mix), size=rows, p=list(mix.values()))
        drawn = [getattr(self, name)(length + 1) for name in names]
        return np.stack([row.tokens for row in drawn]), np.stack([row.kinds for row in drawn])

    def text(self, length: int) -> np.ndarray:
        """A piece of one book."""
        fitting = [i for i, book in enumerate(self.books) if len(book) > length]
        share = self.share[fitting] / self.share[fitting].sum()
        book = self.books[fitting[self.rng.choice(len(fitting), p=share)]]
        start = self.rng.integers(len(book) - length)
        return book[start : start + length]

    def filler(self, length: int) -> np.ndarray:
        """Book text, or in a third of the rows made-up sentences."""
        if length < len(self.made_up) and self.rng.random() < 1 / 3:
            start = self.rng.integers(len(self.made_up) - length)
            return self.made_up[start : start + length]
        return self.text(length)

    def random_tokens(self, length: int) -> np.ndarray:
        return self.rng.integers(FIRST_TEXT_TOKEN, self.vocabulary, length).astype(np.uint16)

    def number(self) -> np.ndarray:
        digits = self.rng.integers(0, 10, self.rng.choice([5, 5, 5, 6, 7]))
        digits[0] = self.rng.integers(1, 10)
        return self.digits[digits]

    def keys(self, count: int) -> list[np.ndarray]:
        """Distinct two-word keys, as tokens."""
        pairs = self.rng.choice(
            len(self.key_first) * len(self.key_second), size=count, replace=False
        )
        first, second = np.divmod(pairs, len(self.key_second))
        return [
            np.concatenate([self.key_first[i], self.key_second[j]])
            for i, j in zip(first, second, strict=True)
        ]

    def book(self, length: int) -> Row:
        """Plain text."""
        return self._row([(self.text(length - 1), TEXT)], length)

    def repeated_book(self, length: int) -> Row:
        """Half a row of text, a gap, and the same text again."""
        gap = self.rng.integers(0, 9)
        half = self.text((length - gap) // 2)
        parts = [(half, TEXT), (self.random_tokens(gap), NOTHING), (half[:1], NOTHING)]
        return self._row([*parts, (half[1:], COPY)], length)

    def repeated_block(self, length: int) -> Row:
        """A block of random tokens, again and again with gaps of random length between."""
        size = int(self.rng.integers(max(length // 8, 2), length // 2 + 1))
        block = self.random_tokens(size)
        parts, filled = [(block, NOTHING)], size
        while filled < length:
            gap = int(self.rng.integers(0, 9))
            parts += [(self.random_tokens(gap), NOTHING), (block[:1], NOTHING), (block[1:], COPY)]
            filled += gap + size
        return self._row(parts, length)

    def scattered_copies(self, length: int) -> Row:
        """Blocks of random tokens in text, each repeated at a random distance."""
        blocks = [
            self.random_tokens(self.rng.integers(8, 65)) for _ in range(max(length // 512, 1))
        ]
        inserts = []
        for block in blocks:
            places = np.sort(self.rng.random(3))
            inserts.append((places[0], [(block, NOTHING)]))
            for place in places[1:]:
                inserts.append((place, [(block[:1], NOTHING), (block[1:], COPY)]))
        return self._scatter(inserts, length)

    def recall_pairs(self, length: int) -> Row:
        """Multi-query associative recall: random pairs, then the keys again, shuffled."""
        pairs = int(self.rng.integers(4, max(length // 4, 5)))
        pairs = min(pairs, 512)
        symbols = self.rng.permutation(self.vocabulary - FIRST_TEXT_TOKEN)[: 2 * pairs]
        symbols = (symbols + FIRST_TEXT_TOKEN).astype(np.uint16).reshape(pairs, 2)
        parts, filled = [(symbols.reshape(-1), NOTHING)], 2 * pairs
        while filled < length:
            asked = symbols[self.rng.permutation(pairs)].reshape(-1)
            parts.append((asked, np.tile(np.array([NOTHING, ANSWER], dtype=np.uint8), pairs)))
            filled += 2 * pairs
        return self._row(parts, length)

    def needles(self, length: int) -> Row:
        """Facts scattered in text; questions about them all over the rest and at the end."""
        count = int(self.rng.integers(1, max(length // 256, 1) + 1))
        count = min(count, 32)
        keys = self.keys(count)
        values = [self.number() for _ in keys]
        inserts = []
        places = self.rng.random(count)
        for key, value, place in zip(keys, values, places, strict=True):
            before, after = self.statements[self.rng.integers(len(self.statements))]
            inserts.append((place, self._fact(before, key, value, after, NOTHING)))
        most = min(2 * count, 16 if length < 8192 else 32)
        order = np.concatenate([self.rng.permutation(count), self.rng.permutation(count)])
        for n in order[: int(self.rng.integers(1, most + 1))]:
            # Half of the questions stand at the very end, as they do in use.
            place = 1.0 if self.rng.random() < 0.5 else self.rng.uniform(places[n], 1.0)
            inserts.append((place, self.asked(keys[n], values[n])))
        return self._scatter(inserts, length)

    def asked(self, key: np.ndarray, value: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """A question about a key, with its answer."""
        before, after = self.answers
        return [
            (self.asks, NOTHING),
            (key, NOTHING),
            *self._fact(before, key, value, after, ANSWER),
        ]

    def key_values(self, length: int) -> Row:
        """A list of `key: number` lines; then some of the lines again, the number to be given."""
        line = 14
        asked_share = self.rng.uniform(0.3, 0.6)
        available = len(self.key_first) * len(self.key_second)
        count = int(min(max((1 - asked_share) * length / line, 2), 600, available))
        keys = self.keys(count)
        values = [self.number() for _ in keys]

        def lines(order, kind):
            for n in order:
                yield (self.newline, NOTHING)
                yield (keys[n], NOTHING)
                yield (self.colon, NOTHING)
                yield (values[n], kind)

        parts = list(lines(range(count), NOTHING))
        filled = sum(len(tokens) for tokens, _ in parts)
        while filled < length:
            again = list(lines(self.rng.permutation(count)[: max(count // 2, 1)], ANSWER))
            parts += again
            filled += sum(len(tokens) for tokens, _ in again)
        return self._row(parts, length)

    def variables(self, length: int) -> Row:
        """Variables that are set to numbers or to each other, then asked for by name."""
        count = int(min(max(length // 96, 2), 64))
        names = self.keys(count)
        values: list[np.ndarray] = []
        inserts = []
        places = np.sort(self.rng.random(count)) * 0.8
        for n, place in enumerate(places):
            if n and self.rng.random() < 0.4:
                source = int(self.rng.integers(n))
                values.append(values[source])
                told, kind = names[source], NOTHING
                middle = self.equals[:-1]  # the name brings its own space
            else:
                values.append(self.number())
                told, kind, middle = values[n], NOTHING, self.equals
            parts = [(self.let, NOTHING), (names[n], NOTHING), (middle, NOTHING), (told, kind)]
            inserts.append((place, [*parts, (self.stop, NOTHING)]))
        for _ in range(count):
            n = self.rng.integers(count)
            fact = self._fact(self.say, names[n], values[n], self.stop, ANSWER)
            inserts.append((self.rng.uniform(places[n], 1.0), fact))
        return self._scatter(inserts, length)

    def _fact(self, before, key, value, after, kind):
        return [
            (before, NOTHING),
            (key, NOTHING),
            (self.now, NOTHING),
            (value, kind),
            (after, NOTHING),
        ]

    def _split(self, template: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens before the key and after the value of a sentence "... {key} is {value}..."."""
        before, rest = template.split(" {key} is {value}")
        return self.encode(before), self.encode(rest)

    def _scatter(self, inserts, length: int) -> Row:
        """Filler with the inserts at their places (shares of the filler), in order."""
        used = sum(len(tokens) for _, parts in inserts for tokens, _ in parts)
        room = length - 1 - used
        if room < 16:
            # Too many facts for a short row: keep those that come first in order of place.
            kept = sorted(inserts, key=lambda insert: insert[0])[: max(len(inserts) // 2, 1)]
            return self._scatter(kept, length)
        text = self.filler(room)
        parts, done = [], 0
        for place, insert in sorted(inserts, key=lambda insert: insert[0]):
            at = round(place * room)
            parts += [(text[done:at], TEXT), *insert]
            done = at
        return self._row([*parts, (text[done:], TEXT)], length)

    def _row(self, parts, length: int) -> Row:
        tokens = [np.array([BOS], dtype=np.uint16), *(part for part, _ in parts)]
        kinds = [np.array([NOTHING], dtype=np.uint8)]
        for part, kind in parts:
            if isinstance(kind, np.ndarray):
                kinds.append(kind)
            else:
                kinds.append(np.full(len(part), kind, dtype=np.uint8))
        return Row(np.concatenate(tokens)[:length], np.concatenate(kinds)[:length])
