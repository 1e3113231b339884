"""A few tokens tell which layers attend, and what else carries anything from token to token."""

import pytest
import torch
import transformers

from anchor_models.parallel.prefill import refuse_other_models
from anchor_models.probe import attention_calls, own_values, token_mixer
from tests.tiny_llama import LLAMA, SPECIAL_TOKENS

N = 100
COMMON = {**LLAMA, **SPECIAL_TOKENS, "initializer_range": 0.2, "max_position_embeddings": 512}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
SLIDING = ["sliding_attention", "full_attention"]
LLAMA4 = {"intermediate_size_mlp": 48, "num_local_experts": 2}
# family -> sizes, layers that attend, what sequence parallelism cannot do there
FAMILIES = {
    "Llama": ({}, [0, 1], None),
    "Mixtral": ({"num_local_experts": 4, "num_experts_per_tok": 2}, [0, 1], None),
    "GPT2": ({}, [0, 1], None),
    "Jamba": (
        {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        [1],
        r"layers\.0\.mamba, a JambaMambaMixer",
    ),
    "Bamba": ({**MAMBA, "attn_layer_indices": [1]}, [1], r"layers\.0\.mamba, a BambaMixer"),
    "FalconH1": (
        {**MAMBA, "mamba_d_ssm": 64, "mamba_chunk_size": 16},
        [0, 1],
        r"layers\.0\.mamba, a FalconH1Mixer",
    ),
    "Lfm2": (
        {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
        [1],
        r"layers\.0\.conv, a Lfm2ShortConv",
    ),
    "Qwen3Next": (
        {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16},
        [1],
        r"layers\.0\.linear_attn, a Qwen3NextGatedDeltaNet",
    ),
    "MiniMax": (
        {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2},
        [1],
        r"layers\.0\.self_attn, a MiniMaxLightningAttention",
    ),
    "Llama4": ({**LLAMA4, "attention_chunk_size": 99}, [0, 1], "window or chunks of 99 tokens"),
    "Gemma3": (
        {"layer_types": SLIDING, "sliding_window": 99},
        [0, 1],
        "a sliding window of 99 tokens in layer 0",
    ),
    "Doge": ({}, [0, 1], "a mask of its own in layer 0 of DogeAttention"),
}
LONG_ENOUGH = {  # windows that hide nothing, and masks for windows that no layer has
    "Llama4": {**LLAMA4, "attention_chunk_size": N},
    "Gemma3": {"layer_types": SLIDING, "sliding_window": N},
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
}


def tiny(family, sizes):
    text = "Text" if family in ("Gemma3", "Llama4") else ""
    config = getattr(transformers, f"{family}{text}Config")(**COMMON | sizes)
    torch.manual_seed(0)
    model = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    return getattr(transformers, model)(config).eval()


def prompt():
    return torch.randint(3, 64, (1, N), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_attend_are_found(family):
    sizes, layers, _ = FAMILIES[family]
    assert attention_calls(tiny(family, sizes), prompt()) == dict.fromkeys(layers, 1)


def test_without_attention_one_sentence_says_so():
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
    with pytest.raises(ValueError, match="attention, none of MambaForCausalLM did"):
        attention_calls(mamba, prompt())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_mixes_tokens_beside_attention_is_refused_by_name(family):
    sizes, _, reason = FAMILIES[family]
    model, ids = tiny(family, sizes), prompt()
    if reason is None:
        refuse_other_models(model, ids, 2)
    else:
        with pytest.raises(ValueError, match=f"model must .*, got .*{reason}"):
            refuse_other_models(model, ids, 2)


@pytest.mark.parametrize("family", LONG_ENOUGH)
def test_windows_that_hide_nothing_are_accepted(family):
    refuse_other_models(tiny(family, LONG_ENOUGH[family]), prompt(), 2)


ROTARY = {"rope_theta": 10000.0, "factor": 4.0}
LONG = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, **ROTARY, "rope_type": "longrope"}
COUNTS = "positions that it counts itself"
LOOKS = "rotary embeddings that look at the length of the prompt"
NO_ROPE = {**LLAMA4, "no_rope_layers": [1, 0], "attention_chunk_size": N}
DECODER = {"is_decoder": True}
SEQ2SEQ = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
# how a token's place is known -> family, sizes, what is said of it; the first share has 50 of 100
PLACES = {
    "counted from 2": ("Roberta", DECODER, f"RobertaForCausalLM with {COUNTS}"),
    "counted from the first given": ("Bart", SEQ2SEQ, f"BartForCausalLM with {COUNTS}"),
    "longrope": ("Phi3", LONG | {"original_max_position_embeddings": 50}, LOOKS),
    "longrope, in all shares": ("Phi3", LONG | {"original_max_position_embeddings": 49}, None),
    "longrope, in none": ("Phi3", LONG | {"original_max_position_embeddings": N}, None),
    "dynamic": ("Llama", ROTARY | {"rope_type": "dynamic"}, LOOKS),
    "yarn": ("Llama", ROTARY | {"rope_type": "yarn"}, None),
    "tuned": ("Llama4", NO_ROPE | {"floor_scale": N}, "counts itself in layer 1 of Llama4Text"),
    "tuned, further on": ("Llama4", NO_ROPE | {"floor_scale": N + 1}, None),
    "tuned, none without positions": ("Llama4", LLAMA4 | {"attention_chunk_size": N}, None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", PLACES)
def test_places_that_more_than_position_ids_tell_are_refused(place, dtype):
    family, sizes, reason = PLACES[place]
    if "rope_type" in sizes:
        below = {"max_position_embeddings": 64}  # what dynamic and yarn were trained for
        sizes = {"rope_parameters": sizes, "sliding_window": None, **below}
        if family == "Phi3":
            own = sizes["rope_parameters"].pop("original_max_position_embeddings")
            sizes |= {"max_position_embeddings": 512, "original_max_position_embeddings": own}
    model, ids = tiny(family, sizes).to(dtype), prompt()
    if reason is None:
        refuse_other_models(model, ids, 2)
    else:
        with pytest.raises(ValueError, match=f"model must .*{reason}"):
            refuse_other_models(model, ids, 2)


@pytest.mark.parametrize("by", [-1, 1])
def test_what_carries_tokens_either_way_is_found(by):
    model = tiny("Llama", {})
    pad = (0, 0, max(by, 0), max(-by, 0))

    def shift(_module, _given, out):
        return torch.nn.functional.pad(out, pad)[:, max(-by, 0) :][:, :N]

    model.model.layers[1].mlp.register_forward_hook(shift)
    with pytest.raises(ValueError, match=r"attention alone, got layers\.1\.mlp, a LlamaMLP"):
        refuse_other_models(model, prompt(), 2)


def test_a_model_that_comes_to_not_a_number_by_itself_mixes_nothing():
    model = tiny("Llama", {})
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0] = torch.nan
    assert token_mixer(model, prompt(), lambda *_: None) is None


@pytest.mark.parametrize("shared", [1, 50, 100])
def test_shares_of_the_tokens_give_the_whole_where_nothing_is_refused(shared):
    """What the refusals are for: with attention put aside, shares compute what the whole does."""
    from anchor_models.interface import replaced_attention

    def make(_original):
        return lambda module, q, k, v, *_, **__: (own_values(q, v), None)

    def far(family):
        model, ids = tiny(family, FAMILIES[family][0]), prompt()
        positions = torch.arange(N)[None]
        with torch.no_grad(), replaced_attention(model, make):
            whole = model(ids, use_cache=False).logits[:, :shared]
            part = model(ids[:, :shared], position_ids=positions[:, :shared], use_cache=False)
            rest = model(ids[:, shared - 1 :], position_ids=positions[:, shared - 1 :])
            last = model(ids, use_cache=False).logits[:, shared - 1 :]
        return max(
            float((a - b).abs().max() / b.abs().max())
            for a, b in ((part.logits, whole), (rest.logits, last))
        )

    for family in ("Llama", "Mixtral", "GPT2"):
        assert far(family) < 1e-4  # float32
    if shared > 1:
        for family in ("Jamba", "Lfm2"):
            assert far(family) > 1e-2


def test_a_probe_leaves_no_trace_and_other_threads_alone():
    from threading import Thread

    model, ids, found = tiny("Lfm2", FAMILIES["Lfm2"][0]), prompt(), []
    with torch.no_grad():
        expected = model(ids).logits

    def run():
        with torch.no_grad():
            found.append(model(ids).logits)

    def beside(*_):
        handle.remove()
        thread = Thread(target=run)
        thread.start()
        thread.join()

    handle = model.model.layers[0].register_forward_pre_hook(beside)
    with pytest.raises(ValueError, match="Lfm2ShortConv"):
        refuse_other_models(model, ids, 2)
    run()
    assert len(found) == 2
    assert all(torch.equal(logits, expected) for logits in found)
    assert not any(module._forward_hooks for module in model.modules())


def test_own_values_are_attention_of_each_token_to_itself():
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (torch.randn(2, heads, N, 8) for heads in (4, 2, 2))
    itself = torch.eye(N, dtype=torch.bool)
    expected = scaled_dot_product_attention(q, k, v, itself, enable_gqa=True)
    torch.testing.assert_close(own_values(q, v), expected.transpose(1, 2))
