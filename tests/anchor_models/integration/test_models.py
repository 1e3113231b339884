"""Models of each family with `attn_implementation="anchor_attention"`: as sdpa, or refused."""

import math

import pytest
import torch
import transformers

import anchor_models.transformers  # noqa: F401
from anchor_models.integration.models import asks_interface
from anchor_models.transformers import options, record
from tests.anchor_models.integration.tiny import (
    COMMON,
    FAMILIES,
    ROUNDING,
    SIZES,
    THETA,
    N,
    build,
    far,
    logits,
    tokens,
)

ALL_SLIDING = {"mistral_sliding"}
SOME_SLIDING = {"qwen2_sliding": 1, "gemma3": 1, "exaone4": 0}  # the layer


@pytest.mark.parametrize("family", FAMILIES)
def test_with_every_key_kept_the_logits_are_those_of_sdpa(family):
    model, ids = build(family), tokens(2)
    with options(theta=math.inf, **SIZES), record() as stats:
        found = logits(model, ids)
    assert far(found, logits(model, ids, "sdpa")) <= ROUNDING
    ran = ["dense", "dense"] if family in ALL_SLIDING else ["anchor", "anchor"]
    if family in SOME_SLIDING:
        ran[SOME_SLIDING[family]] = "dense"
    assert [layer.ran for layer in stats.layers.values()] == ran


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - ALL_SLIDING))
def test_with_a_threshold_the_method_runs_and_drops_keys(family):
    model, ids = build(family), tokens()
    with options(theta=THETA, **SIZES), record() as stats:
        found = logits(model, ids)
    density = stats.layers[1 - SOME_SLIDING.get(family, 1)].density
    assert ((density > 0.46) & (density < 0.95)).all()  # 0.46: initial region and window
    dense = logits(model, ids, "sdpa")
    assert far(found[:, :32], dense[:, :32]) <= ROUNDING  # the first group is always dense
    assert far(found[:, 32:], dense[:, 32:]) > 1e-3


def test_each_layer_gets_what_the_reference_computes():
    """The whole way by hand: q, k, v of the first layer, then `anchor_attention`."""
    from anchor_models import capture_qkv
    from anchor_ref import AnchorConfig, anchor_attention

    model, ids = build(num_hidden_layers=1), tokens(2)
    seen = []
    layer = model.model.layers[0].self_attn.o_proj
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with options(theta=THETA, **SIZES):
        logits(model, ids)
        taken = capture_qkv(model, ids, dtype=None)[0]
    expected = anchor_attention(
        taken.q, taken.k, taken.v, AnchorConfig(theta=THETA, **SIZES), taken.scaling
    )
    assert torch.equal(seen[0], expected.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("family", ["llama", "qwen2_sliding", "gemma3"])
def test_a_later_token_changes_no_earlier_group(family):
    model, ids = build(family), tokens()
    changed = ids.clone()
    changed[:, 75] = (ids[:, 75] + 1) % 60 + 3
    assert changed[0, 75] != ids[0, 75]
    with options(theta=THETA, **SIZES):
        before, after = logits(model, ids), logits(model, changed)
    assert torch.equal(before[:, :64], after[:, :64])
    assert not torch.equal(before[:, 75:], after[:, 75:])
    with options(theta=math.inf, **SIZES):  # nor, with every key kept, an earlier token
        assert far(logits(model, changed)[:, :75], logits(model, ids)[:, :75]) <= ROUNDING


@pytest.mark.parametrize("n", [1, 2, 15, 32])
def test_prompts_no_longer_than_a_group_are_dense_bit_for_bit(n):
    model, ids = build(), tokens(2, n)
    with options(theta=-math.inf, **SIZES):
        found = logits(model, ids)
    assert torch.equal(found, logits(model, ids, "sdpa"))


def test_low_precision_and_autocast_run():
    model, ids = build().float(), tokens()
    with options(theta=math.inf, **SIZES):
        with torch.autocast("cpu", torch.bfloat16):  # q and k are float32 here, v is bfloat16
            found = logits(model, ids, use_cache=False)
            same = logits(model, ids, "sdpa", use_cache=False)
        half = logits(model.bfloat16(), ids, "anchor_attention")
        half_dense = logits(model, ids, "sdpa")
    # bfloat16 has 8 bits: sums taken in another order differ in the last one or two.
    assert far(found.float(), same.float()) <= 2**-5
    assert far(half.float(), half_dense.float()) <= 2**-5


# transformers 4 thinks that its sdpa caps scores.
OTHER = "'sdpa' or 'eager'" if transformers.__version__.startswith("4.") else "'eager'"


@pytest.mark.parametrize("n", [32, N])
def test_capped_scores_are_refused(n):
    config = transformers.Gemma2Config(**COMMON, attn_implementation="eager")
    model = transformers.Gemma2ForCausalLM(config).eval()
    with pytest.raises(ValueError, match=rf"Gemma2Attention with .* such as {OTHER}$"):
        logits(model, tokens(n=n), "anchor_attention")


def test_learned_sinks_are_refused():
    small = {"num_local_experts": 2, "num_experts_per_tok": 1}
    config = transformers.GptOssConfig(**COMMON, **small, attn_implementation="eager")
    model = transformers.GptOssForCausalLM(config).eval()
    with pytest.raises(ValueError, match=r"GptOssAttention with learned .* such as 'eager'$"):
        logits(model, tokens(), "anchor_attention")


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="encoders of transformers 4 know no other"
)
def test_encoders_are_refused():
    config = transformers.BertConfig(**COMMON, attn_implementation="anchor_attention")
    model = transformers.BertModel(config).eval()
    with pytest.raises(ValueError, match="BertSelfAttention with attention in both directions"):
        model(tokens())


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="in transformers 4 Bloom makes its own mask"
)
def test_a_model_with_an_attention_of_its_own_is_refused():
    """Without a word it would run with no mask at all, where the name is written by hand."""
    config = transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4)
    model = transformers.BloomForCausalLM(config).eval()
    model.config._attn_implementation = "anchor_attention"
    for n in (1, 20, N):
        with pytest.raises(ValueError, match=r"AttentionInterface, got one with a BloomConfig"):
            logits(model, tokens(n=n))


OWN_MASKS = {
    "Doge": {"keep_window_size": 32},
    "DeepseekV32": {
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 16,
        "first_k_dense_replace": 2,
    },
}
LEFT = (torch.arange(N) >= 41)[None].long()
PACKED = torch.cat([torch.arange(41), torch.arange(59)])[None]


@pytest.mark.parametrize("given", [{}, {"attention_mask": LEFT}, {"position_ids": PACKED}])
@pytest.mark.parametrize("family", OWN_MASKS)
def test_attention_that_computes_with_its_mask_is_refused_by_name(family, given):
    """Segments are no matrix: torch would say that sizes differ, if they do."""
    if not hasattr(transformers, f"{family}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    config = getattr(transformers, f"{family}Config")(**COMMON | OWN_MASKS[family])
    config._attn_implementation = "anchor_attention"
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    named = f"{family}Attention|with a {family}Config that computes with it"
    with options(theta=math.inf, **SIZES), pytest.raises(ValueError, match=named):
        logits(model, tokens(), use_cache=False, **given)


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="in transformers 4 it makes its own mask"
)
@pytest.mark.parametrize("chunk", [24, N])
def test_chunks_keep_their_layers_dense_where_they_hide_anything(chunk):
    sizes = {"intermediate_size_mlp": 48, "num_local_experts": 2, "no_rope_layers": [1, 0]}
    config = transformers.Llama4TextConfig(**COMMON | sizes, attention_chunk_size=chunk)
    model, ids = transformers.Llama4ForCausalLM(config).eval(), tokens()
    for given in ({}, {"attention_mask": LEFT}):
        with options(theta=math.inf, **SIZES), record() as stats:
            found = logits(model, ids, "anchor_attention", **given)[:, 41:]
        assert far(found, logits(model, ids, "sdpa", **given)[:, 41:]) <= 1e-5  # float32
        ran = [layer.ran for layer in stats.layers.values()]
        assert ran == ["dense" if chunk < N else "anchor", "anchor"]


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="in transformers 4 it makes its own mask"
)
@pytest.mark.parametrize("window", [24, 2048])
def test_a_window_that_layers_do_not_know_of_goes_with_padding(window):
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": window}
    model = transformers.PhimoeForCausalLM(transformers.PhimoeConfig(**COMMON | sizes)).eval()
    ids = tokens()
    for given in ({}, {"attention_mask": LEFT}):
        with options(theta=math.inf, **SIZES), record() as stats:
            found = logits(model, ids, "anchor_attention", **given)[:, 41:]
        assert far(found, logits(model, ids, "sdpa", **given)[:, 41:]) <= 1e-5  # float32
        assert stats.layers[0].ran == ("dense" if window < N else "anchor")


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="in transformers 4 it makes its own mask"
)
def test_packed_texts_of_which_a_mask_is_not_told_are_refused_with_a_way_that_works():
    sizes = {"ffn_dim": 48, "word_embed_proj_dim": 32}
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**COMMON | sizes)).eval()
    bounds = torch.tensor([0, 41, N], dtype=torch.int32)
    given = {"position_ids": PACKED, "use_cache": False}
    with options(theta=math.inf, **SIZES):
        with pytest.raises(
            ValueError, match="tells its mask nothing of positions: pass cu_seq_le"
        ):
            logits(model, tokens(), "anchor_attention", **given)
        bounds = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        found = logits(model, tokens(), **given, **bounds)
        for start, end in ((0, 41), (41, N)):
            alone = logits(model, tokens()[:, start:end], use_cache=False)
            assert far(found[:, start:end], alone) <= 1e-5  # float32


OWN_ATTENTION = {
    "Falcon": {"num_attention_heads": 4},  # which died of a KeyError
    "GPTJ": {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4},
    "OpenAIGPT": {"n_embd": 32, "n_head": 4, "n_layer": 2},  # which ran its own without a word
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},  # whose configuration has parts
    "Mamba": {},  # which has none
    "Rwkv": {"attention_hidden_size": 32},
}


@pytest.mark.parametrize("family", OWN_ATTENTION)
@pytest.mark.parametrize("name", ["anchor_attention", {"": "anchor_attention"}])
@pytest.mark.parametrize("how", ["from_config", "from_pretrained", "set_attn_implementation"])
def test_models_that_do_not_ask_for_their_attention_are_refused_alike(family, how, name, tmp_path):
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2} | OWN_ATTENTION[family]
    config = getattr(transformers, f"{family}Config")(**sizes)
    auto = transformers.AutoModelForCausalLM
    model = auto.from_config(config)
    refusal = f"through transformers' AttentionInterface, got {type(model).__name__}, which does"
    model.save_pretrained(tmp_path)
    build_or_set, *given = {
        "from_config": (auto.from_config, config),
        "from_pretrained": (auto.from_pretrained, tmp_path),
        "set_attn_implementation": (model.set_attn_implementation,),
    }[how]
    with pytest.raises(ValueError, match=refusal):
        build_or_set(*given, attn_implementation=name)
    model.set_attn_implementation("eager")  # other names do what they did
    assert auto.from_config(config, attn_implementation="eager").config is not None


class Wrapper(transformers.PreTrainedModel):
    """Somebody's own, with a model of transformers inside."""

    config_class = transformers.LlamaConfig


@pytest.mark.parametrize(
    ("model", "config", "asks"),
    [
        ("LlamaForCausalLM", "LlamaConfig", True),
        ("LlavaForConditionalGeneration", "LlavaConfig", True),  # its parts do
        ("ResNetModel", "ResNetConfig", True),  # reads images: keeps what it has
        (Wrapper, "LlamaConfig", True),
        ("GPTJForCausalLM", "GPTJConfig", False),
        ("MptForCausalLM", "MptConfig", False),
    ],
)
def test_who_asks_the_interface(model, config, asks):
    kind = getattr(transformers, model) if isinstance(model, str) else model
    assert asks_interface(kind, getattr(transformers, config)()) == asks


def test_models_made_of_others_are_not_refused():
    class Derived(transformers.LlamaForCausalLM):
        pass

    config = transformers.LlamaConfig(**COMMON)
    config._attn_implementation = "anchor_attention"
    assert Derived(config).config._attn_implementation == "anchor_attention"


@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="transformers 4 warns")
@pytest.mark.parametrize("n", [1, 20, N])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_weights_that_nobody_has_are_refused_not_left_out(family, n):
    if family == "gpt2":  # which does not tell its layers
        config = transformers.GPT2Config(**COMMON)
        model = transformers.GPT2LMHeadModel(config).eval()
        model.set_attn_implementation("anchor_attention")
    else:
        model = build(family)
    with options(theta=THETA, **SIZES):
        with pytest.raises(ValueError, match=r"output_attentions must be False with .*'eager'"):
            model(tokens(n=n), output_attentions=True)
        assert model(tokens(n=20), output_hidden_states=True).attentions is None
    model.set_attn_implementation("eager")
    assert (
        len(model(tokens(n=n), output_attentions=True).attentions)
        == len(model(tokens(n=n), output_hidden_states=True).hidden_states) - 1
    )


def test_weights_that_a_layer_itself_is_asked_for_are_refused():
    """As in transformers 4, and where torch.compile sees no more than the layer."""
    layer, x = build().model.layers[0].self_attn, torch.zeros(1, 4, N, 8)
    attend = transformers.AttentionInterface()["anchor_attention"]
    with pytest.raises(ValueError, match="output_attentions must be False"):
        attend(layer, x, x, x, None, output_attentions=True)


def test_a_text_model_told_to_look_both_ways_is_refused():
    model = build("gemma")
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(ValueError, match="attention in both directions"):
        logits(model, tokens())


def test_gradients_are_refused_where_there_are_none_and_flow_where_attention_is_dense():
    model = build()
    with options(theta=THETA, **SIZES):
        with pytest.raises(ValueError, match=r"run under torch\.no_grad\(\): AnchorAttention has"):
            model(tokens())
        model(tokens(n=30)).logits.sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing_changes_nothing_without_gradients():
    model, ids = build(), tokens()
    with options(theta=THETA, **SIZES):
        expected = logits(model, ids)
        model.gradient_checkpointing_enable()
        assert torch.equal(logits(model, ids), expected)
        assert torch.equal(logits(model.train(), ids, use_cache=False), expected)


def test_attention_dropout_is_refused():
    model = build(attention_dropout=0.1)
    with options(theta=THETA, **SIZES):
        assert logits(model, tokens()).isfinite().all()
        with pytest.raises(ValueError, match=r"attention dropout must be 0 .* got 0\.1"):
            logits(model.train(), tokens())


def gemma3_with_images():
    vision = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**COMMON, layer_types=["full_attention"] * 2),
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=16, intermediate_size=16, **vision
        ),
        mm_tokens_per_image=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    return model, torch.zeros(1, 3, 28, 28)


def test_a_vision_part_is_refused_with_the_way_out():
    model, pixels = gemma3_with_images()
    model.set_attn_implementation("anchor_attention")
    with pytest.raises(
        ValueError, match=r"Siglip.* give this part of the model .* 'sdpa' or 'eager'$"
    ):
        model.get_image_features(pixels)
    model.set_attn_implementation({"text_config": "anchor_attention", "vision_config": "sdpa"})
    model.get_image_features(pixels)
    with options(theta=math.inf, **SIZES), record() as stats:
        found = logits(model, tokens())
    model.set_attn_implementation({"text_config": "sdpa"})
    assert far(found, logits(model, tokens())) <= 1e-5  # float32
    assert [call.ran for call in stats.calls] == ["anchor", "anchor"]


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="transformers 4 names the tokens otherwise"
)
def test_tokens_of_an_image_see_each_other_and_the_layer_is_not_said_to_have_a_window():
    model, pixels = gemma3_with_images()
    ids, image = tokens(), torch.zeros(1, N, dtype=torch.long)
    image[0, 21:25], model.config.image_token_id = 1, 0
    ids[image.bool()] = 0
    given = {"pixel_values": pixels, "token_type_ids": image}
    expected = logits(model, ids, **given)
    assert far(logits(model, ids), expected) > 1e-3
    model.set_attn_implementation({"text_config": "anchor_attention"})
    with options(theta=math.inf, **SIZES), record() as stats:
        assert far(logits(model, ids, **given), expected) <= 1e-5
    assert [call.why for call in stats.calls] == [
        "the layer has a mask that is more than causal"
    ] * 2
