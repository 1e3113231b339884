"""Documents made up on the spot: filler sentences, with needles to be found again.

A needle is one sentence that gives a number to a two-word key; a question at the end asks for it.
Everything follows from the seed, nothing is copied from a book, and the keys for evaluation are
built from words that training never uses.
"""

import random
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_lists = tomllib.loads((Path(__file__).parent / "words.toml").read_text("utf-8"))
WORDS = {name: x.split() if isinstance(x, str) else x for name, x in _lists.items()}
# Keys: the two lists are split, and the held-out parts are for evaluation only.
KEY_FIRST, KEY_SECOND = WORDS["key_first"], WORDS["key_second"]
HELD_OUT = 20  # the last words of each list

PROSE = Path(__file__).parent / "prose.txt"  # a paragraph a line; `python -m training.prose`

# A {name} stands for one of these phrases, or for a word of that list.
NAME = re.compile(r"\{(\w+)\}")
PHRASES = {
    "person": "{names}|the {qualities} {people}|the {people}",
    "thing": "the {things}|a {qualities} {things}",
    "place": "the {places}|the {qualities} {places}",
}
DEED = "{person} {actions} {thing}"
SENTENCES = (
    f"{DEED} near {{place}} {{times}}",
    f"{{times}}, {DEED}",
    "there was {thing} in {place}, and {opinions}",
    "{person} went to {place} with {person}, but {opinions}",
    "the {places} was {qualities} and the {places} was not",
    '"where is {thing}?" asked {person}, who stood by {place}',
    f"when {DEED}, {DEED}",
    "from {place} to {place} it is a {qualities} way, and {opinions}",
)
STATEMENTS = (
    " The number of {key} is {value}.",
    " Remember that the number of {key} is {value}.",
    " It is written that the number of {key} is {value}.",
    " As you know, the number of {key} is {value}.",
)
QUESTION = "\nQuestion: what is the number of {key}? Answer: the number of {key} is {value}."


@dataclass(frozen=True)
class Needle:
    """A fact to be found: key, value, and where its sentence starts (a share of the filler)."""

    key: str
    value: str
    depth: float


@dataclass(frozen=True)
class Document:
    """A text with its needles; `text` ends right before the answer to the last question.

    Attributes:
        text: filler with the needles in it, then the question, up to and including "is ".
        answer: the value asked for, digits only.
        needles: all needles, in the order of their depth.
        asked: index of the needle asked for.
    """

    text: str
    answer: str
    needles: tuple[Needle, ...]
    asked: int


def filler_sentence(rng: random.Random) -> str:
    """One English sentence about nothing in particular."""
    text = NAME.sub(
        lambda name: (
            rng.choice(_with_words(PHRASES[name[1]], rng).split("|"))
            if name[1] in PHRASES
            else rng.choice(WORDS[name[1]])
        ),
        rng.choice(SENTENCES),
    )
    start = 1 if text[0] == '"' else 0
    return text[:start] + text[start].upper() + text[start + 1 :] + "."


def _with_words(text: str, rng: random.Random) -> str:
    """`text` with a word of its list in the place of each {list}."""
    return NAME.sub(lambda name: rng.choice(WORDS[name[1]]), text)


def filler(n_characters: int, rng: random.Random) -> str:
    """Sentences in paragraphs, at least `n_characters` long."""
    parts, length = [], 0
    while length < n_characters:
        parts.append(filler_sentence(rng) + ("\n" if rng.random() < 0.15 else " "))
        length += len(parts[-1])
    return "".join(parts).rstrip()


def prose(n_characters: int, rng: random.Random) -> str:
    """Prose without sense that the bundled model wrote, from a drawn paragraph on.

    More varied than `filler`. Where it comes to its end it begins again.

    Args:
        n_characters: at least so many, in whole paragraphs.
        rng: says where it begins.
    """
    paragraphs = _paragraphs()
    at, parts, length = rng.randrange(len(paragraphs)), [], 0
    while length < n_characters:
        parts.append(paragraphs[at % len(paragraphs)])
        length += len(parts[-1]) + 1
        at += 1
    return "\n".join(parts)


@cache
def _paragraphs() -> list[str]:
    return PROSE.read_text("utf-8").splitlines()


def make_keys(count: int, rng: random.Random, held_out: bool = True) -> list[str]:
    """Distinct two-word keys; `held_out` chooses the words that training never uses."""
    part = slice(-HELD_OUT, None) if held_out else slice(None, -HELD_OUT)
    first, second = KEY_FIRST[part], KEY_SECOND[part]
    if not 1 <= count <= len(first) * len(second):
        raise ValueError(f"count must be in 1..{len(first) * len(second)}, got {count}")
    pairs = rng.sample(range(len(first) * len(second)), count)
    return [f"{first[pair // len(second)]} {second[pair % len(second)]}" for pair in pairs]


def make_value(rng: random.Random) -> str:
    """A number of five digits, the first not zero."""
    return str(rng.randrange(10_000, 100_000))


def make_document(
    n_characters: int,
    seed: int = 0,
    *,
    depths: tuple[float, ...] = (0.5,),
    asked: int = 0,
    body: str | None = None,
    held_out: bool = True,
) -> Document:
    """A text with one needle at each of the given depths, and a question about one of them.

    Args:
        n_characters: length of the filler, at least 0; about 4 characters are a token of the
            bundled model.
        seed: everything drawn follows from it.
        depths: where the needles stand, as shares of the filler, in [0, 1].
        asked: index into `depths` of the needle that the question is about.
        body: filler to use instead of made-up sentences; cut to `n_characters`.
        held_out: build keys from words that training never uses.

    Returns:
        The `Document`.

    Raises:
        ValueError: `n_characters`, a depth or `asked` is out of range, or `body` is shorter than
            `n_characters`.
    """
    if n_characters < 0:
        raise ValueError(f"n_characters must be at least 0, got {n_characters}")
    if not depths or any(not 0 <= depth <= 1 for depth in depths):
        raise ValueError(f"depths must be one or more numbers in [0, 1], got {depths}")
    if not 0 <= asked < len(depths):
        raise ValueError(f"asked must be in 0..{len(depths) - 1}, got {asked}")
    if body is not None and len(body) < n_characters:
        raise ValueError(f"body must have at least {n_characters} characters, got {len(body)}")
    rng = random.Random(seed)
    text = filler(n_characters, rng) if body is None else body[:n_characters]
    keys = make_keys(len(depths), rng, held_out)
    needles = [
        Needle(key, make_value(rng), depth) for key, depth in zip(keys, depths, strict=True)
    ]
    wanted = needles[asked]
    needles.sort(key=lambda needle: needle.depth)
    parts, done = [], 0
    for needle in needles:
        at = max(done, _sentence_end(text, round(needle.depth * len(text))))
        statement = rng.choice(STATEMENTS).format(key=needle.key, value=needle.value)
        parts += [text[done:at], statement]
        done = at
    parts += [text[done:], QUESTION.partition("{value}")[0].format(key=wanted.key)]
    return Document("".join(parts), wanted.value, tuple(needles), needles.index(wanted))


def make_prompt(
    tokenizer,
    n_tokens: int,
    seed: int = 0,
    *,
    depths: tuple[float, ...] = (0.5,),
    asked: int = 0,
    held_out: bool = True,
) -> tuple[list[int], Document]:
    """A document cut to measure: <|bos|>, filler with needles, question, `n_tokens` in all.

    Args:
        tokenizer: a transformers tokenizer. One without a <|bos|> gives a prompt without it.
        n_tokens: length of the prompt in tokens; the answer comes after it.
        seed, depths, asked, held_out: as in `make_document`.

    Returns:
        (token ids, the `Document` they were made from). The ids are exactly `n_tokens` unless
        filler of that very length does not exist, and then up to 16 fewer, never more.

    Raises:
        TypeError: `tokenizer` is not a tokenizer.
        ValueError: `n_tokens` is too few for the needles and the question, or see `make_document`.
    """
    if not hasattr(tokenizer, "bos_token_id"):
        raise TypeError(
            f"tokenizer must be a transformers tokenizer, got {type(tokenizer).__name__}"
        )
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def attempt(n_characters: int) -> tuple[list[int], Document]:
        document = make_document(
            n_characters, seed, depths=depths, asked=asked, body=body, held_out=held_out
        )
        ids = tokenizer.encode(document.text, add_special_tokens=False)
        return [*start, *ids], document

    body = filler(8 * n_tokens, random.Random(seed))  # no English text has 8 characters a token
    least, most = 0, len(body)
    ids, document = attempt(0)
    if len(ids) > n_tokens:
        raise ValueError(f"n_tokens must be at least {len(ids)} for these needles, got {n_tokens}")
    while most - least > 1 and len(ids) < n_tokens:
        middle = (least + most) // 2
        longer, found = attempt(middle)
        if len(longer) <= n_tokens:
            least, ids, document = middle, longer, found
        else:
            most = middle
    return ids, document


def _sentence_end(text: str, position: int) -> int:
    """The first place at or after `position` that follows a full stop; else the end."""
    if position == 0:
        return 0
    found = text.find(". ", max(position - 1, 0))
    return len(text) if found < 0 else found + 1
