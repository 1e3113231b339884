"""Prompts have the asked length, hide what they ask for, and ask for what they hide."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from anchor_lab.experiments.retrieval.prompts import TASKS, make_retrieval
from anchor_models import bundled_model_path

TOKENIZER = AutoTokenizer.from_pretrained(bundled_model_path(), local_files_only=True)
LENGTHS = (400, 700, 1100)


def text(tokens):
    return TOKENIZER.decode(tokens)


def numbers(prompt, where):
    return [text(prompt.tokens[at.start : at.stop]) for at in where]


@settings(max_examples=10)
@given(
    task=st.sampled_from(list(TASKS)),
    length=st.sampled_from(LENGTHS),
    seed=st.integers(0, 10_000),
)
def test_every_answer_stands_where_the_prompt_says_and_once_before(task, length, seed):
    prompt = make_retrieval(TOKENIZER, task, length, seed)
    assert len(prompt.tokens) == length
    assert prompt.tokens[0] == TOKENIZER.bos_token_id
    told, asked = numbers(prompt, prompt.sources), numbers(prompt, prompt.answers)
    assert told == asked
    assert all(re.fullmatch(r"\d{5}", number) for number in told)
    assert len(set(told)) == len(told)
    assert all(source.stop < prompt.answers[0].start for source in prompt.sources)
    assert list(prompt.answers) == sorted(prompt.answers, key=lambda at: at.start)
    before = text(prompt.tokens[: prompt.answers[0].start])
    assert all(before.count(number) == 1 for number in told)


@pytest.mark.parametrize(
    ("task", "facts", "questions", "form"),
    [
        ("single", 1, 1, r"number of \w+ \w+ is \d{5}"),
        ("multi-key", 4, 1, r"number of \w+ \w+ is \d{5}"),
        ("multi-query", 4, 4, r"number of \w+ \w+ is \d{5}"),
        ("multi-value", 4, 4, r"number of \w+ \w+ is \d{5}"),
        ("variable", 1, 1, r"Let \w+ \w+ = \d{5}"),
        ("variables", 4, 1, r"Let \w+ \w+ = \d{5}"),
    ],
)
def test_each_task_has_its_facts_and_its_questions(task, facts, questions, form):
    prompt = make_retrieval(TOKENIZER, task, 600, 3)
    end = re.search(r"\n(Question|Now)", text(prompt.tokens)).start()
    assert len(re.findall(form, text(prompt.tokens)[:end])) == facts
    assert len(prompt.answers) == questions


def test_one_key_has_all_values_and_many_keys_are_different():
    def keys(task):
        return set(re.findall(r"number of (\w+ \w+) is", text(make_retrieval(*args(task)).tokens)))

    def args(task):
        return TOKENIZER, task, 600, 5

    assert len(keys("multi-value")) == 1
    assert len(keys("multi-key")) == 4


@pytest.mark.parametrize(("task", "hops"), [("variable", 4), ("variables", 1)])
def test_a_chain_leads_from_the_number_to_the_name_asked_for(task, hops):
    prompt = make_retrieval(TOKENIZER, task, 600, 7)
    said = text(prompt.tokens)
    sets = re.findall(r"Let (\w+ \w+) = (\w+(?: \w+)?)\.", said)
    name, number = re.search(r"Now (\w+ \w+) is (\d+)", said).groups()
    came_from = dict(sets)
    for _ in range(hops):
        name = came_from[name]
    assert came_from[name] == number
    order = [first for first, _ in sets if first in came_from]
    assert order.index(name) <= min(order.index(x) for x, y in sets if y == name)


def test_a_list_fills_the_prompt_and_asks_for_its_own_lines():
    prompt = make_retrieval(TOKENIZER, "key-value", 1024, 0)
    lines = re.findall(r"\n (\w+ \w+): (\d{5})", text(prompt.tokens))
    first, asked = lines[:-4], lines[-4:]
    assert len(dict(first)) == len(first) > 40
    assert all(dict(first)[key] == number for key, number in asked)


def test_the_seed_the_task_and_the_length_decide_the_text():
    one, again, other = (make_retrieval(TOKENIZER, "single", 500, seed) for seed in (1, 1, 2))
    assert one.tokens.tolist() == again.tokens.tolist()
    assert one.tokens.tolist() != other.tokens.tolist()


def test_places_are_spread_over_the_text():
    prompts = [make_retrieval(TOKENIZER, "single", 400, seed) for seed in range(30)]
    places = [prompt.sources[0].start / prompt.answers[0].start for prompt in prompts]
    for low in (0, 0.25, 0.5, 0.75):
        assert sum(low <= place < low + 0.25 for place in places) >= 3


@pytest.mark.parametrize(
    ("task", "length", "words"),
    [
        ("needle", 500, "task must be one of single, multi-key.*got 'needle'"),
        ("multi-query", 60, "length must be at least .* tokens here, got 60"),
        ("key-value", 60, "length must have room for 4 lines twice, got 60"),
    ],
)
def test_bad_arguments_are_named(task, length, words):
    with pytest.raises(ValueError, match=words):
        make_retrieval(TOKENIZER, task, length)
