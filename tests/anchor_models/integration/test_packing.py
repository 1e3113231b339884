"""The texts of a call are read once for all layers; masks of dense chunks are drawn in strips."""

import math
from itertools import count
from types import SimpleNamespace

import pytest
import torch
import transformers

import anchor_ref
from anchor_models.integration import later, packing, passes, prefill
from anchor_models.integration.sequences import HIDDEN, Tokens, goes_on
from anchor_models.transformers import options, record
from tests.anchor_models.integration.tiny import (
    COMMON,
    SIZES,
    THETA,
    N,
    build,
    far,
    logits,
    tokens,
)


def counted(monkeypatch, module, name):
    """How often a function of a module is called, and with what."""
    calls, function = [], getattr(module, name)

    def count(*args, **kwargs):
        calls.append((args, kwargs))
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, count)
    return calls


def segments(n_hidden):
    """One text of 40 keys, the first of them padding."""
    text_of = torch.zeros(40, dtype=torch.int32)
    text_of[:n_hidden] = HIDDEN
    return torch.stack([text_of, torch.arange(40, dtype=torch.int32)])[None, None]


def test_layers_share_one_look_at_mask_and_positions(monkeypatch):
    model, ids = build(num_hidden_layers=3), tokens(2)
    mask = (torch.arange(N) >= torch.tensor([[0], [35]])).long()
    reads = counted(monkeypatch, packing, "from_segments")
    checks = counted(monkeypatch, packing, "goes_on")
    with options(theta=THETA, **SIZES):
        for times in (1, 2):
            logits(model, ids, attention_mask=mask)
            assert (len(reads), len(checks)) == (times, times)
        logits(model, ids)
    assert (len(reads), len(checks)) == (2, 3)


def test_positions_must_go_on_in_every_text():
    every, on, again = slice(0, 4), [0, 1, 2, 3], [0, 1, 0, 1]
    texts = [Tokens(slice(row, row + 1), every, every) for row in (0, 1)]
    for rows in ([on, on], [on, again], [again, on]):
        assert goes_on(torch.tensor(rows), texts) == (again not in rows)


def test_texts_are_read_again_when_anything_is_another_or_was_written_to(monkeypatch):
    x, reads = torch.zeros(1, 2, 40, 8), counted(monkeypatch, packing, "_read")
    layers, config = count(), transformers.LlamaConfig()
    mask, positions = segments(3), torch.arange(40)[None]

    def look(mask, positions, x=x):
        module = SimpleNamespace(layer_idx=next(layers), config=config)
        given = {"position_ids": positions}
        read = passes.pass_of(x.shape, x.shape, mask, given, module)
        return packing.texts_of(read, x, x, mask, given)

    first = look(mask, positions)
    assert look(mask, positions) is first
    assert first[0].keys == slice(3, 40)
    mask[0, 0, 0, :9] = HIDDEN
    assert look(mask, positions)[0].keys == slice(9, 40)
    assert look(segments(4), positions)[0].keys == slice(4, 40)  # which is gone at once
    assert look(None, positions)[0].keys == slice(0, 40)
    assert look(None, positions, x[:, :, :20])[0].keys == slice(0, 20)
    positions[0, 20] = 0
    with pytest.raises(ValueError, match="position_ids must not begin again inside a text"):
        look(None, positions)
    assert len(reads) == 6
    with torch.inference_mode():  # whose tensors count no writes
        assert look(mask, torch.arange(40)[None])[0].keys == slice(9, 40)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_what_buffers_hold_is_read_anew_by_every_pass(n_layers):
    """A serving loop writes the next prompt where the last one stood; inference mode hides it."""
    model, ids = build(num_hidden_layers=n_layers), tokens()

    def given(cut: int) -> dict:
        bounds = torch.tensor([0, cut, N], dtype=torch.int32)
        # Positions that go on: with restarting ones the model would make a mask for each pass.
        positions = torch.arange(N)[None]
        return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "position_ids": positions}

    cuts, found = (40, 70, 55), []
    with torch.inference_mode(), options(theta=THETA, **SIZES):
        buffers = given(cuts[0])
        for cut in cuts:
            for name, new in given(cut).items():
                buffers[name].copy_(new)
            found.append(model(ids, use_cache=False, **buffers).logits)
        expected = [model(ids, use_cache=False, **given(cut)).logits for cut in cuts]
    assert not torch.equal(expected[0], expected[1])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_buffers_hold_is_read_anew_by_another_model():
    """A small model drafts, a hybrid whose first layer has no attention reads: both from these."""
    sizes = {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16}
    config = transformers.Lfm2Config(**COMMON | sizes, attn_implementation="anchor_attention")
    small, hybrid = build(num_hidden_layers=1), transformers.Lfm2ForCausalLM(config).eval()
    ids = tokens()
    with torch.inference_mode(), options(theta=math.inf, **SIZES):
        bounds = torch.tensor([0, 40, N], dtype=torch.int32)
        buffers = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        buffers["position_ids"] = torch.arange(N)[None]
        small(ids, use_cache=False, **buffers)
        bounds[1] = 70
        found = hybrid(ids, use_cache=False, **buffers).logits
        new = {name: x.clone() for name, x in buffers.items()}
        assert torch.equal(found, hybrid(ids, use_cache=False, **new).logits)


def test_what_buffers_hold_is_read_anew_where_the_first_layers_are_gone():
    model, ids = build(num_hidden_layers=3), tokens()
    with torch.inference_mode(), options(theta=math.inf, **SIZES):
        bounds, positions = torch.tensor([0, 40, N], dtype=torch.int32), torch.arange(N)[None]
        given = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "position_ids": positions}
        model(ids, use_cache=False, **given)
        bounds[1] = 70
        model.model.layers = model.model.layers[1:]
        found = model(ids, use_cache=False, **given).logits
        new = {name: x.clone() for name, x in given.items()}
        assert torch.equal(found, model(ids, use_cache=False, **new).logits)


RESTARTS = (torch.arange(N) % 60)[None]
BEGIN_AGAIN = "position_ids must not begin again inside a text"


class FromDevice(later.Later):
    """An answer that is there when it has been asked for so often, or when somebody waits."""

    def __init__(self, value, asked: int):
        self.value, self.left, self.waited = bool(value), asked, 0

    def known(self, wait):
        self.waited += wait
        self.left -= 1
        return self.value if wait or self.left <= 0 else None


@pytest.fixture
def from_device(monkeypatch):
    """Makes answers come later, as those of a GPU; returns all of them."""

    later_may_come = packing.may_come_later

    def come(asked: int, cuda: bool = True) -> list[FromDevice]:
        answers = []

        def make(value):
            answers.append(FromDevice(value, asked))
            return answers[-1]

        monkeypatch.setattr(later, "_is_captured", lambda: False)
        monkeypatch.setattr(packing, "may_come_later", lambda _, *x: later_may_come(cuda, *x))
        monkeypatch.setattr(packing, "Later", make)
        return answers

    return come


def layers_that_ran(model) -> list[int]:
    seen = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda layer, _: seen.append(layer.self_attn.layer_idx))
    return seen


@pytest.mark.parametrize("when", ["dense", "sparse", "looked at"])
@pytest.mark.parametrize(("asked", "refused_by", "waited"), [(1, 1, 0), (2, 2, 0), (9, 3, 1)])
def test_restarts_are_refused_by_the_layer_that_hears_of_them(
    from_device, when, asked, refused_by, waited
):
    """The last one waits: no output of the model is made of texts taken for one."""
    model, answers = build(num_hidden_layers=4), from_device(asked)
    seen = layers_that_ran(model)
    theta = {0: THETA, 1: 5.0, 2: 6.0, 3: 7.0} if when == "looked at" else THETA
    sizes = SIZES if when != "dense" else SIZES | {"block_size": 64}  # a text is one group
    with options(theta=theta, **sizes), pytest.raises(ValueError, match=BEGIN_AGAIN):
        logits(model, tokens(), position_ids=RESTARTS)
    assert seen == list(range(refused_by + 1))
    assert [x.waited for x in answers] == [waited]
    with options(theta=theta, **sizes):  # the next prompt is none the worse for it
        logits(model, tokens())
    assert len(answers) == 2


def test_positions_that_go_on_are_asked_about_once_and_waited_for_at_the_end(from_device):
    model, answers = build(num_hidden_layers=4), from_device(9)
    with options(theta=THETA, **SIZES):
        found = logits(model, tokens())
        assert [x.waited for x in answers] == [1]
        answers[0].left = 9
        assert torch.equal(logits(model, tokens()), found)
    assert answers[0].left == 9


def test_a_pass_that_another_one_follows_is_waited_for(from_device):
    """Of a model whose last layers have another mask, or do not ask."""
    answers, config = from_device(9), transformers.LlamaConfig()
    x = torch.zeros(1, 2, 40, 8)
    given = {"position_ids": (torch.arange(40) % 30)[None]}

    def layer(index, mask=None):
        read = passes.pass_of(
            x.shape, x.shape, mask, given, SimpleNamespace(layer_idx=index, config=config)
        )
        return packing.texts_of(read, x, x, mask, given)

    layer(0)
    assert answers[0].waited == 0
    with pytest.raises(ValueError, match=BEGIN_AGAIN):
        layer(1, segments(3))


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 1}, {"layer_types": ["full_attention", "conv"]}, {"is_cuda": False}],
    ids=str,
)
def test_where_nobody_would_hear_the_answer_the_first_layer_waits(from_device, changes):
    answers = from_device(9, changes.get("is_cuda", True))
    config = transformers.LlamaConfig(num_hidden_layers=2)
    vars(config).update(changes)
    x, given = torch.zeros(1, 2, 40, 8), {"position_ids": (torch.arange(40) % 30)[None]}
    module = SimpleNamespace(layer_idx=0, config=config)
    read = passes.pass_of(x.shape, x.shape, None, given, module)
    with pytest.raises(ValueError, match=BEGIN_AGAIN):
        packing.texts_of(read, x, x, None, given)
    assert answers == []


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("when", ["auto", "always"])
def test_a_pass_does_not_make_the_host_wait(when):
    """With positions that a caller hands over, and with those of the model."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = build(num_hidden_layers=4, **sizes).to("cuda", torch.bfloat16)
    ids = tokens().repeat(1, 30).to("cuda")  # more than a group
    positions = torch.arange(ids.shape[1], device="cuda")[None]
    with options(when=when), torch.no_grad():
        model(ids)  # compiles kernels, makes tables
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = model(ids).logits
            again = model(ids, position_ids=positions).logits
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(found, again)
        with pytest.raises(ValueError, match=BEGIN_AGAIN):
            model(ids, position_ids=positions % 1000)


@pytest.mark.parametrize("name", ["cu_seq_lens_q", "cu_seq_lens_k"])
def test_bounds_that_are_no_tensor_are_refused_by_name(name):
    given = {"cu_seq_lens_q": torch.tensor([0, 40, N])} | {name: [0, 40, N]}
    with pytest.raises(TypeError, match=f"{name} must be of type Tensor, got list"):
        logits(build(), tokens(), use_cache=False, **given)


@pytest.mark.parametrize("theta", [THETA, [[THETA, 1.0, 2.0, math.inf], THETA]])
def test_a_trace_is_asked_for_by_a_record_alone(monkeypatch, theta):
    """Without it the host need not wait for the length of a list."""
    model, ids = build(), tokens()
    calls = counted(monkeypatch, prefill, "anchor_attention")
    later = counted(monkeypatch, anchor_ref, "anchor_attention")
    with options(theta=theta, **SIZES):
        plain = logits(model, ids)
        assert not any(kwargs.get("return_trace") for _, kwargs in calls + later)
        calls.clear()
        with record():
            assert torch.equal(logits(model, ids), plain)
    assert [kwargs["return_trace"] for _, kwargs in calls] == [True, True]


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("rows", [1, 7, 13, 40])
def test_dense_attention_of_a_chunk_is_that_of_its_whole_mask(monkeypatch, family, rows):
    layer = build(family).model.layers[0].self_attn
    generator = torch.Generator().manual_seed(2)
    kv_heads = 4 // layer.num_key_value_groups
    sizes = ((4, 40, 12), (kv_heads, N, 12), (kv_heads, N, 6))
    q, k, v = (torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in sizes)
    given = {"dropout": 0.0, "scaling": 0.5}
    lower = torch.ones(40, N, dtype=torch.bool).tril(N - 40)[None, None]
    expected = prefill.dense(layer, q, k, v, lower, given)
    monkeypatch.setattr(prefill, "STRIP", rows * N + 3)
    calls = counted(monkeypatch, prefill, "dense")
    found = prefill._dense_causal(layer, q, k, v, given)
    assert far(found, expected) <= 1e-14
    drawn = [args[4] for args, _ in calls]
    assert max(mask.numel() for mask in drawn) <= rows * N
    assert len(drawn) == math.ceil(40 / rows)
