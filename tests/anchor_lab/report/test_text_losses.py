"""What a text's predictions lose: the numbers, what is said of them, what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

import anchor_models.transformers as anchor
from anchor_lab.experiments.answers.counts import MARGIN
from anchor_lab.experiments.losses.measure import RUNS
from anchor_lab.experiments.page import percent
from anchor_lab.report import text_losses
from anchor_lab.report.text_losses import ALLOWED, TextLoss, nothing_to_lose
from anchor_models import load_bundled
from anchor_models.texts import read_text
from tests.tiny_llama import LLAMA, SPECIAL_TOKENS

N = 2700
SETTINGS = {"model": "bundled"}
HOW_TO = Path(__file__).parents[3] / "docs/how-to/read_the_report.md"


@pytest.fixture(scope="module")
def model():
    return load_bundled()[0]


@pytest.fixture(scope="module")
def tokens():
    return read_text("document", load_bundled()[1], N).tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("read")


@pytest.fixture(scope="module")
def found(model, tokens, folder):
    return text_losses.text_losses(model, tokens, [12.0, -40.0], folder, SETTINGS)


@torch.no_grad()
def nats(model, tokens, name: str):
    """Of each prediction beyond the first group, from the logits of the whole text."""
    model.set_attn_implementation(name)
    try:
        logits = model(tokens).logits[0, 2048:-1].double()
    finally:
        model.set_attn_implementation("sdpa")
    return cross_entropy(logits, tokens[0, 2049:], reduction="none")


def test_losses_are_those_of_the_models_own_logits(model, tokens, found):
    dense = nats(model, tokens, "sdpa")
    with anchor.options(theta=-40.0, tail=512, when="always"), anchor.record() as kept:
        lost = nats(model, tokens, anchor.NAME) - dense
    default, least = found
    assert (default.theta, least.theta) == (12.0, -40.0)
    assert least.tokens == default.tokens == len(lost) == N - 1 - 2048
    assert least.dense == default.dense == pytest.approx(dense.mean().item(), abs=1e-4)
    assert least.lost == pytest.approx(lost.mean().item(), abs=1e-4)
    assert abs(least.lost) > 1e-3, "something is lost, or nothing is tested"
    assert least.density == pytest.approx(kept.density)
    assert least.density < default.density < 1
    # Of pairs: the two sides alone would spread over more than their difference does.
    runs = torch.stack([run.mean() for run in lost.tensor_split(RUNS)])
    half = 1.96 * runs.std() / RUNS**0.5
    assert least.low < runs.mean() < least.high
    assert (least.high - least.low) / 2 == pytest.approx(half.item(), rel=0.25)


def test_nothing_is_read_twice_and_another_model_is_refused(
    model, tokens, found, folder, monkeypatch
):
    monkeypatch.setattr(text_losses, "token_losses", None)
    watched = []
    again = text_losses.text_losses(
        model, tokens, [-40.0], folder, SETTINGS, lambda left: watched.extend(left) or left
    )
    assert again == found[1:]
    assert watched == []
    with pytest.raises(ValueError, match="holds results made with model 'bundled'"):
        text_losses.text_losses(model, tokens, [12.0], folder, {"model": "another"})


@pytest.mark.parametrize(
    ("n", "nothing"), [(100, True), (2048, True), (2304, True), (2560, True), (2700, False)]
)
def test_a_prompt_of_a_group_and_a_tail_has_nothing_to_lose(n, nothing):
    assert nothing_to_lose(n) is nothing


def test_such_a_prompt_is_not_read(model, tokens, tmp_path):
    with pytest.raises(ValueError, match="more than a group and the tail, got 2560"):
        text_losses.text_losses(model, tokens[:, :2560], [12.0], tmp_path, SETTINGS)


ONE = TextLoss(12.0, 6143, 2.0, 2.1, 0.05, 0.15, 0.4)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.021, 0.15, "more than 0.02 nats are lost. Do not use it here."),
        (-0.004, 0.02, "no more than 0.02 nats are lost."),
        (0.019, 0.15, "this text does not tell whether more than 0.02 nats are lost."),
    ],
)
def test_the_interval_decides_what_is_said(low, high, words):
    said = str(replace(ONE, low=low, high=high))
    assert said.endswith(f" %): {words}")
    assert replace(ONE, low=low, high=high).against == ("o not use it" in said) == (low > 0.02)


def test_the_numbers_are_nats_and_percent_of_perplexity():
    assert str(ONE).startswith(
        "θ = 12, a tail of 512, 40 % of the pairs: +0.100 nats a token (95 %: +0.050 to +0.150), "
        "perplexity +10.5 % (+5.1 to +16.2 %)"
    )
    gained = str(replace(ONE, ours=1.9, low=-0.15, high=-1e-6))
    assert "−0.100 nats a token (95 %: −0.150 to +0.000), perplexity −9.5 %" in gained


def test_the_how_to_names_what_the_report_goes_by():
    text = " ".join(HOW_TO.read_text(encoding="utf-8").split())
    assert f"Where the whole interval lies above {ALLOWED:g} nats the advice" in text
    assert f"Where more than {percent(MARGIN)} of the prompts are lost" in text


def test_a_model_that_changes_its_logits_is_refused(tokens, tmp_path):
    """Its last layer's output alone would give other losses."""
    sizes = {**LLAMA, **SPECIAL_TOKENS, "vocab_size": 4096, "initializer_range": 0.2}
    for scaling in (1.0, 8.0):
        torch.manual_seed(0)
        config = transformers.GraniteConfig(**sizes, logits_scaling=scaling)
        model = transformers.GraniteForCausalLM(config).eval()
        if scaling == 1.0:
            text_losses._check_output(model, tokens[:, :32])
            continue
        with pytest.raises(ValueError, match="must not change its logits after the output layer"):
            text_losses.text_losses(model, tokens, [12.0], tmp_path, SETTINGS)


def test_a_model_in_which_no_layer_ran_the_method_loses_nothing_that_could_be_told(
    model, tokens, tmp_path, monkeypatch
):
    layers = {"dense_layers": range(model.config.num_hidden_layers)}
    monkeypatch.setattr(model.config, "anchor_attention", layers, raising=False)
    with pytest.raises(ValueError, match="a layer must run AnchorAttention, none did: "):
        text_losses.text_losses(model, tokens, [12.0], tmp_path, SETTINGS)
