"""What the model is given to read: a text with a number hidden in it, and a question about it."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

NOT_PROSE = ("|", "<", "$$", "#", "    ", "```", "[")  # how lines of a notebook's Markdown begin
BEFORE = "Read the following text.\n\n"
NAMES = "archive library harbour station museum garden observatory workshop".split()
MARK = "\x00"


@dataclass(frozen=True, eq=False)
class Needle:
    """A prompt that hides a number and asks for it at its end.

    Attributes:
        tokens: `[1, N]` int64.
        answer: the number's digits.
        place: where the sentence that holds it stands among the tokens.
    """

    tokens: Int[Tensor, "1 N"]
    answer: str
    place: range


def course_text(root: Path) -> str:
    """The prose of the course's notebooks.

    Args:
        root: of a checkout.

    Raises:
        FileNotFoundError: there are no notebooks below `root`.
    """
    notebooks = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise FileNotFoundError(f"the repository's notebooks must lie in {root / 'notebooks'}")
    return "\n\n".join(map(_prose, notebooks))


def repository_text(root: Path) -> str:
    """The course, the pages of docs/, then the sources; arguments and errors as `course_text`."""
    pages = sorted((root / "docs").rglob("*.md"))
    rooms = ("anchor_ref", "anchor_models", "anchor_lab")
    sources = [path for room in rooms for path in sorted((root / room).rglob("*.py"))]
    files = (path.read_text("utf-8") for path in (*pages, *sources))
    return "\n\n".join([course_text(root), *files])


def _prose(path: Path) -> str:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    texts = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    lines = [line for text in texts for line in [*text.splitlines(), ""]]
    kept = "\n".join(line for line in lines if not line.startswith(NOT_PROSE))
    return re.sub(r"\n{3,}", "\n\n", kept)


def needle(
    tokenizer,
    body: Sequence[int],
    length: int,
    seed: int,
    depth: float | None = None,
    start: int | None = None,
    begun: bool = False,
) -> Needle:
    """A chat of `length` tokens: a text with a number in it, and a question about the number.

    Args:
        tokenizer: with a chat template, or the text stands by itself.
        body: tokens of the text to read, at least `length` of them.
        length: N.
        seed: of number, name, beginning and depth.
        depth: of the hidden sentence, a share of the text; None draws it.
        start: token of the body to begin with; None draws it.
        begun: whether the answer has begun, so that the prompt's last row asks for the number.

    Raises:
        ValueError: the text is too short from its beginning on, or the length leaves no room for
            one.
    """
    draw = random.Random(seed)
    name, answer = draw.choice(NAMES), str(draw.randrange(10_000, 100_000))
    fact = tokenizer(f" The access number of the {name} is {answer}.", add_special_tokens=False)
    question = (
        f"\n\nQuestion: What is the access number of the {name}? Answer with the number alone."
    )
    before, after = _chat(tokenizer, BEFORE + MARK + question).split(MARK)
    after += f"The access number of the {name} is" if begun else ""
    first, last = (tokenizer(part, add_special_tokens=False).input_ids for part in (before, after))
    room = length - len(first) - len(last) - len(fact.input_ids)
    if room < 1:
        raise ValueError(f"length must be at least {length - room + 1}, got {length}")
    if (found := len(body) - (start or 0)) < room:
        raise ValueError(f"body must have at least {room} tokens for {length}, got {found}")
    drawn = draw.randrange(len(body) - room + 1)
    start = drawn if start is None else start
    text = list(body[start : start + room])
    at = sentence_end(tokenizer, text, draw.random() if depth is None else depth)
    place = range(len(first) + at, len(first) + at + len(fact.input_ids))
    tokens = [*first, *text[:at], *fact.input_ids, *text[at:], *last]
    return Needle(torch.tensor([tokens]), answer, place)


def _chat(tokenizer, words: str) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        return words
    chat = [{"role": "user", "content": words}]
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def sentence_end(tokenizer, text: list[int], depth: float) -> int:
    """The place behind the first sentence that ends after `depth`, or `depth` itself."""
    wanted = int(depth * len(text))
    for place in range(wanted, len(text) - 1):
        end, then = (tokenizer.decode(token) for token in text[place : place + 2])
        if end.endswith(".") and then[:1] in (" ", "\n"):
            return place + 1
    return wanted
