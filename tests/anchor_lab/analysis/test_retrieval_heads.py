"""Heads that fetch facts: their mass by hand, the bundled model's, and the thresholds made."""

from dataclasses import dataclass

import pytest
import torch

from anchor_lab.analysis import retrieval_heads
from anchor_lab.analysis.retrieval_heads import (
    RetrievalHeads,
    fact_mass,
    find_retrieval_heads,
    thetas_for,
)
from anchor_lab.experiments.answers.prompts import make_prompt
from anchor_models import Calibration, Captured, load_bundled
from anchor_models.transformers import options
from anchor_ref import AnchorConfig


@dataclass
class Hidden:
    tokens: torch.Tensor
    facts: tuple
    document: int


def test_mass_is_the_most_that_a_row_which_asks_gives_to_all_facts():
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 30, 8, generator=random) for heads in (4, 2))
    prompt = Hidden(torch.zeros(1, 30).long(), (range(3, 6), range(10, 12)), 24)
    found = fact_mass(Captured(q, k, k, 0.7, layer=0), prompt)
    for head in range(4):
        by_row = []
        for row in range(24, 30):
            scores = [0.7 * float(q[0, head, row] @ k[0, head // 2, j]) for j in range(row + 1)]
            weights = torch.tensor(scores).softmax(0)
            by_row.append(float(weights[3:6].sum() + weights[10:12].sum()))
        assert float(found[head]) == pytest.approx(max(by_row), abs=1e-5)


@pytest.fixture(scope="module")
def prompts():
    tokenizer = load_bundled()[1]
    return [make_prompt(tokenizer, "single", 700, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def found(prompts):
    return find_retrieval_heads(load_bundled()[0], prompts)


def test_the_bundled_model_has_those_of_its_card(found):
    assert {(5, 1), (6, 7), (7, 5)} <= set(found.heads)
    assert [(layer, len(row)) for layer, row in found.mass.items()] == [
        (layer, 8) for layer in range(8)
    ]
    masses = [found.mass[layer][head] for layer, head in found.heads]
    assert masses == sorted(masses, reverse=True)
    assert min(masses) >= 0.1
    assert len(found.heads) <= 6
    assert "of 64 heads fetch facts: layer " in found.in_words()


def test_means_are_over_the_prompts(found, prompts):
    model = load_bundled()[0]
    alone = [find_retrieval_heads(model, [prompt]).mass for prompt in prompts]
    for layer, row in found.mass.items():
        expected = [(a + b) / 2 for a, b in zip(*(x[layer] for x in alone), strict=True)]
        assert row == pytest.approx(expected, abs=1e-6)


def test_shares_bound_what_is_found(prompts):
    model = load_bundled()[0]
    strong = find_retrieval_heads(model, prompts[:1], share=0.5, most=1.0)
    assert all(strong.mass[layer][head] >= 0.5 for layer, head in strong.heads)
    few = find_retrieval_heads(model, prompts[:1], share=1e-6, most=3 / 64)
    assert len(few.heads) == 3


def test_a_head_that_no_fact_reaches_is_none():
    none = RetrievalHeads({0: (0.02, 0.05)}, ())
    assert none.in_words() == "none of 2 heads fetches facts, the most mass on one is 0.05"


def test_thresholds_are_those_of_options(found):
    model = load_bundled()[0]
    table = thetas_for(model, 9.0, found.heads)
    for layer, row in table.items():
        for head, theta in enumerate(row):
            assert theta == (float("inf") if (layer, head) in found.heads else 9.0)
    with options(theta=table) as chosen:
        assert chosen.theta(5, 8)[1] == float("inf")
    assert thetas_for(model, 9.0, [(2, 3)], raised=15.0)[2][3] == 15.0
    # A threshold is raised, never lowered.
    assert thetas_for(model, 20.0, [(2, 3)], raised=15.0)[2][3] == 20.0


def test_a_calibration_keeps_its_other_thresholds():
    model = load_bundled()[0]
    table = {layer: tuple(float(layer + head) for head in range(8)) for layer in range(8)}
    ones = dict.fromkeys(range(8), (1.0,) * 8)
    made = Calibration(table, 0.9, ones, ones, AnchorConfig(), (4096, 4096))
    expected = {**table, 4: (*table[4][:2], float("inf"), *table[4][3:])}
    assert thetas_for(model, made, [(4, 2)]) == thetas_for(model, table, [(4, 2)]) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": []}, "prompts must be at least one, got none"),
        ({"share": 0.0}, r"share must be in \(0, 1\), got 0.0"),
        ({"most": 1.5}, r"most must be in \(0, 1\], got 1.5"),
        (
            {"prompts": [Hidden(torch.arange(3, 40)[None], (), 30)]},
            "prompts must have facts and rows that ask, got 0 facts",
        ),
    ],
)
def test_what_cannot_be_looked_for_is_refused(prompts, given, message):
    with pytest.raises(ValueError, match=message):
        find_retrieval_heads(load_bundled()[0], **{"prompts": prompts, **given})


@pytest.mark.parametrize(
    ("theta", "heads", "message"),
    [
        (9.0, [(8, 0)], "heads must be of layers 0..7 and heads 0..7, got layer 8 head 0"),
        (9.0, [(0, 8)], "got layer 0 head 8"),
        ({0: (1.0,) * 8}, [], "theta must have an entry for each layer, got none for 1"),
    ],
)
def test_heads_that_a_model_has_not_are_refused(theta, heads, message):
    with pytest.raises(ValueError, match=message):
        thetas_for(load_bundled()[0], theta, heads)


def test_layers_that_are_no_plain_attention_are_left_out(monkeypatch):
    x = torch.randn(1, 1, 4, 2)
    layers = {0: Captured(x, x, x, 1.0, sliding_window=2), 1: Captured(x, x, x, 1.0)}
    monkeypatch.setattr(retrieval_heads, "capture_qkv", lambda *given, **more: layers)
    prompt = Hidden(torch.zeros(1, 4).long(), (range(1),), 2)
    assert list(find_retrieval_heads(load_bundled()[0], [prompt]).mass) == [1]
