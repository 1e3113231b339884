"""The model with random weights: what is rounded, and how it is sharpened."""

import pytest
import torch

from anchor_lab.experiments.random_model import random_llama, scale_queries
from anchor_models.parallel.cost import ModelShape

SHAPE = ModelShape(2, 32, 48, 4, 2, 8, 100)
N = 4096  # two groups


@pytest.fixture(scope="module")
def sharpened():
    """A model whose queries are scaled until 0.55 of the candidates are kept, and its prompt."""
    model = random_llama(ModelShape(4, 128, 192, 4, 2, 32, 500), N, torch.float32, "cpu")
    tokens = torch.arange(N)[None] % 500
    scale_queries(model, tokens, 0.55, 12.0)
    return model, tokens


def test_weights_are_rounded_and_rotary_frequencies_are_not():
    """At 131 072 tokens a frequency in bfloat16 is another rotation altogether."""
    exact = random_llama(SHAPE, 256, torch.float32, "cpu")
    model = random_llama(SHAPE, 256, torch.bfloat16, "cpu")
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assert torch.equal(model.model.rotary_emb.inv_freq, exact.model.rotary_emb.inv_freq)


def test_weights_are_the_same_in_every_run():
    weights = [random_llama(SHAPE, 256, torch.float32, "cpu").lm_head.weight for _ in range(2)]
    assert torch.equal(*weights)


@torch.no_grad()
def test_queries_are_scaled_until_the_share_of_the_candidates_is_kept(sharpened):
    import anchor_models.transformers as anchor

    model, tokens = sharpened
    model.set_attn_implementation("anchor_attention")
    with anchor.options(theta=12.0, tail=0, when="always"), anchor.record() as stats:
        model(tokens, logits_to_keep=1)
    # Near the end a step of the bisection changes the share by hundredths, up or down.
    # Each of 2048 rows may leave out any of 2048 − 128 keys, and nothing else is left out.
    left_out = (1 - stats.density) * N * (N + 1) / 2 / (2048 * (2048 - 128))
    assert 1 - left_out == pytest.approx(0.55, abs=0.1)


@torch.no_grad()
def test_with_random_weights_a_rounding_decides_what_is_kept(sharpened):
    """So logits of two GPUs agree less where they are selected with: the page says so."""
    import anchor_models.transformers as anchor

    model, tokens = sharpened

    def logits(way: str, rounding: float) -> torch.Tensor:
        noise = torch.rand(1, N, 128, generator=torch.Generator().manual_seed(0)) - 0.5
        model.set_attn_implementation(way)
        hook = model.model.embed_tokens.register_forward_hook(
            lambda module, given, out: out * (1 + rounding * noise)
        )
        try:
            with anchor.options(theta=12.0, tail=512, when="always"):
                return model(tokens).logits
        finally:
            hook.remove()

    apart = {
        way: (logits(way, 0.0) - logits(way, 2.0**-12)).abs().mean().item()
        for way in ("sdpa", "anchor_attention")
    }
    assert 0 < apart["sdpa"] < 2.0**-10
    assert apart["anchor_attention"] > 3 * apart["sdpa"]
