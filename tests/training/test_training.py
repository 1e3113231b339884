"""What made the bundled model: data mix, loss, probes, export, tokenizer."""

import json
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from anchor_models import bundled_model_path
from anchor_models.documents import HELD_OUT, KEY_FIRST, KEY_SECOND
from anchor_models.rows import ANSWER, BOS, COPY, TEXT
from training.export import export
from training.model import Llama, ModelConfig, target_losses
from training.tasks import LATER, STAGE_0, Tasks
from training.train import PRESETS

TOKENIZER = Tokenizer.from_file(str(bundled_model_path() / "tokenizer.json"))
MIXES = {**STAGE_0, **LATER}


@cache
def tasks(held_out: bool = False) -> Tasks:
    """One for all tests: its filler takes seconds to encode."""
    rng = np.random.default_rng(0)
    books = [torch.from_numpy(rng.integers(3, 4096, 9000)).int() for _ in range(3)]
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
    keys = [TOKENIZER.decode(key.tolist()).split() for key in tasks(held_out).keys(400)]
    assert {first for first, _ in keys} <= set(KEY_FIRST[part])
    assert {second for _, second in keys} <= set(KEY_SECOND[part])


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
