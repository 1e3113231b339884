"""What a capture says of who sees whom is what the layer's own mask has, or it is refused."""

import pytest
import torch
import transformers
from torch.nn.attention.flex_attention import create_block_mask

from anchor_models import capture_qkv, load_capture
from anchor_models.interface import replaced_attention
from anchor_models.seen import OtherMaskError, read_mask
from tests.tiny_llama import LLAMA, SPECIAL_TOKENS

N, WINDOW = 100, 24
COMMON = {
    **LLAMA,
    **SPECIAL_TOKENS,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
FAMILIES = {
    "Llama": {},
    "Gemma3": MIXED,
    "Exaone4": {**MIXED, "sliding_window_pattern": None},
    "Qwen2": {"use_sliding_window": True, **MIXED},
    "FalconH1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
    },
}
LEFT = (torch.arange(N) >= torch.tensor([[0], [41]])).long()
RIGHT = (torch.arange(N) < torch.tensor([[N], [65]])).long()
HOLES = torch.ones(2, N, dtype=torch.long)
HOLES[0, [0, 5, 6, 45, 75]] = 0
HOLES[1, 20:60] = 0
PACKED = torch.cat([torch.arange(n) for n in (41, 1, 58)]).repeat(2, 1)
PROMPTS = {
    "whole": {},
    "left": {"attention_mask": LEFT},
    "right": {"attention_mask": RIGHT},
    "holes": {"attention_mask": HOLES},
    "packed": {"position_ids": PACKED},
}


def tiny(family, implementation="sdpa", **more):
    text = "Text" if family in ("Gemma3", "Llama4") else ""
    config = getattr(transformers, f"{family}{text}Config")
    config = config(**COMMON | FAMILIES.get(family, {}) | more)
    config._attn_implementation = implementation
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def prompt(batch=2):
    return torch.randint(3, 64, (batch, N), generator=torch.Generator().manual_seed(1))


def masks_given(model, **kwargs):
    """The mask of each layer as booleans `[B, N, N]`, taken from the model itself."""
    given = {}

    def make(original):
        def attention(module, query, key, value, mask, *args, **more):
            lower = torch.ones(N, N, dtype=torch.bool).tril().expand(len(query), N, N)
            seen = lower if mask is None else (mask if mask.dtype == torch.bool else mask == 0)
            given[module.layer_idx] = seen if mask is None else seen[:, 0].expand_as(lower)
            return original(module, query, key, value, mask, *args, **more)

        return attention

    with torch.no_grad(), replaced_attention(model, make):
        model(prompt(), use_cache=False, **kwargs)
    return given


def mask_of(captured):
    """What a capture says of who sees whom."""
    key = torch.arange(N)
    seen = (key <= key[:, None]).expand(2, N, N)
    if captured.sliding_window is not None:
        seen = seen & (key > key[:, None] - captured.sliding_window)
    if captured.texts is not None:
        seen = seen & (captured.texts[:, :, None] == captured.texts[:, None])
    return seen


def known(families):
    """Those that the installed transformers has."""
    return [family for family in families if hasattr(transformers, f"{family}ForCausalLM")]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("given", PROMPTS)
@pytest.mark.parametrize("family", known(FAMILIES))
def test_a_capture_tells_the_mask_that_the_layer_was_given(
    family, given, implementation, tmp_path
):
    model = tiny(family, implementation)
    real = PROMPTS[given].get("attention_mask", torch.ones(2, N)).bool()
    captured = capture_qkv(model, prompt(), dtype=None, save_to=tmp_path, **PROMPTS[given])
    own = masks_given(model, **PROMPTS[given])
    assert list(captured) == [0, 1]
    for layer, found in load_capture(tmp_path).items():
        # Rows of padding are nobody's.
        assert torch.equal(mask_of(found)[real], own[layer][real])
        if given != "whole":
            with pytest.raises(ValueError, match=f"layer {layer} was given padding or packed"):
                found.causal()
        elif found.sliding_window is None:
            assert found.causal() is found
        else:
            with pytest.raises(ValueError, match=f"layer {layer} sees a window of {WINDOW} keys"):
                found.causal()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padded_under_anchor_attention_is_told_from_its_segments(implementation):
    import anchor_models.transformers  # noqa: F401

    expected = capture_qkv(tiny("Llama", implementation), prompt(), attention_mask=LEFT)
    found = capture_qkv(tiny("Llama", "anchor_attention"), prompt(), attention_mask=LEFT)
    assert torch.equal(found[1].texts, expected[1].texts)


def test_windows_longer_than_the_prompt_hide_nothing():
    captured = capture_qkv(tiny("Phi3", sliding_window=N), prompt())
    assert [found.causal().sliding_window for found in captured.values()] == [None, None]
    captured = capture_qkv(tiny("Phi3", sliding_window=N - 1), prompt())
    assert [found.sliding_window for found in captured.values()] == [N - 1, N - 1]


def test_the_beginning_that_fits_into_a_window_is_causal():
    found = capture_qkv(tiny("Gemma3"), prompt())[0]
    assert found.first(WINDOW).causal().k.shape[2] == WINDOW
    with pytest.raises(ValueError, match=f"a window of {WINDOW} keys, not all {WINDOW + 1}"):
        found.first(WINDOW + 1).causal()


def test_the_beginning_of_a_padded_prompt_is_causal_where_nothing_is_padded():
    found = capture_qkv(tiny("Llama"), prompt(), attention_mask=RIGHT)[0]
    assert found.first(65).causal().k.shape[2] == 65
    with pytest.raises(ValueError, match="padding or packed texts"):
        found.first(66).causal()


REFUSED = {
    "Doge": ({"keep_window_size": 32}, "a bias of its scores"),
    "DeepseekV32": (
        {
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
        "a mask of its own",
    ),
    "Llama4": (
        {"intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 32},
        "attention within chunks",
    ),
    "DiffLlama": ({}, "which attends 2 times"),
    "HrmText": ({}, r"which attends \d times"),
}


@pytest.mark.parametrize("layers", [None, [0], [1]])
@pytest.mark.parametrize("given", ["whole", "left"])
@pytest.mark.parametrize("family", known(REFUSED))
def test_a_layer_that_computes_more_is_refused_whatever_is_asked_for(family, given, layers):
    sizes, reason = REFUSED[family]
    model = tiny(family, **sizes)
    with pytest.raises(ValueError, match=f"plain causal attention over q, k and v, .* {reason}"):
        capture_qkv(model, prompt(), layers, **PROMPTS[given])


def test_a_chunk_longer_than_the_prompt_hides_nothing():
    sizes = REFUSED["Llama4"][0] | {"attention_chunk_size": N}
    captured = capture_qkv(tiny("Llama4", **sizes), prompt())
    assert [found.causal().layer for found in captured.values()] == [0, 1]


@pytest.mark.parametrize(
    ("implementation", "given"), [("eager", "whole"), ("eager", "left"), ("sdpa", "left")]
)
def test_models_that_look_both_ways_are_refused_padded_or_not(implementation, given):
    model = tiny("Llama", implementation, is_causal=False)
    with pytest.raises(ValueError, match="attention in both directions"):
        capture_qkv(model, prompt(), **PROMPTS[given])


def lower():
    return torch.ones(N, N, dtype=torch.bool).tril()


def changed(change):
    mask = lower()
    change(mask)
    return mask[None, None]


OTHER = {
    "one later key": (
        changed(lambda mask: mask[40, 41].fill_(True)),
        "attention in both directions",
    ),
    "one key less": (changed(lambda mask: mask[40, 7].fill_(False)), "a mask of its own"),
    "a small bias": (
        torch.where(lower(), 0.0, -1e9)[None, None].index_fill(2, torch.tensor(9), -1e-3),
        "a bias of its scores",
    ),
    "not a number": (torch.full((1, 1, N, N), torch.nan), "a bias of its scores"),
    "heads that differ": (
        torch.stack([lower(), lower() & (torch.arange(N) > 3)])[None].repeat(1, 2, 1, 1),
        "a mask of each head",
    ),
    "two windows": (
        (lower() & ~torch.cat([lower().tril(-24)[:60], lower().tril(-33)[60:]]))[None, None],
        "a mask of its own",
    ),
}


@pytest.mark.parametrize("case", OTHER)
@pytest.mark.parametrize("strip", [N * 7, 2**24])
def test_masks_that_are_not_causal_are_told_by_what_they_do(case, strip, monkeypatch):
    monkeypatch.setattr("anchor_models.seen.STRIP", strip)
    mask, reason = OTHER[case]
    module = tiny("Llama").model.layers[0].self_attn
    q, k = torch.zeros(1, 4, N, 8), torch.zeros(1, 2, N, 8)
    with pytest.raises(OtherMaskError, match=reason):
        read_mask(module, q, k, mask, {})
    plain = read_mask(module, q, k, lower()[None, None], {})
    assert (plain.texts, plain.window) == (None, None)


@pytest.mark.parametrize(
    ("rows", "mask", "more", "texts", "window"),
    [
        (1, None, {}, None, None),
        (1, None, {"sliding_window": N}, None, None),
        (1, None, {"sliding_window": N - 1}, None, N - 1),
        (1, None, {"position_ids": PACKED[:1]}, 3, None),
        (2, None, {"position_ids": PACKED}, None, None),  # of which it tells each row for one text
        (2, LEFT, {"position_ids": PACKED}, 1, None),
    ],
)
def test_flash_attention_reads_windows_and_positions_itself(rows, mask, more, texts, window):
    module = tiny("Llama").model.layers[0].self_attn
    module.config._attn_implementation_internal = "flash_attention_2"
    q, k = torch.zeros(rows, 4, N, 8), torch.zeros(rows, 2, N, 8)
    seen = read_mask(module, q, k, mask, more)
    assert seen.window == window
    if texts is None:
        assert seen.texts is None
    else:
        assert seen.texts.max() + 1 == texts
    if mask is not None:
        assert torch.equal(seen.texts == -1, mask == 0)


@pytest.fixture
def own_implementation():
    """One whose layers share a mask of padding and know of their windows themselves."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def attention(module, query, key, value, mask, **kwargs):
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register("tested", attention)
    AttentionMaskInterface.register("tested", lambda **asked: asked["attention_mask"])
    yield "tested"
    del AttentionInterface._global_mapping["tested"]
    del AttentionMaskInterface._global_mapping["tested"]


def test_windows_beside_a_mask_that_layers_share_are_those_of_each(own_implementation):
    real = LEFT.bool()  # of which no copy is made
    captured = capture_qkv(tiny("Gemma3", own_implementation), prompt(), attention_mask=real)
    assert [found.sliding_window for found in captured.values()] == [WINDOW, None]
    assert all(torch.equal(found.texts == -1, ~real) for found in captured.values())


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_a_single_token_sees_itself_whatever_no_mask_means(implementation):
    module = tiny("Llama", implementation).model.layers[0].self_attn
    q, k = torch.zeros(1, 4, 1, 8), torch.zeros(1, 2, 1, 8)
    seen = read_mask(module, q, k, None, {})
    assert (seen.texts, seen.window) == (None, None)


def test_keys_before_the_first_query_are_refused():
    module = tiny("Llama").model.layers[0].self_attn
    q, k = torch.zeros(1, 4, N, 8), torch.zeros(1, 2, N + 7, 8)
    with pytest.raises(OtherMaskError, match="7 keys before its first query"):
        read_mask(module, q, k, None, {})


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "anchor_attention"])
def test_a_single_token_and_a_mask_that_hides_none_are_plain(implementation):
    import anchor_models.transformers  # noqa: F401

    model = tiny("Llama", implementation)
    ones = torch.ones(2, N, dtype=torch.long)
    for ids, mask in ((prompt()[:, :1], None), (prompt(), ones), (prompt()[:, :20], ones[:, :20])):
        for found in capture_qkv(model, ids, attention_mask=mask).values():
            assert (found.causal().texts, found.sliding_window) == (None, None)


@pytest.mark.parametrize("strip", [N * 7 * 2, 2**24])
def test_masks_of_flex_attention_are_read_too(strip, monkeypatch):
    monkeypatch.setattr("anchor_models.seen.STRIP", strip)

    def windowed(b, h, q, k):
        return (k <= q) & (k > q - WINDOW)

    block = create_block_mask(windowed, 2, None, N, N, device="cpu")
    module = tiny("Llama", "flex_attention").model.layers[0].self_attn
    seen = read_mask(module, torch.zeros(2, 4, N, 8), torch.zeros(2, 2, N, 8), block, {})
    assert (seen.texts, seen.window) == (None, WINDOW)
