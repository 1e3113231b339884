"""Prompts: exactly as long as asked for, with the fact and the question where they say."""

import pytest
import torch
from transformers import AutoTokenizer

from anchor_lab.experiments.answers.ask import NEW_TOKENS
from anchor_lab.experiments.answers.prompts import (
    MOST_INSTRUCTIONS,
    PLACEMENTS,
    TASKS,
    make_prompt,
)
from anchor_models import bundled_model_path

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def plain():
    return AutoTokenizer.from_pretrained(bundled_model_path())


@pytest.fixture(scope="module")
def chat():
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(params=["plain", "chat"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_prompt_holds_what_it_says_where_it_says(tokenizer, task, placement):
    for seed in range(3):
        prompt = make_prompt(tokenizer, task, 1200, seed, placement)
        ids = prompt.tokens[0]
        assert prompt.tokens.shape == (1, 1200)
        assert prompt.tokens.dtype == torch.int64
        said = [tokenizer.decode(ids[place.start : place.stop]) for place in prompt.facts]
        assert prompt.answer in said[0]
        # What is asked for stands once, in the fact, and nowhere behind it.
        assert tokenizer.decode(ids).count(prompt.answer) == 1
        assert all(place.stop <= prompt.document for place in prompt.facts)
        question = tokenizer.decode(ids[prompt.question.start : prompt.question.stop])
        key = said[-1].split(" = ")[0].rpartition("Let ")[2] if task == "variable" else ""
        assert key in question
        assert prompt.document <= prompt.question.start < prompt.question.stop <= 1200


def test_everything_follows_from_the_seed(plain):
    one, again = (make_prompt(plain, "single", 600, 5) for _ in range(2))
    assert torch.equal(one.tokens, again.tokens)
    others = [
        make_prompt(plain, "single", 600, 6),
        make_prompt(plain, "single", 600, 5, "turn"),
        make_prompt(plain, "multi-key", 600, 5),
    ]
    assert all(one.answer != other.answer for other in others)


def test_what_follows_the_question_depends_on_the_placement(chat):
    words = {}
    for placement in PLACEMENTS:
        prompt = make_prompt(chat, "words", 1200, 1, placement)
        ids = prompt.tokens[0].tolist()
        words[placement] = chat.decode(ids[prompt.document :])
        after = len(ids) - prompt.question.stop
        if placement == "instructions":
            assert 100 <= after <= MOST_INSTRUCTIONS + 60
        else:
            assert after < 60
    assert "<user>" in words["turn"]
    assert "I have read" in words["turn"]
    assert "<user>" not in words["end"] + words["instructions"]
    begun = "</user><assistant>The password of "
    assert all(begun in said and said.endswith(' is "') for said in words.values())


def test_instructions_differ_in_length_and_none_is_beyond_the_most(chat):
    counts = []
    for seed in range(12):
        end, more = (
            make_prompt(chat, "single", 1500, seed, placement)
            for placement in ("end", "instructions")
        )
        counts.append(1500 - more.question.stop - (1500 - end.question.stop))
    assert max(counts) <= MOST_INSTRUCTIONS + 2
    assert min(counts) >= 60
    assert max(counts) - min(counts) > 100


def test_of_several_keys_the_one_that_is_asked_for_is_the_fact(plain):
    for seed in range(4):
        prompt = make_prompt(plain, "multi-key", 700, seed)
        (place,) = prompt.facts
        fact, question = (
            plain.decode(prompt.tokens[0, where.start : where.stop])
            for where in (place, prompt.question)
        )
        key = question.removeprefix("Question: what is the number of ").rstrip("?")
        assert f"number of {key} is {prompt.answer}" in fact


def test_an_answer_is_found_in_any_letters_and_only_whole(plain):
    prompt = make_prompt(plain, "words", 600, 0)
    assert prompt.found(f'It is "{prompt.answer.upper()}".')
    assert not prompt.found(prompt.answer[:-1])


def test_every_answer_fits_into_what_a_model_writes(plain):
    longest = max(
        len(plain(make_prompt(plain, task, 600, seed).answer).input_ids)
        for task in TASKS
        for seed in range(10)
    )
    assert longest < NEW_TOKENS  # and one more, which ends it


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"task": "maths"},
            "task must be one of single, multi-key, words, secret, variable, got 'maths'",
        ),
        ({"placement": "start"}, "placement must be one of end, instructions, turn, got 'start'"),
        ({"length": 20}, "length must be at least .* for task 'single' and placement 'end', got"),
    ],
)
def test_what_cannot_be_made_is_refused(plain, given, message):
    asked = {"task": "single", "length": 600, "placement": "end"} | given
    with pytest.raises(ValueError, match=message):
        make_prompt(plain, asked["task"], asked["length"], 0, asked["placement"])
