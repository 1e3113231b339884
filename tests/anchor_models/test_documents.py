"""Generated documents: repeatable, true to their needles, cut to the asked length."""

import random

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from anchor_models import bundled_model_path, make_document
from anchor_models.documents import (
    HELD_OUT,
    KEY_FIRST,
    KEY_SECOND,
    STATEMENTS,
    filler,
    make_keys,
    make_prompt,
)

BODY = filler(3000, random.Random(0))
depth_lists = st.lists(st.floats(0, 1), min_size=1, max_size=6).map(tuple)


@given(seed=st.integers(0, 2**31), depths=depth_lists, n=st.integers(0, 3000))
def test_every_needle_stands_in_the_text_once_and_the_answer_is_the_asked_one(seed, depths, n):
    asked = seed % len(depths)
    document = make_document(n, seed, depths=depths, asked=asked)
    body = document.text.split("\nQuestion:")[0]
    assert len(document.needles) == len(depths)
    for needle in document.needles:
        assert (
            body.count(f"the number of {needle.key} is {needle.value}".lower())
            + body.count(f"The number of {needle.key} is {needle.value}")
            == 1
        )
    assert document.needles[document.asked].value == document.answer
    assert document.text.endswith(f"the number of {document.needles[document.asked].key} is ")


@given(seed=st.integers(0, 2**31))
def test_a_seed_gives_one_document_and_another_seed_another(seed):
    assert make_document(500, seed) == make_document(500, seed)
    assert make_document(500, seed) != make_document(500, seed + 1)


def test_needles_stand_at_their_depth():
    for depth in (0.0, 0.3, 0.7, 1.0):
        document = make_document(20_000, 3, depths=(depth,))
        place = document.text.index(document.needles[0].value) / document.text.index("\nQuestion")
        assert abs(place - depth) < 0.02, (depth, place)


@given(seed=st.integers(0, 2**31), depths=depth_lists, n=st.integers(0, 3000))
def test_needles_stand_in_order_at_the_first_sentence_end_after_their_depth(seed, depths, n):
    document = make_document(n, seed, depths=depths, asked=seed % len(depths), body=BODY)
    text = document.text[: document.text.index("\nQuestion")]
    assert [needle.depth for needle in document.needles] == sorted(depths)
    assert document.needles[document.asked].depth == depths[seed % len(depths)]
    told = 0
    for needle in document.needles:
        said = [words.format(key=needle.key, value=needle.value) for words in STATEMENTS]
        (statement,) = (words for words in said if words in text)
        at = text.index(statement) - told  # characters of filler before it
        told += len(statement)
        wanted = round(needle.depth * n)
        assert at >= wanted
        assert at in (0, n) or BODY[at - 1 : at + 1] == ". "
        assert at == 0 or ". " not in BODY[max(wanted - 1, 0) : at]
    assert len(text) == n + told


def test_held_out_keys_share_no_word_with_training_keys():
    for words in (KEY_FIRST, KEY_SECOND):
        assert len(set(words)) == len(words)
        assert not set(words[-HELD_OUT:]) & set(words[:-HELD_OUT])
    for drawn, part in (
        (make_keys(400, random.Random(0)), slice(-HELD_OUT, None)),
        (make_keys(5000, random.Random(0), held_out=False), slice(None, -HELD_OUT)),
    ):
        assert len(set(drawn)) == len(drawn)
        first, second = zip(*(key.split() for key in drawn), strict=True)
        assert set(first) == set(KEY_FIRST[part])
        assert set(second) == set(KEY_SECOND[part])


@pytest.mark.parametrize("held_out", [True, False])
def test_a_document_names_keys_of_the_words_asked_for(held_out, tokenizer):
    part = slice(-HELD_OUT, None) if held_out else slice(None, -HELD_OUT)
    depths = (0.1, 0.3, 0.5, 0.7, 0.9)
    _, prompt = make_prompt(tokenizer, 500, depths=depths, held_out=held_out)
    for document in (prompt, make_document(500, depths=depths, held_out=held_out)):
        for needle in document.needles:
            first, second = needle.key.split()
            assert first in KEY_FIRST[part]
            assert second in KEY_SECOND[part]


def test_filler_hardly_repeats_a_sentence():
    sentences = filler(100_000, random.Random(0)).replace("\n", " ").split(". ")
    assert len(set(sentences)) > 0.9 * len(sentences)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"n_characters": -1}, "n_characters"),
        ({"depths": ()}, "depths"),
        ({"depths": (1.5,)}, "depths"),
        ({"asked": 1}, "asked"),
        ({"body": "short"}, "body"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        make_document(**{"n_characters": 100, **arguments})


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(bundled_model_path())


@pytest.mark.parametrize("n_tokens", [64, 500, 2048, 4096])
def test_a_prompt_fills_its_tokens_and_never_exceeds_them(tokenizer, n_tokens):
    for seed in range(3):
        ids, document = make_prompt(tokenizer, n_tokens, seed)
        assert n_tokens - 16 <= len(ids) <= n_tokens
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == document.text


def test_a_prompt_too_short_for_its_question_is_refused(tokenizer):
    with pytest.raises(ValueError, match="n_tokens must be at least"):
        make_prompt(tokenizer, 20)


def test_a_tokenizer_without_bos_gives_a_prompt_without_it():
    path = bundled_model_path()
    without = transformers.AutoTokenizer.from_pretrained(path, bos_token=None)
    assert without.bos_token_id is None
    ids, document = make_prompt(without, 300)
    assert 300 - 16 <= len(ids) <= 300
    assert without.decode(ids) == document.text


def test_a_prompt_without_a_tokenizer_is_refused():
    with pytest.raises(TypeError, match="tokenizer must be a transformers tokenizer, got NoneTyp"):
        make_prompt(None, 300)
