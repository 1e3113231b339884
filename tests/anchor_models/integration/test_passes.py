"""What the first layer of a pass found out serves the others, and nothing that differs does."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import anchor_models.transformers as integration
from anchor_models.integration import passes, prefill
from anchor_models.integration.cost import Expected
from anchor_models.integration.sequences import HIDDEN
from anchor_models.transformers import options, record
from anchor_ref import AnchorConfig, anchor_attention

N = 64
SIZES = {"block_size": 4, "step": 2, "tail": 0}
CONFIG = AnchorConfig(theta=1.0, **SIZES)
SCALE = 0.3


@pytest.fixture(autouse=True)
def no_pass_before(monkeypatch):
    monkeypatch.setattr(passes, "_last", passes.Pass(None, 0, (), (None,) * 4))


def layers(count: int, **config) -> list[SimpleNamespace]:
    """Attention layers of one model, which hand over what a test says."""
    sizes = {"num_hidden_layers": count, "num_attention_heads": 4, "num_key_value_heads": 2}
    shared = transformers.LlamaConfig(**sizes, **config)
    common = {"config": shared, "is_causal": True, "num_key_value_groups": 2}
    return [SimpleNamespace(layer_idx=n, **common) for n in range(count)]


def draw(n: int = N, heads: int = 4):
    q, k, v = (torch.randn(1, h, n, 8) for h in (heads, 2, 2))
    return 3 * q, k, v


def call(layer, q, k, v, mask=None, **kwargs):
    return integration._attention(layer, q, k, v, mask, scaling=SCALE, **kwargs)[0]


def dense(layer, q, k, v):
    return sdpa_attention_forward(layer, q, k, v, None, scaling=SCALE)[0]


def sparse(q, k, v, config=CONFIG):
    return anchor_attention(q, k, v, config, SCALE).transpose(1, 2)


def asked(monkeypatch) -> Mock:
    """How often options were asked for."""
    counted = Mock(wraps=prefill.current_options)
    monkeypatch.setattr(prefill, "current_options", counted)
    return counted


@pytest.mark.parametrize("n", [8, N])
def test_later_layers_take_over_what_the_first_found_out(monkeypatch, n):
    counted = asked(monkeypatch)
    found = layers(3)
    with torch.no_grad(), options(theta=1.0, **SIZES):
        for _ in range(2):
            for layer in found:
                q, k, v = draw(n)  # each its own
                # So few keys are one group, of which all are kept.
                expected = dense(found[0], q, k, v) if n == 8 else sparse(q, k, v)
                assert torch.equal(call(layer, q, k, v), expected)
    assert counted.call_count == 2  # once a pass


def test_a_record_sees_every_layer():
    with torch.no_grad(), options(theta=1.0, **SIZES):
        found, x = layers(4), draw()
        call(found[0], *x)
        with record() as stats:
            call(found[1], *x)
            call(found[2], *x)
        call(found[3], *x)
    assert [one.layer for one in stats.calls] == [1, 2]


def test_a_later_layer_that_is_to_be_dense_is():
    found, x = layers(3), draw()
    with torch.no_grad(), options(theta=1.0, dense_layers=[1], **SIZES):
        outs = [call(layer, *x) for layer in found]
    assert torch.equal(outs[0], sparse(*x))
    assert torch.equal(outs[1], dense(found[1], *x))
    assert torch.equal(outs[2], outs[0])


def test_a_later_layer_has_its_own_threshold():
    x, thetas = draw(), [1.0, 1.0, -1.0, 1.0]
    with torch.no_grad(), options(theta=thetas, **SIZES):
        outs = [call(layer, *x) for layer in layers(4)]
    for theta, out in zip(thetas, outs, strict=True):
        assert torch.equal(out, sparse(*x, AnchorConfig(theta=theta, **SIZES)))
    assert not torch.equal(outs[0], outs[2])


def test_options_that_change_between_layers_hold_from_there_on():
    found, x = layers(3), draw()
    with torch.no_grad(), options(theta=1.0, **SIZES):
        first = call(found[0], *x)
        with options(theta=-1.0):
            second = call(found[1], *x)
        third = call(found[2], *x)
    assert torch.equal(first, sparse(*x))
    assert torch.equal(second, sparse(*x, AnchorConfig(theta=-1.0, **SIZES)))
    assert torch.equal(third, first)


def test_a_configuration_that_changes_between_passes_is_read_anew():
    found, x = layers(2), draw()
    with torch.no_grad():
        for theta in (1.0, -1.0):
            found[0].config.anchor_attention = {"theta": theta, **SIZES}
            for layer in found:
                expected = sparse(*x, AnchorConfig(theta=theta, **SIZES))
                assert torch.equal(call(layer, *x), expected)


def test_a_later_layer_with_other_heads_is_judged_by_itself(monkeypatch):
    counted = asked(monkeypatch)
    found = layers(2)
    with torch.no_grad(), options(theta=1.0, **SIZES):
        for layer, heads in zip(found, (4, 6), strict=True):
            x = draw(heads=heads)
            assert torch.equal(call(layer, *x), sparse(*x))
    assert counted.call_count == 2


@pytest.mark.parametrize("name", ["position_ids", "mask"])
def test_a_later_layer_that_is_handed_something_else_reads_it(name):
    found, x = layers(2), draw()
    with torch.no_grad(), options(theta=1.0, **SIZES):
        call(found[0], *x, position_ids=torch.arange(N)[None])
        other = {"position_ids": torch.cat([torch.arange(N // 2)] * 2)[None]}
        if name == "mask":
            other = {"mask": torch.ones(1, 1, N, N, dtype=torch.bool)}
        with pytest.raises(ValueError, match=r"position_ids must not|attention_mask must be"):
            call(found[1], *x, **other)


def test_the_tokens_of_padded_texts_are_no_ones_decision():
    """Only some rows are the layer's: what becomes of them is decided in every layer."""
    found, (q, k, v) = layers(2), draw()
    segments = torch.stack([torch.zeros(N, dtype=torch.int32), torch.arange(N, dtype=torch.int32)])
    segments[0, :8] = HIDDEN
    mask = segments[None, None]
    with torch.no_grad(), options(theta=1.0, **SIZES):
        first, second = (call(layer, q, k, v, mask) for layer in found)
    expected = torch.zeros_like(first)
    expected[:, 8:] = sparse(q[:, :, 8:], k[:, :, 8:], v[:, :, 8:])
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)


def test_queries_that_are_the_last_of_their_text_see_what_lies_before_them():
    found, (q, k, v) = layers(2), draw()
    everything = torch.zeros(N, dtype=torch.int32)
    last = torch.full((N,), HIDDEN, dtype=torch.int32)
    last[-3:] = torch.arange(3, dtype=torch.int32)  # fewer than a block: dense
    mask = torch.stack([everything, last])[None, None]
    with torch.no_grad(), options(theta=1.0, **SIZES):
        outs = [call(layer, q[:, :, -3:], k, v, mask) for layer in found]
    for out in outs:
        torch.testing.assert_close(out, dense(found[0], q, k, v)[:, -3:])


def test_a_decision_is_for_layers_that_are_handed_the_same():
    (first, second), (q, k, v) = layers(2), draw()
    mask = torch.stack([torch.zeros(N), torch.arange(N)]).to(torch.int32)[None, None]
    given = {"position_ids": torch.arange(N)[None], "use_cache": True}
    another = SimpleNamespace(**vars(second) | {"config": layers(2)[1].config})
    open_ended = SimpleNamespace(**vars(second) | {"is_causal": False})

    def found(module=second, q=q, k=k, mask=mask, **changed):
        passes._last.layer = 0
        return passes.decided(module, q, k, mask, given | changed)

    with torch.no_grad(), options(theta=1.0, **SIZES):
        call(first, q, k, v, mask, **given)
        assert found() is not None
        assert found(first) is None
        assert found(another) is None
        assert found(open_ended) is None
        assert found(q=q[:, :2]) is None
        assert found(q=q.double()) is None
        assert found(q=q.to("meta")) is None
        assert found(k=k.repeat_interleave(2, 1)) is None
        assert found(mask=mask.clone()) is None
        assert found(mask=None) is None
        assert found(position_ids=torch.arange(N)[None]) is None
        assert found(softcap=50.0) is None
        assert found() is not None
        assert passes.decided(second, q, k, mask, given) is None  # a pass goes on, layer by layer
        positions = given["position_ids"]
        positions.zero_()
        assert found() is None
        positions.copy_(torch.arange(N))
        call(first, q, k, v, mask, **given)
        assert found() is not None
        mask.zero_()
        assert found() is None


@pytest.mark.parametrize("name", ["softcap", "s_aux", "is_causal"])
def test_where_layers_may_be_handed_more_than_attention_each_is_looked_at(name):
    (first, second), x = layers(2), draw()
    with torch.no_grad(), options(theta=1.0, **SIZES):
        call(first, *x, **{name: None})
        with pytest.raises(ValueError, match="must have plain causal attention"):
            call(second, *x, **{name: False if name == "is_causal" else 9.0})


def test_thresholds_by_head_are_asked_for_in_every_layer():
    thetas = [[1.0, 1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, 1.0]]
    x = draw()
    with torch.no_grad(), options(theta=thetas, **SIZES):
        outs = [call(layer, *x) for layer in layers(2)]
    low = sparse(*x, AnchorConfig(theta=-1.0, **SIZES))
    for out, at in zip(outs, (3, 0), strict=True):
        torch.testing.assert_close(out[:, :, at], low[:, :, at])
        rest = [head for head in range(4) if head != at]
        torch.testing.assert_close(out[:, :, rest], sparse(*x)[:, :, rest])


@pytest.mark.parametrize("gain", [True, False])
def test_later_layers_run_what_the_first_expected_to_be_faster(monkeypatch, gain):
    times = Mock(return_value=Expected(1.0, 2.0, gain, "a made-up GPU"))
    monkeypatch.setattr(prefill, "expected", times)
    x = draw()
    with torch.no_grad(), options(theta=1.0, **SIZES):
        outs = [call(layer, *x) for layer in layers(3)]
    for out in outs:
        assert torch.equal(out, sparse(*x) if gain else dense(layers(1)[0], *x))
    assert times.call_count == 1


def test_later_layers_follow_autocast_and_take_values_of_another_width():
    found, (q, k, v) = layers(2), draw()
    with torch.no_grad(), options(theta=1.0, **SIZES):
        call(found[0], q, k, v)
        assert torch.equal(call(found[1], q, k, v[..., :5]), sparse(q, k, v)[..., :5])
        call(found[0], q, k, v)
        with torch.autocast("cpu", torch.bfloat16):
            assert call(found[1], q, k, v).dtype == torch.bfloat16


def test_gradients_are_refused_in_later_layers_too():
    found, (q, k, v) = layers(2), draw()
    with options(theta=1.0, **SIZES):
        call(found[0], q, k, v)
        with pytest.raises(ValueError, match="no backward pass"):
            call(found[1], q.clone().requires_grad_(), k, v)
        call(found[0], q, k, v)
        with pytest.raises(ValueError, match="dropout must be 0"):
            call(found[1], q, k, v, dropout=0.1)
