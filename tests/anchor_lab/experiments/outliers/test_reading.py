"""A model read with chosen stripes is the one that masks over all pairs give."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from anchor_lab.experiments.outliers import reading, variants
from anchor_lab.methods import METHODS, OutlierRows, SharedStripes, StripeBudget, TwoMeans
from anchor_lab.methods.evaluate import evaluate
from anchor_lab.methods.in_a_model import method_attention
from anchor_ref import AnchorConfig
from tests.tiny_llama import LLAMA, SPECIAL_TOKENS

CONFIG = AnchorConfig(8, 3, theta=0.1, outliers=2, outlier_theta=-0.1)
N = 100
FEW = 500  # scores at once: five rows of each head, so that blocks of rows end anywhere


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(**LLAMA, **SPECIAL_TOKENS, attn_implementation="sdpa")
    made = LlamaForCausalLM(config).eval()
    for name, weight in made.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.data *= 12  # or all scores are nearly 0
    return made


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(3, 64, (1, N), generator=torch.Generator().manual_seed(1))


def losses_of(model, tokens):
    with torch.no_grad():
        logits = model(tokens).logits[0, :-1]
    return F.cross_entropy(logits, tokens[0, 1:], reduction="none")


@pytest.mark.parametrize(
    "method",
    [
        OutlierRows(CONFIG),
        TwoMeans(AnchorConfig(8, 2, theta=0.1, init_blocks=0, window_blocks=1)),
        StripeBudget(0.3, CONFIG),
        SharedStripes(CONFIG),
    ],
    ids=lambda method: type(method).__name__,
)
def test_losses_and_density_are_those_of_masks_over_all_pairs(model, tokens, method):
    with reading.reading(model, lambda layer: method, 8 * FEW) as kept:
        found = reading.token_losses(model, tokens)
    with method_attention(model, method) as densities:
        expected = losses_of(model, tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert kept.density == pytest.approx(densities, abs=1e-6)
    assert 0.3 < densities[0] < 0.95
    dense = losses_of(model, tokens)
    size = method.config.group_size
    torch.testing.assert_close(found[:size], dense[:size], atol=1e-5, rtol=1e-5)
    assert (found[size:] - dense[size:]).abs().max() > 1e-3


def test_without_a_method_every_pair_is_kept(model, tokens):
    with reading.reading(model, None, FEW) as kept:
        found = reading.token_losses(model, tokens)
    torch.testing.assert_close(found, losses_of(model, tokens), atol=1e-5, rtol=1e-5)
    assert kept.density == [1.0, 1.0]


def test_each_layer_has_its_own_method(model, tokens):
    methods = [OutlierRows(AnchorConfig(8, 3, theta=theta)) for theta in (-math.inf, math.inf)]
    with reading.reading(model, methods.__getitem__) as kept:
        reading.token_losses(model, tokens)
    assert kept.density[0] < 0.5
    assert kept.density[1] == pytest.approx(1.0)
    assert kept.recall[0] < 0.99
    assert kept.recall[1] == pytest.approx(1.0, abs=1e-6)


def test_what_continues_a_cache_is_dense(model, tokens):
    method = OutlierRows(AnchorConfig(8, 3, theta=-math.inf))
    with torch.no_grad():
        cache = model(tokens[:, :80], use_cache=True).past_key_values
        expected = model(tokens[:, 80:81], past_key_values=cache).logits
        cache = model(tokens[:, :80], use_cache=True).past_key_values
        with reading.reading(model, lambda layer: method) as kept:
            found = model(tokens[:, 80:81], past_key_values=cache).logits
    torch.testing.assert_close(found, expected)
    assert not kept.density


@pytest.mark.parametrize("most", [1, FEW, 10**6])
def test_output_recall_and_anchors_are_those_of_an_evaluation(most):
    random = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, heads, N, 8, generator=random) for heads in (4, 2, 2))
    for method in (OutlierRows(CONFIG), OutlierRows(AnchorConfig(8, 2, 1.0, 0, 1, outliers=1))):
        kept = reading.choose(q, k, method, 0.3, most)
        for own, expected in zip(kept, method.all_kept(q, k, 0.3), strict=True):
            assert torch.equal(own, expected)
        out, recall = reading.attend(q, k, v, kept, method.config, 0.3, most)
        found = evaluate(q, k, v, method.select(q, k, 0.3), 0.3)
        torch.testing.assert_close(recall, found.recall, atol=1e-5, rtol=0)
        assert recall.min() < 0.9
        density = reading.density(kept, method.config, N)
        assert density == pytest.approx(found.density.mean().item(), abs=1e-6)
        dense, _ = reading.attend(q, k, v, None, method.config, 0.3, most)
        whole = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
        torch.testing.assert_close(dense, whole, atol=1e-5, rtol=1e-5)
        error = (out - whole).norm(dim=(-2, -1)) / whole.norm(dim=(-2, -1))
        torch.testing.assert_close(error.double(), found.output_error, atol=1e-5, rtol=1e-4)


def test_variants_have_names_of_their_own_and_the_paper_is_without_rows():
    found = [(part, one) for part, make in variants.FIXED.items() for one in make()]
    names = [one.name for _, one in found]
    assert len(set(names)) == len(names)
    for part, one in found:
        assert (part == "paper") == one.name.startswith("paper")
        assert one.at(0) is one.at(7)
        if part == "paper":
            assert one.at(0).config.outliers == 0
            assert one.name == f"paper, θ = {one.at(0).config.theta:g}"
        if part == "rows":
            config = one.at(0).config
            assert one.name == variants.tests(config.outliers, config.theta, config.row_theta)
        assert type(one.at(0)).__name__ not in METHODS
        assert one.at(0).config.group_size == 2048
    assert {part for part, one in found if one.long} == set(variants.FIXED)


def test_the_test_of_the_paper_is_the_methods_own():
    random = torch.Generator().manual_seed(3)
    q, k = (2 * torch.randn(1, heads, 2400, 16, generator=random) for heads in (2, 1))
    for one in variants.FIXED["paper"]():
        method = METHODS["AnchorAttention"](AnchorConfig(theta=one.at(0).config.theta))
        assert torch.equal(
            one.at(0).stripes(q, k, 0.25).indices, method.stripes(q, k, 0.25).indices
        )


def test_calibrated_thresholds_are_each_layers():
    one = variants.calibrated("R = 4", 0.9, [(1.0, 2.0), (3.0, 4.0)])
    assert one.name == variants.calibrated_name("R = 4", 0.9) == "calibrated to 0.9, R = 4"
    assert one.at(1).thetas == (3.0, 4.0)
    assert one.at(0).config.outliers == 4
