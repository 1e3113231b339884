"""Captured q, k, v: what the model's own attention was given, and the model left as it was."""

import gc
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread

import numpy as np
import pytest
import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface

from anchor_models import capture_qkv, load_capture, save_capture
from anchor_models.interface import replaced_attention
from anchor_models.probe import FEW

LAYERS, Q_HEADS, KV_HEADS, DIM, WINDOW = 3, 4, 2, 16, 8
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": Q_HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": DIM,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Large weights make sharp attention: a wrong mask or scale then changes the output visibly.
    "initializer_range": 0.5,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
SLIDING = [WINDOW, None, WINDOW]
# family -> further configuration, sliding window of each layer, softcap
FAMILIES = {
    "Llama": ({}, [None] * LAYERS, None),
    "Qwen2": (
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED},
        SLIDING,
        None,
    ),
    "Qwen3": (
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED},
        SLIDING,
        None,
    ),
    "Mistral": ({"sliding_window": WINDOW}, [WINDOW] * LAYERS, None),
    "Gemma2": (
        {
            "sliding_window": WINDOW,
            "layer_types": MIXED,
            "attn_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 11,
        },
        SLIDING,
        3.0,
    ),
    "Gemma3": (
        {"sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 11},
        SLIDING,
        None,
    ),
}
CASES = [
    (family, implementation)
    for family in FAMILIES
    for implementation in ("sdpa", "eager")
    # transformers' sdpa cannot compute a softcap.
    if (family, implementation) != ("Gemma2", "sdpa")
]


def tiny(family: str, implementation: str = "sdpa", dtype=torch.float64, **more):
    """A random model of that family, a few thousand weights."""
    config_class = getattr(
        transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    )
    sizes = dict(SIZES)
    if family == "Qwen2":
        del sizes["head_dim"]  # hidden_size / heads, by definition of that family
        sizes["hidden_size"] = Q_HEADS * DIM
    config = config_class(**{**sizes, **FAMILIES[family][0], **more})
    config._attn_implementation = implementation
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config).to(dtype).eval()


def prompt(tokens: int = 24, batch: int = 2) -> torch.Tensor:
    return torch.randint(3, 64, (batch, tokens), generator=torch.Generator().manual_seed(1))


def left_padding(batch: int = 2, tokens: int = 24, padded: int = 7) -> torch.Tensor:
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[-1, :padded] = 0
    return mask


def attention_outputs(model, run) -> list[torch.Tensor]:
    """What `run()` hands from each layer's attention to its output projection; not of a probe."""
    found = []

    def look(_, args):
        if args[0].shape[1] > FEW:
            found.append(args[0])

    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(look) for layer in model.model.layers
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def attention_of(layer, attention_mask=None) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, output) of causal attention over what was captured, written anew, row by row."""
    batch, q_heads, tokens, _ = layer.q.shape
    shared = q_heads // layer.k.shape[1]
    weights = torch.zeros(batch, q_heads, tokens, tokens, dtype=torch.float64)
    for b in range(batch):
        for i in range(tokens):
            first = 0 if layer.sliding_window is None else max(0, i - layer.sliding_window + 1)
            seen = torch.arange(first, i + 1)
            if attention_mask is not None:
                seen = seen[attention_mask[b, seen] == 1]
            for h in range(q_heads if len(seen) else 0):
                k, q = layer.k[b, h // shared, seen].double(), layer.q[b, h, i].double()
                score = layer.scaling * k @ q
                if layer.softcap is not None:
                    score = layer.softcap * torch.tanh(score / layer.softcap)
                weights[b, h, i, seen] = score.softmax(0)
    v = layer.v.double().repeat_interleave(shared, 1)
    return weights, (weights @ v).transpose(1, 2).reshape(batch, tokens, -1)


def weights_bound(layer) -> float:
    """How far rounding in the layer's dtype may move the sum of a row's weights.

    A product of D terms is off by D roundings of its largest partial sum, and a softmax weight
    follows its score and the row's normaliser; the sums over the tokens add a rounding each.
    """
    score = layer.scaling * layer.q.norm(dim=-1).max() * layer.k.norm(dim=-1).max()
    roundings = 2 * layer.q.shape[-1] * float(score) + layer.q.shape[2]
    return torch.finfo(layer.q.dtype).eps * roundings


def state(model) -> tuple:
    """All that a capture touches: every configuration's choice, and both registries."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    return (
        [config._attn_implementation for config in configs.values()],
        [config.to_dict() for config in configs.values()],
        set(AttentionInterface._global_mapping),
        set(AttentionMaskInterface._global_mapping),
    )


def logits(model, *args, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(*args, **kwargs).logits


@contextmanager
def left_as_it_was(model):
    before, logits_before = state(model), logits(model, prompt())
    yield
    assert state(model) == before
    assert torch.equal(logits(model, prompt()), logits_before)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "left_padded"])
@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_attention_recomputed_from_a_capture_is_the_models_own(family, implementation, padded):
    # Eager attention rounds its weights to float32 and masks with float32's smallest number.
    dtype = torch.float32 if implementation == "eager" else torch.float64
    model, ids = tiny(family, implementation, dtype), prompt()
    mask = left_padding() if padded else None
    captured = capture_qkv(model, ids, attention_mask=mask, dtype=None)
    outputs = attention_outputs(model, lambda: model(ids, attention_mask=mask))
    assert list(captured) == list(range(LAYERS))
    real = torch.ones_like(ids) if mask is None else mask
    for index, layer in captured.items():
        assert layer.sliding_window == FAMILIES[family][1][index]
        assert layer.softcap == FAMILIES[family][2]
        _, output = attention_of(layer, mask)
        difference = (output - outputs[index])[real == 1].abs().max()
        bound = weights_bound(layer) * layer.v.abs().max()
        assert difference <= bound, f"layer {index}: {difference:.1e} exceeds {bound:.1e}"


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_recomputed_from_a_capture_are_eager_attentions(family):
    model, ids, mask = tiny(family, "eager", torch.float32), prompt(), left_padding()
    captured = capture_qkv(model, ids, attention_mask=mask, dtype=None)
    with torch.no_grad():
        eager = model(ids, attention_mask=mask, output_attentions=True).attentions
    for index, layer in captured.items():
        weights, _ = attention_of(layer, mask)
        difference = (weights - eager[index]).transpose(1, 2)[mask == 1].abs().max()
        bound = weights_bound(layer)
        assert difference <= bound, f"layer {index}: {difference:.1e} exceeds {bound:.1e}"


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_the_model_computes_the_same_bits_while_captured(family, implementation):
    model, ids, mask = tiny(family, implementation, torch.float32), prompt(), left_padding()
    alone = attention_outputs(model, lambda: model(ids, attention_mask=mask))
    watched = attention_outputs(model, lambda: capture_qkv(model, ids, attention_mask=mask))
    assert len(watched) == LAYERS - 1  # the run ends inside the last layer's attention
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=False))

    with replaced_attention(model, lambda original: original):
        inside = logits(model, ids, attention_mask=mask)
    assert torch.equal(inside, logits(model, ids, attention_mask=mask))


def test_a_window_is_one_where_the_mask_has_it_whatever_the_layer_says():
    model = tiny("Llama")
    model.model.layers[1].self_attn.sliding_window = WINDOW
    captured = capture_qkv(model, prompt())
    assert [layer.causal().sliding_window for layer in captured.values()] == [None] * LAYERS


def test_padded_rows_equal_the_prompt_alone_given_its_positions():
    model, ids, mask = tiny("Llama"), prompt(), left_padding()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = capture_qkv(model, ids, attention_mask=mask, position_ids=positions, dtype=None)
    alone = capture_qkv(model, ids[1:, 7:], dtype=None)
    unmasked = capture_qkv(model, ids, dtype=None)
    for layer in range(LAYERS):
        for name in ("q", "k", "v"):
            expected = getattr(alone[layer], name)[0]
            assert torch.allclose(getattr(padded[layer], name)[1, :, 7:], expected, atol=1e-12)
    # The mask is what makes it so: without one, padding leaks into all layers but the first.
    assert torch.allclose(unmasked[0].v[1, :, 7:], alone[0].v[0], atol=1e-12)
    assert not torch.allclose(unmasked[1].v[1, :, 7:], alone[1].v[0], atol=1e-3)


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_the_model_is_left_as_it_was(family, implementation):
    model, ids = tiny(family, implementation), prompt()
    with left_as_it_was(model):
        first = capture_qkv(model, ids)
        second = capture_qkv(model, ids)
    for layer in range(LAYERS):
        assert torch.equal(first[layer].q, second[layer].q)
        assert first[layer].q.dtype == torch.bfloat16


@pytest.mark.parametrize("when", ["in the model", "in the capture"])
def test_the_model_is_left_as_it_was_after_an_exception(when, tmp_path):
    model, ids = tiny("Llama"), prompt()
    with left_as_it_was(model):
        if when == "in the model":

            def fail(*_):
                raise RuntimeError("broken layer")

            hook = model.model.layers[2].register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="broken layer"):
                capture_qkv(model, ids, save_to=tmp_path)
            hook.remove()
        else:
            with pytest.raises(ValueError, match="equally many"):
                capture_qkv(model, ids, heads=[0, 1, 2], save_to=tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_outputs_asked_for_in_the_configuration_survive_a_capture():
    model, ids = tiny("Llama", output_hidden_states=True), prompt()
    # transformers 4 collects them through replaced methods, which must not stay behind.
    logits(model, ids)
    methods = [vars(module).get("forward") for module in model.modules()]
    with left_as_it_was(model):
        capture_qkv(model, ids, [0])
        assert [vars(module).get("forward") for module in model.modules()] == methods
    assert len(model(ids).hidden_states) == LAYERS + 1


def test_a_capture_works_inside_another_replacement():
    model, ids = tiny("Llama"), prompt()
    calls = []

    def counted(original):
        def attention(module, *args, **kwargs):
            calls.append(module.layer_idx)
            return original(module, *args, **kwargs)

        return attention

    with left_as_it_was(model):
        with replaced_attention(model, counted):
            inside = capture_qkv(model, ids, dtype=None)
            assert calls == [0, 1]
            logits(model, ids)
        assert calls == [0, 1, 0, 1, 2]
        outside = capture_qkv(model, ids, dtype=None)
    assert all(torch.equal(inside[layer].v, outside[layer].v) for layer in range(LAYERS))


def test_only_the_capturing_call_is_captured():
    """Another thread reads another text meanwhile, a third captures one, a hook a fourth."""
    model, texts = tiny("Llama"), prompt(batch=5)
    alone = [capture_qkv(model, texts[i : i + 1], dtype=None) for i in range(4)]
    expected, found = logits(model, texts[4:]), {}

    def others(_, args):
        if found or args[0].shape[1] <= FEW:  # of the inner ones; of those that are tried first
            return
        found["inner"] = "running"
        found["inner"] = capture_qkv(model, texts[1:2], dtype=None)
        for name, run in {
            "capture": lambda: capture_qkv(model, texts[2:3], dtype=None),
            "run": lambda: logits(model, texts[4:]),
        }.items():
            thread = Thread(target=lambda name=name, run=run: found.update({name: run()}))
            thread.start()
            thread.join()

    with left_as_it_was(model):
        hook = model.model.layers[1].register_forward_pre_hook(others)
        found["outer"] = capture_qkv(model, texts[:1], dtype=None)
        hook.remove()
    assert torch.equal(found["run"], expected)
    for name, text in {"outer": 0, "inner": 1, "capture": 2}.items():
        assert all(equal(found[name][layer], alone[text][layer]) for layer in range(LAYERS)), name


def test_many_threads_capture_and_run_at_once():
    model, texts = tiny("Llama"), prompt(batch=8)
    alone = [capture_qkv(model, text[None], dtype=None) for text in texts]
    expected = [logits(model, text[None]) for text in texts]

    def work(i):
        if i % 2:
            found = capture_qkv(model, texts[i : i + 1], dtype=None)
            return all(equal(found[layer], alone[i][layer]) for layer in range(LAYERS))
        return torch.equal(logits(model, texts[i : i + 1]), expected[i])

    with left_as_it_was(model), ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, [i for _ in range(10) for i in range(8)]))


@pytest.mark.parametrize(
    ("heads", "kv_heads"),
    [
        ([0], [0]),
        ([3], [1]),
        ([0, 2], [0, 1]),
        ([2, 1], [0, 1]),
        ([2, 3], [1]),
        ([0, 1, 2, 3], [0, 1]),
    ],
)
def test_chosen_heads_keep_the_key_heads_they_read(heads, kv_heads):
    model, ids = tiny("Qwen3"), prompt()
    everything = capture_qkv(model, ids, [1], dtype=None)[1]
    layer = capture_qkv(model, ids, [1], heads, dtype=None)[1]
    assert everything.heads == (0, 1, 2, 3)
    assert layer.heads == tuple(sorted(heads))
    assert torch.equal(layer.q, everything.q[:, sorted(heads)])
    assert torch.equal(layer.k, everything.k[:, kv_heads])
    assert torch.equal(layer.v, everything.v[:, kv_heads])
    # The pairing rule holds for the part as for the whole.
    output = attention_of(everything)[1].unflatten(-1, (Q_HEADS, DIM))[:, :, sorted(heads)]
    part = attention_of(layer)[1].unflatten(-1, (len(heads), DIM))
    assert torch.allclose(part, output, atol=1e-12)


@pytest.mark.parametrize(("part", "heads"), [([0], (0, 1)), ([1], (2, 3)), ([1, 0], (2, 3, 0, 1))])
def test_a_part_of_the_key_heads_has_all_the_query_heads_that_read_them(part, heads):
    whole = capture_qkv(tiny("Gemma2", "eager"), prompt(), dtype=None)[1]
    found = whole.part(part)
    assert found.heads == heads
    assert torch.equal(found.q, whole.q[:, list(heads)])
    assert torch.equal(found.k, whole.k[:, part])
    assert torch.equal(found.v, whole.v[:, part])
    for name in ("scaling", "sliding_window", "softcap", "layer"):
        assert getattr(found, name) == getattr(whole, name), name
    # A part of a part still names the model's heads.
    last = len(part) - 1
    assert found.part([last]).heads == heads[-2:]
    assert torch.equal(found.part([last]).q, whole.q[:, list(heads[-2:])])


@pytest.mark.usefixtures("unchecked_annotations")
def test_indices_may_come_from_tensors_and_arrays():
    model, ids = tiny("Llama"), prompt()
    captured = capture_qkv(model, ids, torch.tensor([2, 0]), np.array([1]))
    assert list(captured) == [0, 2]
    assert [layer.layer for layer in captured.values()] == [0, 2]
    assert captured[2].heads == (1,)


def test_only_the_layers_asked_for_are_run_and_held():
    """Weak references to all that attention was given: nothing of it may outlive the capture."""
    model, ids, given = tiny("Llama"), prompt(), []
    heads_run = []
    hook = model.lm_head.register_forward_hook(lambda *_: heads_run.append(1))

    def watched(original):
        def attention(module, query, key, value, *args, **kwargs):
            given.extend(weakref.ref(x) for x in (query, key, value))
            return original(module, query, key, value, *args, **kwargs)

        return attention

    with replaced_attention(model, watched):
        captured = capture_qkv(model, ids, layers=[1])
    hook.remove()
    gc.collect()
    assert list(captured) == [1]
    assert len(given) == 3  # layer 0 alone: layer 1 ended the run, layer 2 never began
    assert not any(reference() is not None for reference in given)
    assert not heads_run
    for x in (captured[1].q, captured[1].k, captured[1].v):
        assert x.is_contiguous()
        assert x.untyped_storage().nbytes() == x.numel() * x.element_size()
        assert not x.requires_grad


def test_no_cache_of_keys_and_values_is_kept():
    model, seen = tiny("Llama"), []
    hook = model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(
            kwargs.get("past_key_values", kwargs.get("past_key_value"))
        ),
        with_kwargs=True,
    )
    capture_qkv(model, prompt())
    hook.remove()
    assert seen == [None, None]  # of the two tokens that are tried, and of the prompt


def test_a_bare_model_without_a_head_is_captured_too():
    model, ids = tiny("Llama"), prompt()
    whole, bare = capture_qkv(model, ids), capture_qkv(model.model, ids)
    assert all(torch.equal(whole[layer].q, bare[layer].q) for layer in range(LAYERS))


def equal(a, b) -> bool:
    fields = ("scaling", "sliding_window", "softcap", "layer", "heads")
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("q", "k", "v")
    ) and all(getattr(a, name) == getattr(b, name) for name in fields)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_files_give_back_what_was_captured(family, tmp_path):
    implementation = "eager" if family == "Gemma2" else "sdpa"
    model, ids = tiny(family, implementation, torch.float32), prompt()
    captured = capture_qkv(model, ids, [0, 2], [1, 2])

    save_capture(captured, tmp_path / "one.safetensors")
    folder = tmp_path / "new" / "folder"
    streamed = capture_qkv(model, ids, [0, 2], [1, 2], save_to=folder)
    assert len(list(folder.iterdir())) == 2
    for read in (load_capture(tmp_path / "one.safetensors"), streamed, load_capture(str(folder))):
        assert list(read) == [0, 2]
        assert all(equal(read[layer], captured[layer]) for layer in read)


def test_streamed_layers_are_written_one_by_one(tmp_path):
    model, written = tiny("Llama"), []
    hooks = [
        layer.register_forward_pre_hook(lambda *_: written.append(len(list(tmp_path.iterdir()))))
        for layer in model.model.layers
    ]
    capture_qkv(model, prompt(), save_to=tmp_path)
    for hook in hooks:
        hook.remove()
    assert written == [0, 0, 0, 0, 1, 2]  # two tokens are tried first


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_others_may_read_a_capture_as_they_may_any_new_file(tmp_path, umask):
    captured = {0: capture_qkv(tiny("Llama"), prompt(), [0])[0]}
    before = os.umask(umask)
    try:
        (tmp_path / "any").write_text("a file")
        save_capture(captured, tmp_path / "one.safetensors")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("any", "one.safetensors"), 0o666 & ~umask)
    (tmp_path / "one.safetensors").chmod(0o640)
    save_capture(captured, tmp_path / "one.safetensors")
    assert (tmp_path / "one.safetensors").stat().st_mode & 0o777 == 0o640, "written over"


def test_a_capture_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    captured = {0: capture_qkv(tiny("Llama"), prompt(), [0])[0]}
    with pytest.raises(OSError, match="no space"):
        save_capture(captured, tmp_path / "one.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_a_capture_is_not_written_over(tmp_path):
    model = tiny("Llama")
    capture_qkv(model, prompt(), [0], save_to=tmp_path)
    with pytest.raises(FileExistsError, match=r"save_to must hold no capture yet, got .+"):
        capture_qkv(model, prompt(), [1], save_to=tmp_path)
    assert list(load_capture(tmp_path)) == [0]


def test_what_is_no_capture_is_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match=r"path must be a capture's file or folder"):
        load_capture(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        load_capture(tmp_path / "nothing.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="path must hold a capture"):
        load_capture(tmp_path / "weights.safetensors")


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layers": [3]}, ValueError, r"layers must be in 0\.\.2, got 3"),
        ({"layers": [0, -1]}, ValueError, r"layers must be in 0\.\.2, got -1"),
        ({"layers": []}, ValueError, r"layers must name at least one, got \[\]"),
        ({"layers": 1}, TypeError, r"layers must be a list of integers or None, got 1"),
        ({"layers": ["1"]}, TypeError, r"layers must be a list of integers or None, got \['1'\]"),
        ({"heads": [4]}, ValueError, r"heads must be in 0\.\.3, got 4"),
        ({"heads": [0.0]}, TypeError, r"heads must be a list of integers or None"),
        ({"heads": [0, 1, 3]}, ValueError, r"heads must take equally many .* got \[0, 1, 3\]"),
        ({"input_ids": [[3, 4]]}, TypeError, r"input_ids must be a torch\.Tensor, got list"),
        ({"input_ids": torch.ones(2, 3)}, TypeError, r"input_ids must hold integers"),
        (
            {"input_ids": torch.tensor([3, 4])},
            ValueError,
            r"input_ids must have shape \(batch, tokens\) with at least one token, got \(2,\)",
        ),
        ({"input_ids": torch.ones(1, 0).long()}, ValueError, r"at least one token, got \(1, 0\)"),
        (
            {"input_ids": torch.tensor([[5, -1]])},
            ValueError,
            r"in 0\.\.\d+, the vocabulary, got -1",
        ),
        ({"input_ids": torch.tensor([[9**9]])}, ValueError, "the vocabulary, got 387420489"),
        (
            {"attention_mask": torch.ones(2, 23).long()},
            ValueError,
            r"attention_mask must have input_ids' shape \(2, 24\), got \(2, 23\)",
        ),
        ({"attention_mask": torch.ones(2, 24)}, TypeError, r"attention_mask must hold integers"),
        ({"position_ids": range(24)}, TypeError, r"position_ids must be a torch\.Tensor"),
        ({"dtype": torch.int8}, TypeError, r"dtype must be a floating-point .* got torch\.int8"),
        ({"dtype": "bfloat16"}, TypeError, r"dtype must be a floating-point .* got 'bfloat16'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    model = tiny("Llama")
    with left_as_it_was(model), pytest.raises(error, match=message):
        capture_qkv(model, **{"input_ids": prompt(), **arguments})


def without(*names: str) -> dict:
    return {name: size for name, size in SIZES.items() if name not in names}


def sinks():
    config = transformers.GptOssConfig(
        **without("head_dim", "max_position_embeddings"),
        head_dim=DIM,
        num_local_experts=2,
        num_experts_per_tok=1,
        max_position_embeddings=131072,
    )
    return transformers.GptOssForCausalLM(config)


def chunks():
    config = transformers.Llama4TextConfig(
        **SIZES, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=8
    )
    return transformers.Llama4ForCausalLM(config)


def position_bias():
    model = tiny("Llama")

    def biased(_, args, kwargs):
        return args, {**kwargs, "position_bias": torch.zeros(1, Q_HEADS, 24, 24).double()}

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(biased, with_kwargs=True)
    return model


def both_directions():
    config = transformers.Gemma3TextConfig(**SIZES, layer_types=["full_attention"] * LAYERS)
    model = transformers.Gemma3ForCausalLM(config)
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (sinks, "learned attention sinks"),
        (chunks, "attention within chunks"),
        (both_directions, "attention in both directions"),
        (position_bias, "a position bias"),
    ],
)
def test_attention_that_is_more_than_q_k_v_is_refused(make, reason):
    model = make().eval()
    with left_as_it_was(model), pytest.raises(ValueError, match=f"got layer 1 of .* {reason}"):
        capture_qkv(model, prompt(), layers=[1])


def test_models_without_the_interface_are_refused():
    with pytest.raises(TypeError, match="model must be a transformers model, got Linear"):
        capture_qkv(torch.nn.Linear(2, 2), prompt())
    sizes = {"vocab_size": 64, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 32}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    with pytest.raises(ValueError, match="model must be a causal language model, got encoder-dec"):
        capture_qkv(t5, prompt())
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)
    )
    with pytest.raises(ValueError, match="model must have layers that compute attention"):
        capture_qkv(mamba, prompt())


def test_layers_of_a_hybrid_without_attention_are_left_out_or_refused():
    config = transformers.Qwen3NextConfig(
        **without("num_hidden_layers"),
        num_hidden_layers=4,
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    model = transformers.Qwen3NextForCausalLM(config).eval()
    assert list(capture_qkv(model, prompt())) == [1, 3]
    assert list(capture_qkv(model, prompt(), [3])) == [3]
    with pytest.raises(ValueError, match=r"layers must be layers that compute attention, got \[0"):
        capture_qkv(model, prompt(), [0, 1, 2])


def test_the_text_part_of_a_model_with_vision_is_captured():
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(
            **SIZES, sliding_window=WINDOW, layer_types=MIXED
        ),
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        mm_tokens_per_image=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config).double().eval()
    with left_as_it_was(model):
        captured = capture_qkv(model, prompt(), dtype=None)
        assert [layer.sliding_window for layer in captured.values()] == SLIDING
    outputs = []
    hook = model.model.language_model.layers[1].self_attn.o_proj.register_forward_pre_hook(
        lambda _, args: outputs.append(args[0])
    )
    logits(model, prompt())
    hook.remove()
    assert torch.allclose(attention_of(captured[1])[1], outputs[0], atol=1e-9)
