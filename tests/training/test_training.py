"""The bundled model and what made it: data mix, loss, export, and that the weights retrieve."""

import hashlib
import json
from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from anchor_lab.experiments.model import measure as evaluate
from anchor_lab.experiments.model.page import read_log
from anchor_models import bundled_model_path, load_bundled
from anchor_models.documents import HELD_OUT, KEY_FIRST, KEY_SECOND, make_prompt
from tests.tree import RESULTS, ROOT
from training.export import export
from training.model import Llama, ModelConfig, target_losses
from training.tasks import ANSWER, BOS, COPY, LATER, STAGE_0, TEXT, Tasks
from training.train import PRESETS

TOKENIZER = Tokenizer.from_file(str(bundled_model_path() / "tokenizer.json"))
MIXES = {**STAGE_0, **LATER}


@cache
def tasks(held_out: bool = False) -> Tasks:
    """One for all tests: its filler takes seconds to encode."""
    rng = np.random.default_rng(0)
    books = [rng.integers(3, 4096, 9000).astype(np.uint16) for _ in range(3)]
    return Tasks(books, TOKENIZER, 1, held_out)


@pytest.mark.parametrize(
    ("task", "length"),
    [
        (task, length)
        for task in MIXES
        for length in (128, 512, 2048)
        # A row of 128 tokens is too short for a fact and its question.
        if length > 128 or task not in ("needles", "key_values", "variables")
    ],
)
@pytest.mark.parametrize("held_out", [False, True])
def test_rows_have_the_asked_length_start_with_bos_and_never_score_it(task, length, held_out):
    tokens, kinds = tasks(held_out).batch({task: 1.0}, length, 8)
    assert tokens.shape == kinds.shape == (8, length + 1)
    assert (tokens[:, 0] == BOS).all()
    assert not kinds[:, 0].any()
    assert kinds.max() <= COPY


@pytest.mark.parametrize("length", [8192, 16384])
def test_long_rows_of_held_out_keys_ask_for_no_more_keys_than_there_are(length):
    tokens, _ = tasks(held_out=True).batch({"key_values": 1.0}, length, 4)
    assert tokens.shape == (4, length + 1)


@pytest.mark.parametrize("held_out", [False, True])
def test_keys_are_made_of_training_words_or_of_held_out_ones(held_out):
    part = slice(-HELD_OUT, None) if held_out else slice(None, -HELD_OUT)
    keys = [TOKENIZER.decode(key).split() for key in tasks(held_out).keys(400)]
    assert {first for first, _ in keys} <= set(KEY_FIRST[part])
    assert {second for _, second in keys} <= set(KEY_SECOND[part])


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.75, 1.0])
def test_the_fact_asked_for_stands_at_its_depth(depth, monkeypatch):
    monkeypatch.setattr(evaluate, "Tasks", lambda *_, held_out: tasks(held_out))
    needles = evaluate.Needles(SimpleNamespace(validation=None), TOKENIZER, seed=0)
    tokens, kinds = needles.prompt(2048, depth, 3, 1)
    # The facts and the question take up to 120 tokens of the row.
    assert places_told(tokens, kinds) == [pytest.approx(depth * 2048, abs=120)]
    assert places_told(*needles.prompt(2048, depth, 3, 1, needle=False)) == []


def places_told(tokens, kinds) -> list[int]:
    """Where the answer of the only question stands before that question."""
    answer = tokens[kinds == ANSWER].tolist()
    before = tokens[: int((kinds == ANSWER).argmax())].tolist()
    return [i for i in range(len(before)) if before[i : i + len(answer)] == answer]


@pytest.mark.parametrize("task", ["needles", "key_values", "variables"])
def test_every_answer_was_said_before(task):
    tokens, kinds = tasks().batch({task: 1.0}, 2048, 4)
    for row, kind in zip(tokens, kinds, strict=True):
        places = np.flatnonzero(kind == ANSWER)
        assert len(places)
        for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            if run[-1] == len(row) - 1:
                continue  # the row ends inside this answer
            answer = row[run].tolist()
            earlier = row[: run[0]].tolist()
            starts = range(len(earlier) - len(answer) + 1)
            assert any(earlier[i : i + len(answer)] == answer for i in starts)


@pytest.mark.parametrize("task", ["repeated_block", "scattered_copies", "repeated_book"])
def test_every_copied_token_follows_its_predecessor_as_it_did_before(task):
    tokens, kinds = tasks().batch({task: 1.0}, 512, 4)
    for row, kind in zip(tokens, kinds, strict=True):
        places = np.flatnonzero(kind == COPY)
        assert len(places)
        first: dict[tuple[int, int], int] = {}
        for i, pair in enumerate(pairwise(row.tolist())):
            first.setdefault(pair, i)
        assert all(first[int(row[i - 1]), int(row[i])] < i - 1 for i in places)


def test_mixes_are_shares():
    assert sum(STAGE_0.values()) == pytest.approx(1)
    assert sum(LATER.values()) == pytest.approx(1)
    for preset in PRESETS.values():
        ends = [stage.until for stage in preset.stages]
        assert ends == sorted(ends)
        assert ends[-1] == 1


def test_losses_are_means_by_kind_and_unscored_targets_do_not_count():
    torch.manual_seed(0)
    logits, targets = torch.randn(1, 6, 9), torch.randint(0, 9, (1, 6))
    kinds = torch.tensor([[0, TEXT, TEXT, ANSWER, 0, 0]])
    losses = target_losses(logits, targets, kinds)
    each = torch.nn.functional.cross_entropy(logits[0], targets[0], reduction="none")
    torch.testing.assert_close(losses[TEXT], each[1:3].mean())
    torch.testing.assert_close(losses[ANSWER], each[3])
    assert losses[COPY] == 0


def test_exported_weights_give_transformers_the_logits_of_training(tmp_path):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = ModelConfig(width=64, layers=2, q_heads=4, kv_heads=2, head_dim=16, ffn=96)
    model = Llama(sizes)
    export(model, bundled_model_path(), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
        tokens = torch.randint(3, 4096, (2, 100))
        torch.testing.assert_close(loaded(tokens).logits, model(tokens), atol=1e-5, rtol=1e-4)


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


def test_the_tokenizer_splits_digits_and_knows_every_byte():
    text = "Call 10 203: naïve \u2603\n"
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids) == text
    assert len(TOKENIZER.encode("90210", add_special_tokens=False).ids) == 5
    assert [TOKENIZER.token_to_id(t) for t in ("<|bos|>", "<|eos|>", "<|pad|>")] == [0, 1, 2]


def test_the_files_name_only_what_transformers_4_and_5_both_know():
    about = json.loads((bundled_model_path() / "tokenizer_config.json").read_text())
    assert about["tokenizer_class"] == "PreTrainedTokenizerFast"
    config = json.loads((bundled_model_path() / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500_000


def test_the_card_is_about_these_weights():
    weights = bundled_model_path() / "model.safetensors"
    assert weights.stat().st_size < 16 * 2**20
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest in (bundled_model_path() / "README.md").read_text()


def test_the_card_is_what_the_script_writes():
    from anchor_lab.experiments.model.page import card

    root = ROOT
    made = card(
        root / "training/logs/full.jsonl",
        root / "results/model/evaluation.json",
        bundled_model_path() / "model.safetensors",
    )
    assert made == (bundled_model_path() / "README.md").read_text(), (
        "run python -m anchor_lab.experiments.model.page"
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


def test_committed_tables_are_what_the_evaluation_says(tmp_path):
    folder = RESULTS / "model"
    evaluate.write_tables(json.loads((folder / "evaluation.json").read_text()), tmp_path)
    for name in ("needles.csv", "heads.csv", "causes.csv"):
        assert (tmp_path / name).read_text() == (folder / name).read_text(), name


def test_the_first_rule_that_holds_names_a_head():
    nothing = {"needle": 0.0, "induction": 0.0, "sink": 0.0, "local": 0.0, "entropy": 0.0}
    assert evaluate.role(nothing) == "mixed"
    assert evaluate.role({**nothing, "needle": 0.5, "sink": 0.9}) == "retrieval"
    assert evaluate.role({**nothing, "induction": 0.2, "local": 0.6}) == "induction"
    assert evaluate.role({**nothing, "sink": 0.3, "entropy": 0.9}) == "sink"
    assert evaluate.role({**nothing, "local": 0.5}) == "local"
    assert evaluate.role({**nothing, "entropy": 0.8}) == "diffuse"
