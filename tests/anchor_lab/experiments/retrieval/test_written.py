"""Answers read in a prompt and written after it: what is asked, and what the page says."""

import hashlib
import json
from dataclasses import replace
from itertools import islice
from math import inf

import pytest
import torch

from anchor_lab.experiments.retrieval import written as generated
from anchor_models import bundled_model_path, load_bundled
from anchor_ref import AnchorConfig
from anchor_ref.regions import groups
from tests.tree import RESULTS

CONFIG = AnchorConfig(block_size=32, step=4)
COMMITTED = RESULTS / "retrieval" / "written.json"


@pytest.fixture(scope="module")
def loaded():
    return load_bundled()


@pytest.fixture(scope="module")
def prompts(loaded):
    return list(islice(generated.asked(loaded[1], 700, CONFIG), 2))


def test_the_fact_lies_among_the_candidates_of_the_question(loaded, prompts):
    ends = set()
    for prompt in prompts:
        n = len(prompt.tokens)
        (fact,), (answer,) = prompt.sources, prompt.answers
        (last,) = (g for g in groups(CONFIG, n, n) if answer.start - 1 in g.rows)
        assert set(fact) <= set(last.candidates)
        assert torch.equal(prompt.tokens[list(fact)], prompt.tokens[list(answer)])
        assert 700 - CONFIG.block_size < n <= 700
        ends.add(n % CONFIG.block_size)
    assert len(ends) == len(prompts)


def test_dense_attention_finds_all_and_regions_alone_read_nothing(loaded, prompts):
    dense = generated.measure(loaded[0], prompts, None, CONFIG)
    assert all(dense["read"] + dense["written"])
    assert dense["density"] == 1
    regions = generated.measure(loaded[0], prompts, -inf, CONFIG)
    assert not any(regions["read"])
    assert regions["density"] < 0.3


def test_a_last_block_of_either_prompt_has_the_rows_up_to_its_end():
    assert generated._rows(127, AnchorConfig()) == 127  # the question alone
    assert generated._rows(132, AnchorConfig()) == 4  # and with its answer
    assert generated._rows(128, AnchorConfig()) == 128


def test_an_answer_counts_only_when_all_its_digits_are_right(loaded, prompts):
    loaded[0].set_attn_implementation("sdpa")
    assert generated.answers(loaded[0], prompts[0]) == (True, True)
    for place in (prompts[0].answers[0].start, prompts[0].answers[0].stop - 1):
        tokens = prompts[0].tokens.clone()
        tokens[place] = loaded[1].encode("x", add_special_tokens=False)[0]
        wrong = replace(prompts[0], tokens=tokens)
        assert generated.answers(loaded[0], wrong) == (False, False)


def test_the_page_is_made_from_the_results():
    results = json.loads(COMMITTED.read_text())
    page = COMMITTED.with_suffix(".md").read_text()
    assert page == generated.page(results)
    weights = (bundled_model_path() / "model.safetensors").read_bytes()
    assert results["model_sha256"] == hashlib.sha256(weights).hexdigest()
    assert {cell["length"] for cell in results["cells"]} == set(generated.LENGTHS)
    assert all(len(cell["read"]) == generated.PROMPTS for cell in results["cells"])
    for cell in results["cells"]:
        cell["written"] = [False] * len(cell["written"])
    assert generated.page(results) != page
