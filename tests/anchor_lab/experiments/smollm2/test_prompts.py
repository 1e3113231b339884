"""What the real model reads: a number at its place, a prompt of its length, the course's prose."""

import json

import pytest

from anchor_lab.experiments.smollm2.prompts import NAMES, course_text, needle, repository_text
from anchor_models import load_bundled
from tests.tree import ROOT

TEMPLATE = "{% for m in messages %}<|bos|>{{ m.content }}\n{% endfor %}Answer: "


@pytest.fixture(scope="module")
def tokenizer():
    return load_bundled()[1]


@pytest.fixture(scope="module")
def body(tokenizer) -> list[int]:
    """Tokens of a text without a full stop: a number in it is the hidden one."""
    return tokenizer(
        "the harbour was quiet and the sea " * 200, add_special_tokens=False
    ).input_ids


@pytest.fixture(params=[None, TEMPLATE], ids=["bare", "chat"])
def talking(request, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", request.param)
    return tokenizer


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("length", [128, 500])
def test_a_prompt_has_its_length_and_says_the_number_at_its_place_alone(
    talking, body, length, begun
):
    for seed in range(5):
        prompt = needle(talking, body, length, seed, begun=begun)
        assert prompt.tokens.shape == (1, length)
        fact = talking.decode(prompt.tokens[0, prompt.place.start : prompt.place.stop])
        (name,) = [name for name in NAMES if name in fact]
        assert fact == f" The access number of the {name} is {prompt.answer}."
        assert 10_000 <= int(prompt.answer) < 100_000
        whole = talking.decode(prompt.tokens[0])
        assert whole.count(prompt.answer) == 1
        assert f"Question: What is the access number of the {name}?" in whole
        assert "Read the following text." in whole
        assert "\x00" not in whole
        said = f"The access number of the {name} is"
        assert whole.endswith(said) == begun


def test_in_a_chat_the_answer_begins_behind_the_template(tokenizer, body, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    for begun in (False, True):
        words = tokenizer.decode(needle(tokenizer, body, 128, 0, begun=begun).tokens[0])
        assert words.startswith("<|bos|>Read the following text.")
        assert "number alone.\nAnswer: " in words
        assert words.endswith("Answer: ") != begun


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_without_a_sentence_to_end_the_fact_stands_at_its_depth(tokenizer, body, depth):
    prompt = needle(tokenizer, body, 400, 3, depth, start=0)
    first = len(tokenizer("Read the following text.\n\n", add_special_tokens=False).input_ids)
    last = needle(tokenizer, body, 400, 3, 1.0, start=0).place.start - first  # the whole text
    assert prompt.place.start == first + int(depth * last)
    before, behind = prompt.tokens[0, first : prompt.place.start], prompt.place.stop
    text = [*before.tolist(), *prompt.tokens[0, behind : behind + last - len(before)].tolist()]
    assert text == body[:last]


def test_a_fact_never_breaks_a_sentence(tokenizer):
    words = "One v2.5.1 two a.b three. "  # a point inside a word ends nothing
    text = tokenizer(words * 30, add_special_tokens=False).input_ids
    for depth in (0.0, 0.3, 0.61):
        prompt = needle(tokenizer, text, 160, 0, depth, start=0)
        assert tokenizer.decode(prompt.tokens[0, : prompt.place.start]).endswith("three.")


def test_a_seed_is_one_prompt_and_what_is_given_is_not_drawn(tokenizer, body):
    prompt, again = (needle(tokenizer, body, 300, 7) for _ in range(2))
    assert prompt.tokens.tolist() == again.tokens.tolist()
    assert (prompt.answer, prompt.place) == (again.answer, again.place)
    assert prompt.answer != needle(tokenizer, body, 300, 8).answer
    # Neither start nor depth takes a draw from the other.
    assert needle(tokenizer, body, 300, 7, start=0).place == prompt.place


def test_a_text_is_just_long_enough_or_refused_by_its_length(tokenizer, body):
    prompt = needle(tokenizer, body, 300, 0, 1.0, start=0)
    first = len(tokenizer("Read the following text.\n\n", add_special_tokens=False).input_ids)
    room = prompt.place.start - first
    assert needle(tokenizer, body[:room], 300, 0).tokens.shape == (1, 300)
    message = f"body must have at least {room} tokens for 300, got"
    with pytest.raises(ValueError, match=f"{message} {room - 1}"):
        needle(tokenizer, body[: room - 1], 300, 0)
    with pytest.raises(ValueError, match=f"{message} {room - 1}"):  # behind where it begins
        needle(tokenizer, body[:room], 300, 0, start=1)


def test_a_length_without_room_for_a_text_is_refused(tokenizer, body):
    prompt = needle(tokenizer, body, 300, 0, 1.0, start=0)
    first = len(tokenizer("Read the following text.\n\n", add_special_tokens=False).input_ids)
    least = 300 - (prompt.place.start - first) + 1
    assert needle(tokenizer, body, least, 0).tokens.shape == (1, least)
    with pytest.raises(ValueError, match=f"length must be at least {least}, got {least - 1}"):
        needle(tokenizer, body, least - 1, 0)


# -- the text


def write_notebook(folder, name, *cells):
    folder.mkdir(exist_ok=True)
    found = [{"cell_type": kind, "source": [text]} for kind, text in cells]
    (folder / f"{name}.ipynb").write_text(json.dumps({"cells": found}), encoding="utf-8")


def test_of_a_notebook_the_prose_is_read_and_nothing_else(tmp_path):
    write_notebook(
        tmp_path / "notebooks",
        "01_a",
        (
            "markdown",
            "# Title\n\nWhat is θ?\n| a | b |\n$$x$$\n    code\n<img>\n[a](b)\n\n\n\nIt is 12.",
        ),
        ("code", "print('no prose')"),
    )
    write_notebook(tmp_path / "notebooks", "02_b", ("markdown", "Second."))
    write_notebook(tmp_path / "notebooks", "draft", ("markdown", "No chapter."))
    lines = [line for line in course_text(tmp_path).splitlines() if line]
    assert lines == ["What is θ?", "It is 12.", "Second."]
    assert "\n\n\n" not in course_text(tmp_path).partition("Second")[0].rstrip()


def test_the_repository_is_the_course_the_pages_and_the_sources_in_order(tmp_path):
    write_notebook(tmp_path / "notebooks", "01_a", ("markdown", "Course."))
    for name in ("docs/how-to/page.md", "anchor_ref/a.py", "anchor_models/b.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "anchor_lab").mkdir()
    assert repository_text(tmp_path).split() == [
        *("Course.", "docs/how-to/page.md", "anchor_ref/a.py", "anchor_models/b.py")
    ]


def test_without_a_checkout_it_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="the repository's notebooks must lie in"):
        course_text(tmp_path)


def test_the_course_is_long_enough_to_be_read():
    assert len(course_text(ROOT)) > 4 * 8192
