"""Answers read in a prompt and written after it: what is asked, and what the page says."""

import hashlib
from dataclasses import replace
from itertools import islice
from math import inf

import pytest
import torch

from anchor_lab.__main__ import main
from anchor_lab.experiments.retrieval import written
from anchor_lab.experiments.store import read
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
    return list(islice(written.asked(loaded[1], 700, CONFIG), 2))


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
    dense = written.measure(loaded[0], prompts, None, CONFIG)
    assert all(dense["read"] + dense["written"])
    assert dense["density"] == 1
    regions = written.measure(loaded[0], prompts, -inf, CONFIG)
    assert not any(regions["read"])
    assert regions["density"] < 0.3


def test_a_last_block_of_either_prompt_has_the_rows_up_to_its_end():
    assert written._rows(127, AnchorConfig()) == 127  # the question alone
    assert written._rows(132, AnchorConfig()) == 4  # and with its answer
    assert written._rows(128, AnchorConfig()) == 128


def test_an_answer_counts_only_when_all_its_digits_are_right(loaded, prompts):
    loaded[0].set_attn_implementation("sdpa")
    assert written.answers(loaded[0], prompts[0]) == (True, True)
    for place in (prompts[0].answers[0].start, prompts[0].answers[0].stop - 1):
        tokens = prompts[0].tokens.clone()
        tokens[place] = loaded[1].encode("x", add_special_tokens=False)[0]
        wrong = replace(prompts[0], tokens=tokens)
        assert written.answers(loaded[0], wrong) == (False, False)


def test_the_page_is_made_from_the_results():
    results, path = read(COMMITTED), COMMITTED.with_suffix(".md")
    page = path.read_text()
    assert page == written.page(results, path)
    weights = (bundled_model_path() / "model.safetensors").read_bytes()
    assert results["settings"]["model_sha256"] == hashlib.sha256(weights).hexdigest()
    prompts = {row["length"]: len(row["read"]) for row in results["rows"]}
    assert prompts == written.PROMPTS
    assert len(results["rows"]) == len(prompts) * len(written.THETAS)
    for row in results["rows"]:
        row["written"] = [False] * len(row["written"])
    assert written.page(results, path) != page


def test_the_page_names_dtype_and_backend_where_they_were_recorded():
    results, path = read(COMMITTED), COMMITTED.with_suffix(".md")
    assert "for the bundled model.\n" in path.read_text()
    assert "does the prefill;\n" in path.read_text()
    results["settings"] |= {"dtype": "bfloat16", "backend": "triton"}
    page = written.page(results, path)
    assert "for the bundled model in bfloat16.\n" in page
    assert "does the prefill (the kernels);\n" in page


def test_the_command_asks_and_writes_and_asks_nothing_twice(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(written, "QUICK", {2300: 1})
    out = tmp_path / "quick.json"
    call = ["written", "--quick", "--device", "cpu", "--out", str(out)]
    assert main(call) == 0
    results = read(out)
    dense, regions = results["rows"]
    assert (dense["theta"], regions["theta"]) == (None, "-inf")
    assert dense["read"] == dense["written"] == [True]
    assert regions["read"] == [False]
    assert 0 < regions["density"] < 1
    assert results["settings"]["backend"] == "torch"
    assert results["settings"]["dtype"] == "float32"
    assert results["settings"]["prompts"] == {"2300": 1}
    page = out.with_suffix(".md").read_text()
    assert "in float32" in page
    assert "(the reference)" in page
    assert "| 2300 | θ = −∞ |" in page
    capsys.readouterr()
    monkeypatch.setattr(written, "measure", None)
    assert main(call) == 0
    assert read(out) == results
