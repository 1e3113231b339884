"""Prose that the bundled model makes up: what is kept of it, and that none of it is a book's."""

import random

from anchor_models.documents import PROSE, prose
from training.prose import NOT_IN, runs_in, whole_paragraphs, write_prose


def test_only_whole_paragraphs_without_facts_and_questions_are_kept():
    text = (
        "CHAPTER\n\nShe sat\ndown, and he rose.\n\n“Why?”\n\nHe was 30 years old.\n\n"
        'What was the Answer?\n\n"I see."\n\nIt was late. And the'
    )
    assert whole_paragraphs(text) == ["She sat down, and he rose.", '"I see."', "It was late."]


def test_runs_of_words_are_found_in_any_letters_and_across_signs():
    books = ["It was late; and the King, who slept, heard nothing of it.", "Nothing of it."]
    text = "THE KING who slept heard a noise. Nothing of it."
    assert runs_in(text, books, 5) == {"the king who slept heard"}
    assert runs_in(text, books, 3) >= {"the king who", "nothing of it"}
    assert runs_in(text, books, 6) == set()


def test_the_model_writes_as_much_as_is_asked_for(monkeypatch):
    monkeypatch.setattr("training.prose.NEW_TOKENS", 120)
    found = list(write_prose(300))
    assert sum(map(len, found)) + len(found) >= 300
    assert not any("\n" in one or NOT_IN.search(one) for one in found)


def test_what_is_committed_is_long_varied_and_tells_no_fact():
    text = PROSE.read_text("utf-8")
    lines = text.splitlines()
    assert len(text) > 140_000
    assert lines == whole_paragraphs("\n\n".join(lines))
    assert len(set(lines)) > 0.97 * len(lines)


def test_prose_begins_at_a_drawn_paragraph_and_goes_round():
    lines = PROSE.read_text("utf-8").splitlines()
    whole = sum(map(len, lines)) + len(lines)
    found = prose(whole + 2000, random.Random(1)).splitlines()
    first = lines.index(found[0])
    assert found[: len(lines) - first] == lines[first:]
    assert found[len(lines) - first : len(lines)] == lines[:first]
    assert len(found) > len(lines)
    others = {prose(10, random.Random(seed)) for seed in range(9)}
    assert len(others) > 5
