"""Texts of different kinds for a model to read: written in this repository, or made up.

prose      the course and the pages of docs/
code       sources of this repository
chat       a conversation full of lists, of which later turns ask single items again
records    lines of a register, of which later lines repeat single fields
story      sentences about nothing in particular: to calibrate on
"""

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from anchor_lab.experiments.smollm2.prompts import course_text
from anchor_models.documents import WORDS, filler

KINDS = ("prose", "code", "chat", "records")
CALIBRATION = "story"
LETTERS = 8  # no text here has as many a token


def tokens_of(kind: str, tokenizer, length: int, root: Path = Path()) -> list[int]:
    """The first tokens of a text.

    Args:
        kind: one of `KINDS`, or `CALIBRATION`.
        tokenizer: of a transformers model.
        length: N.
        root: of a checkout, for what is written there.

    Raises:
        ValueError: `kind` is no such word, or the text is shorter.
    """
    if kind not in _TEXTS:
        raise ValueError(f"kind must be one of {', '.join(_TEXTS)}, got {kind!r}")
    return _first_tokens(_TEXTS[kind](tokenizer, LETTERS * length, root), kind, tokenizer, length)


def texts_of(
    kinds: Sequence[str], tokenizer, length: int, file: Path | None = None
) -> dict[str, list[int]]:
    """The first tokens of several texts by name, or of one that somebody brings.

    Args:
        kinds: some of `KINDS`.
        tokenizer, length: as in `tokens_of`.
        file: UTF-8; takes the place of all kinds, and its stem is the name.

    Raises:
        OSError: there is no such file.
        ValueError: see `tokens_of`; or the file is not UTF-8.
    """
    if file is None:
        return {kind: tokens_of(kind, tokenizer, length) for kind in kinds}
    text = Path(file).read_text("utf-8")[: LETTERS * length]
    return {Path(file).stem: _first_tokens(text, Path(file).stem, tokenizer, length)}


def own_text(name: str) -> Path:
    """The file of a command's --text.

    Raises:
        ArgumentTypeError: it cannot be read, is not UTF-8, or is called as one of the texts here.
    """
    path = Path(name)
    try:
        path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise argparse.ArgumentTypeError(f"must be a UTF-8 file, got {name}: {problem}") from None
    if path.stem in _TEXTS:
        raise argparse.ArgumentTypeError(
            f"must be called otherwise than {', '.join(_TEXTS)}, got {name}"
        )
    return path


def _first_tokens(text: str, name: str, tokenizer, length: int) -> list[int]:
    ids = tokenizer(text, verbose=False).input_ids
    if len(ids) < length:
        raise ValueError(f"length must be at most {len(ids)} for {name}, got {length}")
    return ids[:length]


def _prose(_tokenizer, letters: int, root: Path) -> str:
    pages = (path.read_text("utf-8") for path in sorted((root / "docs").rglob("*.md")))
    return "\n\n".join([course_text(root), *pages])[:letters]


def _code(_tokenizer, letters: int, root: Path) -> str:
    rooms = ("anchor_ref", "anchor_models")
    paths = [path for room in rooms for path in sorted((root / room).rglob("*.py"))]
    return "\n\n".join(path.read_text("utf-8") for path in paths)[:letters]


def _chat(tokenizer, letters: int, _root: Path) -> str:
    turns = _turns(letters, random.Random(1))
    if getattr(tokenizer, "chat_template", None) is None:
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    return tokenizer.apply_chat_template(turns, tokenize=False)


def _turns(letters: int, rng: random.Random) -> list[dict[str, str]]:
    """Requests for lists, and questions about a list of long ago; each with its answer."""
    turns, lists, length = [], [], 0
    while length < letters:
        if lists and rng.random() < 0.4:
            place, items = rng.choice(lists)
            number = rng.randrange(len(items))
            asked = f"On your list for the {place}, what was number {number + 1}?"
            answer = f"Number {number + 1} on the list for the {place} was {items[number]}."
        else:
            place = f"{rng.choice(WORDS['qualities'])} {rng.choice(WORDS['places'])}"
            items = [
                f"a {rng.choice(WORDS['qualities'])} {rng.choice(WORDS['things'])} "
                f"for {rng.choice(WORDS['names'])}"
                for _ in range(rng.randrange(4, 10))
            ]
            lists.append((place, items))
            asked = f"Please make a list of {len(items)} things to bring to the {place}."
            numbered = "\n".join(f"{at}. {item}" for at, item in enumerate(items, 1))
            answer = f"Here is what to bring to the {place}:\n\n{numbered}"
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        length += len(asked) + len(answer)
    return turns


def _records(_tokenizer, letters: int, _root: Path) -> str:
    rng, lines, there, length = random.Random(2), [], [], 0
    while length < letters:
        if there and rng.random() < 0.4:
            key, fields = rng.choice(there)
            name = rng.choice(list(fields))
            line = f"correction to record {key}: {name} is {fields[name]}, as entered"
        else:
            key = f"{rng.choice(WORDS['key_first'])}-{rng.randrange(1000, 10_000)}"
            fields = {
                "owner": rng.choice(WORDS["names"]),
                "item": f"{rng.choice(WORDS['qualities'])} {rng.choice(WORDS['things'])}",
                "kept in": f"the {rng.choice(WORDS['places'])}",
                "number": str(rng.randrange(10_000, 100_000)),
            }
            there.append((key, fields))
            line = f"record {key} | " + " | ".join(f"{n}: {value}" for n, value in fields.items())
        lines.append(line)
        length += len(line) + 1
    return "\n".join(lines)


def _story(_tokenizer, letters: int, _root: Path) -> str:
    return filler(letters, random.Random(3))


_TEXTS: dict[str, Callable] = {
    "prose": _prose,
    "code": _code,
    "chat": _chat,
    "records": _records,
    CALIBRATION: _story,
}
