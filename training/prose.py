"""Prose that the bundled model made up, for prompts that hide a fact in it.

    python -m training.prose                             writes anchor_models/prose.txt; 4 minutes
    python -m training.prose --corpus books.jsonl.xz     and counts runs of words that are in books

Sentences filled from lists (`anchor_models.documents.filler`) are alike, and a small model that
searches them takes one for another. What the bundled model writes after the first words of a
chapter has the variety of the novels that it was trained on, and no sense, and is nobody's text.
"""

import argparse
import random
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from anchor_models import load_bundled
from anchor_models.books import read_books
from anchor_models.documents import PROSE, WORDS

CHARACTERS = 150_000
OPENINGS = (
    '"My dear {first}," said {second}, laying down the letter with a sigh, "I have considered the '
    "matter, and",
    "The morning after the events of the last chapter {first} had gone down to the river alone, "
    "for",
    "It was not until the winter that {first} heard again from {second}; and the news, when it "
    "came,",
    "The house in which {first} was born stood at the end of a long lane, and",
    "{first} was the eldest of three, and when their father had gone abroad with {second}",
    "Nobody in the town remembered when {first} and {second} had first been seen together;",
)
NEW_TOKENS, TEMPERATURE, TOP_P = 900, 0.95, 0.95
# A paragraph with one of these could be taken for a fact or a question of a prompt.
NOT_IN = re.compile(r"\d|number|password|secret|question|answer", re.IGNORECASE)
RUN = 10  # words


def write_prose(characters: int, seed: int = 0) -> Iterator[str]:
    """Paragraphs, until they have so many characters together."""
    model, tokenizer = load_bundled()
    rng, written = random.Random(seed), 0
    torch.manual_seed(seed)
    while written < characters:
        first, second = rng.sample(WORDS["names"], 2)
        begun = rng.choice(OPENINGS).format(first=first, second=second)
        ids = tokenizer(begun, return_tensors="pt").input_ids
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            eos_token_id=None,
            pad_token_id=0,
        )
        text = tokenizer.decode(out[0], skip_special_tokens=True)
        for paragraph in whole_paragraphs(text):
            written += len(paragraph) + 1
            yield paragraph


def whole_paragraphs(text: str) -> list[str]:
    """Those that came to an end, without what a prompt could be mistaken about; one line each."""
    text = text[: text.rfind(".") + 1]
    lines = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [line for line in lines if line and line[-1] in '."?!' and not NOT_IN.search(line)]


def runs_in(text: str, books: list[str], length: int = RUN) -> set[str]:
    """Runs of so many words of a text that are in one of the books, small letters, no signs."""

    def runs(of: str) -> Iterator[str]:
        words = re.findall(r"[a-z']+", of.lower())
        return (" ".join(words[at : at + length]) for at in range(len(words) - length + 1))

    own = set(runs(text))
    return {run for book in books for run in runs(book) if run in own}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--characters", type=int, default=CHARACTERS)
    parser.add_argument("--out", type=Path, default=PROSE)
    parser.add_argument("--corpus", type=Path, help="folder of .txt, or .jsonl.xz")
    options = parser.parse_args()
    text = "\n".join(write_prose(options.characters)) + "\n"
    options.out.write_text(text, encoding="utf-8")
    print(f"{options.out} is written, {len(text)} characters")
    if options.corpus is not None:
        books = read_books(options.corpus)
        found = runs_in(text, books.train + books.held_out)
        print(f"{len(found)} runs of {RUN} words are in these books")


if __name__ == "__main__":
    main()
