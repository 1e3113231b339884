"""Generated documents: repeatable, true to their needles, cut to the asked length."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchor_ref.activations import make_document
from anchor_ref.activations.documents import (
    HELD_OUT,
    KEY_FIRST,
    KEY_SECOND,
    filler,
    make_keys,
    make_prompt,
)

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


def test_held_out_keys_share_no_word_with_training_keys():
    for words in (KEY_FIRST, KEY_SECOND):
        assert len(set(words)) == len(words)
        assert not set(words[-HELD_OUT:]) & set(words[:-HELD_OUT])
    rng = random.Random(0)
    first, second = zip(*(key.split() for key in make_keys(400, rng)), strict=True)
    assert set(first) == set(KEY_FIRST[-HELD_OUT:])
    assert set(second) == set(KEY_SECOND[-HELD_OUT:])


def test_filler_hardly_repeats_a_sentence():
    sentences = filler(100_000, random.Random(0)).replace("\n", " ").split(". ")
    assert len(set(sentences)) > 0.9 * len(sentences)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"depths": ()}, "depths"),
        ({"depths": (1.5,)}, "depths"),
        ({"asked": 1}, "asked"),
        ({"body": "short"}, "body"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        make_document(100, **arguments)


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    from anchor_ref.activations import bundled_model_path

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
