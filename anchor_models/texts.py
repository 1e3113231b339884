"""What a model is given to read: made up on the spot, or anyone's own text."""

import hashlib
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from anchor_models.documents import filler, make_prompt

DOCUMENT, RETRIEVAL = "document", "retrieval"
DEPTHS = (0.1, 0.3, 0.55)  # where the numbers stand in a retrieval prompt
LENGTH = 4096  # of made-up texts, unless asked for otherwise


@dataclass(frozen=True, eq=False)
class Text:
    """A prompt and where it is from.

    Attributes:
        name: "document", "retrieval", a file's name, or "-" for standard input.
        tokens: `[1, N]` int64.
    """

    name: str
    tokens: Int[Tensor, "1 N"]

    @property
    def sha256(self) -> str:
        """Of the token ids, so that the same words under another tokenizer are another text."""
        ids = " ".join(str(token) for token in self.tokens[0].tolist())
        return hashlib.sha256(ids.encode()).hexdigest()


def read_text(source: str | Path, tokenizer, length: int | None = None, seed: int = 0) -> Text:
    """A prompt of a given number of tokens.

    Args:
        source: "document" for made-up prose, "retrieval" for the same with three numbers in it and
            a question about the second, "-" for standard input, else a text file in UTF-8.
        tokenizer: a transformers tokenizer.
        length: N, tokens. A longer text is cut; None takes all of a file and `LENGTH` of what is
            made up. A retrieval prompt ends with its question and may be up to 16 tokens shorter.
        seed: of what is made up.

    Raises:
        OSError: the file cannot be read.
        ValueError: `length` is below 1, the text is shorter or empty, or is no UTF-8.
    """
    if length is not None and length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    name = str(source)
    if name == RETRIEVAL:
        ids, _ = make_prompt(tokenizer, length or LENGTH, seed, depths=DEPTHS, asked=1)
        return Text(name, torch.tensor([ids]))
    if name == DOCUMENT:
        length = length or LENGTH
        words = filler(8 * length, random.Random(seed))  # no English text has 8 letters a token
    else:
        words = _read(name)
        name = Path(name).name
    if not words.strip():
        raise ValueError(f"text must not be empty, got {name}")
    ids = tokenizer(words, verbose=False).input_ids  # it may be cut: no warning of its length
    if length is not None and len(ids) < length:
        raise ValueError(f"text must have at least {length} tokens, {name} has {len(ids)}")
    return Text(name, torch.tensor([ids[:length]]))


def _read(name: str) -> str:
    """The text of a file or of standard input: UTF-8 in any locale, with or without its mark."""
    if name == "-" and not hasattr(sys.stdin, "buffer"):
        return sys.stdin.read()  # a stream of text that stands in for it
    found = sys.stdin.buffer.read() if name == "-" else Path(name).expanduser().read_bytes()
    try:
        return found.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"text must be UTF-8, {name} is not: {error}") from error
