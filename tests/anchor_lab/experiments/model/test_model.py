"""The evaluation of the bundled model: its prompts, its measures, its card; does it answer?"""

import hashlib
import json
import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from anchor_lab.experiments.model import heads, measure
from anchor_lab.experiments.model.measure import part_of
from anchor_lab.experiments.model.page import EXPERIMENT, read_log
from anchor_lab.experiments.model.prompts import answered_as, needle_pairs, needle_prompt
from anchor_lab.experiments.store import read
from anchor_models import bundled_model_path, load_bundled
from anchor_models.capture import Captured
from anchor_models.documents import filler, make_prompt
from anchor_models.rows import BOS, Rows
from anchor_ref import AnchorConfig
from anchor_ref.attention import anchor_attention
from tests.tree import RESULTS, ROOT

TOKENIZER = Tokenizer.from_file(str(bundled_model_path() / "tokenizer.json"))
EVALUATION = RESULTS / "model" / "evaluation.json"


@cache
def rows() -> Rows:
    """One for all tests: its filler takes a second to encode."""
    rng = np.random.default_rng(0)
    books = [torch.from_numpy(rng.integers(3, 4096, 9000)).int() for _ in range(3)]
    return Rows(books, TOKENIZER, 1, held_out=True)


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.75, 1.0])
def test_the_fact_asked_for_stands_at_its_depth(depth):
    prompt = needle_prompt(rows(), 2048, depth, 3)
    assert prompt.tokens.shape == (2048,)
    # The facts and the question take up to 120 tokens of the row.
    assert places_told(prompt) == [pytest.approx(depth * 2048, abs=120)]
    assert places_told(needle_prompt(rows(), 2048, depth, 3, needle=False)) == []


def places_told(prompt) -> list[int]:
    """Where the answer of the only question stands before that question."""
    (place,) = prompt.answers
    tokens = prompt.tokens.tolist()
    answer, before = tokens[place.start : place.stop], tokens[: place.start]
    return [i for i in range(len(before)) if before[i : i + len(answer)] == answer]


def test_sources_are_where_the_answers_are_told_and_rows_are_those_that_say_them():
    prompt = needle_prompt(rows(), 1024, 0.3, 4, 4)
    text = prompt.tokens
    for answer, source in zip(prompt.answers, prompt.sources, strict=True):
        told, said = text[source.start : source.stop], text[answer.start : answer.stop]
        assert told.tolist() == said.tolist()
        assert source.stop < prompt.answers[0].start
    first = prompt.answers[0].start
    assert [row for row, _ in needle_pairs(prompt)] == list(range(first - 1, first + 4))
    assert [key for _, key in needle_pairs(prompt)] == list(prompt.sources[0])
    assert needle_prompt(rows(), 1024, 0.3, needle=False).sources == (range(0),)


def test_a_shuffled_prompt_has_the_answer_of_the_other_and_all_else_of_its_own():
    one, other = (needle_prompt(rows(), 512, 0.5) for _ in range(2))
    mixed = answered_as(one, other)
    (place,) = one.answers
    (foreign,) = other.answers
    wanted = one.tokens.tolist()
    wanted[place.start : place.stop] = other.tokens[foreign.start : foreign.stop].tolist()
    assert mixed.tokens.tolist() == wanted
    assert mixed.tokens.tolist() != one.tokens.tolist()


@pytest.fixture
def layer() -> Captured:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 4096, 8), torch.randn(1, 2, 4096, 8), torch.randn(1, 2, 4096, 8)
    return Captured(2 * q, 2 * k, v, 8**-0.5)


def masses(layer: Captured, head: int) -> torch.Tensor:
    """The attention matrix of a head, by the definition."""
    scores = layer.q[0, head] @ layer.k[0, head // 2].T * layer.scaling
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def test_head_statistics_are_those_of_the_whole_matrix(layer):
    found = heads.head_statistics(layer)
    for head in range(4):
        mass = masses(layer, head)[2048:].double()
        row, key = torch.arange(2048, 4096)[:, None], torch.arange(4096)
        best = mass.argmax(-1, keepdim=True)
        wanted = {
            "sink": mass[:, 0].mean(),
            "initial": mass[:, :128].sum(-1).mean(),
            "local": (mass * (key > row - 128)).sum(-1).mean(),
            "max_initial": (best < 128).double().mean(),
            "max_local": ((best >= 128) & (best > row - 128)).double().mean(),
            "max_anchor": ((best < 128) | (best >= 2048)).double().mean(),
            "entropy": (-torch.xlogy(mass, mass).sum(-1) / (row[:, 0] + 1).log()).mean(),
        }
        for name, value in wanted.items():
            assert found[name][head].item() == pytest.approx(value.item(), abs=1e-5), name


def test_scores_and_masses_at_pairs_are_those_of_the_whole_matrix(layer):
    pairs = [(row, row // 3) for row in range(7, 4096, 11)]
    score, mass = heads.scores_at(layer, pairs)
    for head in range(4):
        whole = masses(layer, head)
        for i in (0, 1, 255, 256, len(pairs) - 1):
            row, key = pairs[i]
            exact = layer.q[0, head, row] @ layer.k[0, head // 2, key] * layer.scaling
            assert score[head, i].item() == pytest.approx(exact.item(), abs=1e-4)
            assert mass[head, i].item() == pytest.approx(whole[row, key].item(), abs=1e-6)


def test_differences_are_those_of_rows_and_of_means(layer):
    pairs = [(4000, 300), (4001, 301)]
    found = heads.needle_differences(layer, pairs)
    for head in range(4):
        scores = layer.q[0, head] @ layer.k[0, head // 2].T * layer.scaling
        row, key = torch.arange(4096)[:, None], torch.arange(4096)
        # Blocks of 128, groups of 2048: the initial region and the window of the last group.
        seen = (key <= row) & ((key < 128) | (key >= row // 2048 * 2048 - 128 * (row < 0)))
        anchor = scores.masked_fill(~seen, -torch.inf).amax(-1)
        wanted = max((anchor[i] - scores[i, j]).item() for i, j in pairs)
        assert found["row"][head].item() == pytest.approx(wanted, abs=1e-4)
        for size in heads.POOLED:
            below = (anchor[2048:, None] - scores[2048:]).unflatten(0, (-1, size)).mean(1)
            wanted = max(below[:, j].min().item() for _, j in pairs)
            assert found[f"pooled_{size}"][head].item() == pytest.approx(wanted, abs=1e-4), size


def test_induction_pairs_lead_to_the_token_that_followed():
    block = list(range(100, 100 + 512))
    tokens = [BOS, *block, *block][:1024]
    pairs = heads.induction_pairs(1024)
    assert len(pairs) > 50
    assert all(tokens[row] == tokens[key - 1] and row > 512 for row, key in pairs)


@torch.no_grad()
def test_anchor_attention_runs_in_the_heads_that_are_named_and_nowhere_else(bundled):
    model, tokenizer = bundled
    tokens = torch.tensor([make_prompt(tokenizer, 600, 0)[0]])
    config = AnchorConfig(block_size=32, step=2, theta=-torch.inf)
    dense = model(tokens).logits
    with heads.anchored(model, config, set()) as densities:
        torch.testing.assert_close(model(tokens).logits, dense)
    assert densities == []
    with heads.anchored(model, config, {(3, 1), (3, 2)}) as densities:
        assert (model(tokens).logits - dense).abs().max() > 1e-3
    assert len(densities) == 1
    with heads.anchored(model, config) as densities:
        model(tokens)
    assert len(densities) == model.config.num_hidden_layers
    q, k, v = torch.randn(1, 4, 600, 8), torch.randn(1, 2, 600, 8), torch.randn(1, 2, 600, 8)
    assert (anchor_attention(q, k, v, config) - anchor_attention(q, k, v)).abs().max() > 1e-3


def test_a_quick_evaluation_measures_every_part_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    # Short prompts, and for the differences one that is a little longer than a group.
    monkeypatch.setattr(measure, "QUICK", replace(measure.QUICK, lengths=(288,)))
    monkeypatch.setattr(measure, "SHORT", 1060)
    made_up = rows().made_up  # one for all seeds
    monkeypatch.setattr("anchor_models.rows._made_up", lambda tokenizer, seed: made_up)
    corpus, out = tmp_path / "books", tmp_path / "out" / "evaluation.json"
    corpus.mkdir()
    for n in range(10):
        text = filler(30_000 if n == 9 else 10, random.Random(n))
        (corpus / f"{n}.txt").write_text(text)
    call = ["--quick", "--device", "cpu", "--corpus", str(corpus), "--out", str(out)]
    assert EXPERIMENT.run(call) == 0
    found = read(out)
    assert {row["part"] for row in found["rows"]} == set(measure.PARTS)
    (text,) = part_of(found["rows"], "text")
    assert 0 < text["bits_per_byte"] < 2
    single = part_of(found["rows"], "needles")[0]
    assert (single["task"], single["accuracy"], single["asked"]) == ("single", 1, 10)
    assert [cell["accuracy"] for cell in part_of(found["rows"], "controls")] == [0, 0, 0]
    assert min(row["share"] for row in part_of(found["rows"], "induction")) > 0.9
    assert len(part_of(found["rows"], "heads")) == 8 * 8
    page = out.with_suffix(".md").read_text()
    assert page.startswith("# The bundled model")
    assert "| 64 heads at 288 tokens |  |" in page
    capsys.readouterr()
    assert EXPERIMENT.run([*call, "--again", "text"]) == 0
    assert capsys.readouterr().out.startswith("text: ")
    assert [row["run"] for row in read(out)["rows"][:2]] == [1, 0]


def test_without_books_nothing_is_measured(capsys, tmp_path):
    assert EXPERIMENT.run(["--out", str(tmp_path / "evaluation.json")]) == 2
    assert "needs --corpus" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_resumed_log_forgets_the_steps_that_were_lost(tmp_path):
    entries = [
        {"clock": 1.0, "step": 1, "stage": 0},
        {"clock": 9.0, "step": 9, "stage": 0},
        {"clock": 2.0, "event": "resumed", "step": 2},
        {"clock": 3.0, "step": 3, "stage": 0},
    ]
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(map(json.dumps, entries)))
    kept, resumed = read_log(file)
    assert resumed == 1
    assert [entry["step"] for entry in kept] == [1, 2, 3]


def test_the_card_is_about_these_weights():
    weights = bundled_model_path() / "model.safetensors"
    assert weights.stat().st_size < 16 * 2**20
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest in (bundled_model_path() / "README.md").read_text()
    assert digest == read(EVALUATION)["settings"]["model_sha256"]


def test_the_card_is_what_the_command_writes(monkeypatch):
    monkeypatch.chdir(ROOT)
    card = ROOT / EXPERIMENT.page_file
    assert card == bundled_model_path() / "README.md"
    assert EXPERIMENT.page(read(EVALUATION), card) == card.read_text(), (
        "run python -m anchor_lab model --table"
    )


@pytest.fixture(scope="module")
def bundled():
    return load_bundled()


@torch.no_grad()
def test_bfloat16_logits_agree_with_float32(bundled):
    model, tokenizer = bundled
    half, _ = load_bundled(torch.bfloat16)
    ids, _ = make_prompt(tokenizer, 512, 0)
    exact = model(torch.tensor([ids])).logits
    error = (half(torch.tensor([ids])).logits.float() - exact).norm() / exact.norm()
    assert error < 1e-2, f"relative difference {error:.2e}"


@torch.no_grad()
def test_the_model_finds_needles_at_2k_and_not_where_there_are_none(bundled):
    model, tokenizer = bundled
    for depths in ((0.2,), (0.5,), (0.9,), (0.1, 0.4, 0.6, 0.8)):
        ids, document = make_prompt(tokenizer, 2048, seed=len(depths), depths=depths)
        digits = tokenizer.encode(document.answer, add_special_tokens=False)
        given = model(torch.tensor([ids + digits])).logits[0, len(ids) - 1 : -1].argmax(-1)
        assert given.tolist() == digits, f"depths {depths}"
        told = document.text.replace(document.answer, "unknown")
        blank = [BOS, *tokenizer.encode(told, add_special_tokens=False)]
        given = model(torch.tensor([blank + digits])).logits[0, len(blank) - 1 : -1].argmax(-1)
        assert given.tolist() != digits
