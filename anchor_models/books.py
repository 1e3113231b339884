"""Books as tokens, split by whole book: some to train on, the others held out.

Two sources are understood: a folder of `.txt` files (every tenth book, in order of name, is held
out) and a `.jsonl.xz` file with one object a line that holds `text` and `split`.
"""

import hashlib
import io
import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Books:
    """Texts of whole books.

    Attributes:
        train: to learn from.
        held_out: to be tested on.
        sha256: of what was read.
    """

    train: list[str]
    held_out: list[str]
    sha256: str


def read_books(source: Path) -> Books:
    """Every book of a folder or file, see above.

    Raises:
        OSError: there is no such folder or file.
        ValueError: it has no book to train on, or none to hold out.
    """
    if source.is_dir():
        texts = [file.read_text(encoding="utf-8") for file in sorted(source.glob("*.txt"))]
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
        held_out = [index % 10 == 9 for index in range(len(texts))]
    else:
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        with lzma.open(source, "rt", encoding="utf-8") as lines:
            books = [json.loads(line) for line in lines]
        texts = [book["text"] for book in books]
        held_out = [book["split"] == "validation" for book in books]
    if not any(held_out) or all(held_out):
        raise ValueError(
            f"source must hold at least one book to train on and one to hold out, got {source} "
            f"with {len(texts)} books"
        )
    found = list(zip(texts, held_out, strict=True))
    return Books(
        [text for text, out in found if not out], [text for text, out in found if out], digest
    )


def encode_books(tokenizer, texts: Sequence[str]) -> list[Int[Tensor, "_"]]:
    """Token ids of each book, int32.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, which works on all cores.
        texts: of the books.
    """
    found = []
    for text in texts:
        # Paragraph by paragraph: one call on a whole book takes several gigabytes.
        lines = list(io.StringIO(text, newline="\n"))
        encoded = tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        ids = [token for line in encoded for token in line.ids]
        found.append(torch.tensor(ids, dtype=torch.int32))
    return found


def bytes_per_token(texts: Sequence[str], books: Sequence[Int[Tensor, "_"]]) -> float:
    """Mean number of bytes that a token stands for, of books as text and as `encode_books`."""
    return sum(len(text.encode()) for text in texts) / sum(map(len, books))
