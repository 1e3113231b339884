"""What a prompt of a whole model is run with, and what is said of it on paper."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend

from anchor_lab.experiments.parallel import whole_models
from anchor_lab.experiments.parallel.whole_models import Prompt
from anchor_models.parallel.cost import LLAMA_8B, memory
from anchor_models.transformers import options

N = 8192  # enough for candidates
SHAPE = replace(LLAMA_8B, intermediate=64)  # attention takes more than the MLP


class Model(SimpleNamespace):
    """Remembers how it was to attend."""

    dtype = torch.bfloat16

    def set_attn_implementation(self, way: str) -> None:
        self.way = way


def prompt(**more) -> Prompt:
    tokens = torch.zeros(1, N, dtype=torch.int64)
    return Prompt("m", Model(), tokens, {"theta": 12.0}, 40, 0.25, **more)


@pytest.fixture
def two_ranks(monkeypatch):
    monkeypatch.setattr(whole_models, "of_ranks", lambda mine: [mine, mine])
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)


@pytest.mark.usefixtures("two_ranks")
def test_each_row_is_run_with_the_attention_and_the_tail_that_it_names(monkeypatch):
    asked, seen = prompt(), []

    def timed(*_):
        with options() as now:
            seen.append((asked.model.way, now.sizes.tail, now.when))
        return 1.0, 0.0

    monkeypatch.setattr(whole_models, "timed", timed)
    monkeypatch.setattr(whole_models, "sent_by", lambda _run: [0.0, 0.0])
    monkeypatch.setattr(whole_models, "spread", lambda *_: {})
    rows = list(whole_models.prefills(asked, asked.model, "tensor", SHAPE))
    ways = ["sdpa", "anchor_attention", "anchor_attention"]
    assert seen == list(zip(ways, (40, 40, 0), ["always"] * 3, strict=True))
    assert [(row["attention"], row["tail"]) for row in rows] == list(
        zip(ways, (None, 40, 0), strict=True)
    )
    for row, kept in zip(rows, (0.0, 0.25, 0.25), strict=True):
        paper = memory(SHAPE, "tensor", N, 2, kept)
        assert row["paper"] == paper["at once"] - paper["keys and values of all layers"]
    assert rows[0]["paper"] < rows[1]["paper"] == rows[2]["paper"]


def test_other_arithmetic_is_other_arithmetic(monkeypatch):
    seen = []

    def backends(allowed):
        seen.append(allowed)
        return torch.no_grad()

    def prefill(asked, model, mode):
        with options() as now:
            seen.append((model.way, mode, now.backend))
        return SimpleNamespace(logits=torch.zeros(1, 1, 1))

    monkeypatch.setattr(whole_models, "sdpa_kernel", backends)
    monkeypatch.setattr(whole_models, "prefill", prefill)
    monkeypatch.setattr(whole_models, "compared", lambda *_: {})
    assert [row["attention"] for row in whole_models.other_arithmetic(prompt(), True)] == [
        "sdpa",
        "anchor_attention",
    ]
    assert seen == [
        SDPBackend.FLASH_ATTENTION,
        ("sdpa", "one", "auto"),
        SDPBackend.MATH,
        ("sdpa", "one", "auto"),
        ("anchor_attention", "one", "auto"),
        ("anchor_attention", "one", "torch"),
    ]


@pytest.mark.parametrize("stretched", [True, False])
def test_positions_are_stretched_for_a_prompt_that_says_so(monkeypatch, stretched):
    seen = []

    def stretch(model, tokens):
        seen.append(tokens)
        return torch.no_grad()

    monkeypatch.setattr(whole_models, "stretch", stretch)
    asked = prompt(stretched=stretched)
    with asked.ready(asked.model, "sdpa"):
        assert seen == [N] * stretched


def test_every_way_is_asked_for_an_answer_from_the_same_prompt(monkeypatch):
    """What was written goes before the next token, and is gone before the next way."""
    seen = []

    def next_token(asked, model, mode):
        seen.append((mode, model.way, asked.tokens.shape[1] - N, int(asked.tokens[0, -1])))
        return 5

    monkeypatch.setattr(whole_models, "next_token", next_token)
    words = SimpleNamespace(decode=lambda ids: " 55" if ids == [5, 5] else str(ids))
    asked = prompt(answer="55", tokenizer=words)
    rows = list(whole_models.answers(asked, asked.model, ("one", "sequence"), 2))
    assert seen == [
        (mode, way, *at)
        for mode in ("one", "sequence")
        for way in ("sdpa", "anchor_attention")
        for at in ((0, 0), (1, 5))
    ]
    assert all(row["found"] for row in rows)
    assert asked.tokens.shape[1] == N
