"""The model with random weights: what is rounded, and how it is sharpened."""

import torch

from anchor_lab.experiments.random_model import random_llama, scale_queries
from anchor_models.parallel.cost import ModelShape

SHAPE = ModelShape(2, 32, 48, 4, 2, 8, 100)


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
def test_with_random_weights_a_rounding_decides_what_is_kept():
    """So logits of two GPUs agree less where they are selected with: the page says so."""
    import anchor_models.transformers as anchor

    n = 4096
    model = random_llama(ModelShape(4, 128, 192, 4, 2, 32, 500), n, torch.float32, "cpu")
    tokens = torch.arange(n)[None] % 500
    scale_queries(model, tokens, 0.55, 12.0)

    def logits(way: str, rounding: float) -> torch.Tensor:
        noise = torch.rand(1, n, 128, generator=torch.Generator().manual_seed(0)) - 0.5
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
