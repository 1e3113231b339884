"""Books as token arrays, split by whole book.

Two sources are understood: a folder of `.txt` files (every tenth book, in order of name, is held
out) and a `.jsonl.xz` file with one object a line that holds `text` and `split`.
"""

import hashlib
import json
import lzma
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """Token arrays, uint16, one for each book."""

    train: list[np.ndarray]
    validation: list[np.ndarray]
    validation_bytes: list[int]
    sha256: str


def read_books(source: Path) -> tuple[dict[str, list[str]], str]:
    """Texts by split, and the SHA-256 of what was read."""
    if source.is_dir():
        files = sorted(source.glob("*.txt"))
        texts = [file.read_text(encoding="utf-8") for file in files]
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
    split = {
        "train": [text for text, out in zip(texts, held_out, strict=True) if not out],
        "validation": [text for text, out in zip(texts, held_out, strict=True) if out],
    }
    return split, digest


def load_corpus(source: Path, tokenizer_file: Path, processes: int) -> Corpus:
    """Read and encode every book, in parallel."""
    split, digest = read_books(source)
    encode = partial(_encode, str(tokenizer_file))
    with ProcessPoolExecutor(processes) as pool:
        train = list(pool.map(encode, split["train"]))
        validation = list(pool.map(encode, split["validation"]))
    sizes = [len(text.encode()) for text in split["validation"]]
    return Corpus(train, validation, sizes, digest)


def _encode(tokenizer_file: str, text: str) -> np.ndarray:
    tokenizer = Tokenizer.from_file(tokenizer_file)
    # Paragraph by paragraph: one call on a whole book takes several gigabytes.
    parts = text.split("\n")
    lines = [line + "\n" for line in parts[:-1]] + parts[-1:]
    encoded = tokenizer.encode_batch_fast(lines, add_special_tokens=False)
    return np.concatenate([np.asarray(line.ids, dtype=np.uint16) for line in encoded])
