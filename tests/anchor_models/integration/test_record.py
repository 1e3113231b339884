"""What a record tells is what happened."""

import math
import time

import pytest
import torch

from anchor_models import capture_qkv
from anchor_models.integration import prefill
from anchor_models.transformers import options, record
from anchor_ref import AnchorConfig
from anchor_ref.measure import measure
from tests.anchor_models.integration.tiny import SIZES, THETA, N, build, logits, tokens

PAIRS = N * (N + 1) // 2


def test_density_is_the_one_of_measure():
    model, ids = build(), tokens()
    with options(theta=THETA, **SIZES), record() as stats:
        logits(model, ids)
        taken = capture_qkv(model, ids, dtype=None)
    config = AnchorConfig(theta=THETA, **SIZES)
    for layer, x in taken.items():
        expected = measure(x.q, x.k, x.v, config, x.scaling).density[0]
        assert torch.equal(stats.layers[layer].density, expected)
    assert len({round(d, 6) for d in stats.layers[1].density.tolist()}) > 1


def test_density_weighs_texts_and_calls_by_their_pairs():
    model, ids = build(num_hidden_layers=1), tokens(2)
    mask = (torch.arange(N) >= torch.tensor([[0], [40]])).long()
    with options(theta=THETA, **SIZES), record() as stats:
        logits(model, ids[:1])
        logits(model, ids[1:, 40:])
        logits(model, ids, attention_mask=mask)
    long, short, both = stats.calls
    assert (long.pairs, short.pairs, both.pairs) == (PAIRS, 60 * 61 // 2, PAIRS + 60 * 61 // 2)
    expected = (long.density * long.pairs + short.density * short.pairs) / both.pairs
    torch.testing.assert_close(both.density, expected)
    torch.testing.assert_close(stats.layers[0].density, expected)
    assert stats.density == pytest.approx(expected.mean().item())


def test_dense_calls_say_why():
    model = build("qwen2_sliding")
    with options(theta=-math.inf, **SIZES), record() as stats:
        logits(model, tokens(n=20))
        logits(model, tokens())
    assert [(call.layer, call.ran, call.queries, call.keys, call.why) for call in stats.calls] == [
        (0, "dense", 20, 20, "20 keys are no more than a group"),
        (1, "dense", 20, 20, "20 keys are no more than a group"),  # and than the window
        (0, "anchor", N, N, stats.calls[2].why),
        (1, "dense", N, N, "the layer has a window of its own"),
    ]
    assert stats.calls[2].why.startswith("torch: the kernels cannot run")
    assert stats.layers[0].ran == "both"
    assert (stats.calls[0].density == 1).all()
    assert stats.layers[1].density.isnan().all()  # its own mask hides keys
    assert not math.isnan(stats.density)


def test_seconds_are_those_of_attention(monkeypatch):
    model = build(num_hidden_layers=1)
    slow = prefill.anchor_attention

    def slower(*args, **kwargs):
        time.sleep(0.2)
        return slow(*args, **kwargs)

    monkeypatch.setattr(prefill, "anchor_attention", slower)
    started = time.perf_counter()
    with options(theta=THETA, **SIZES), record() as stats:
        logits(model, tokens())
    assert 0.2 <= stats.seconds == stats.layers[0].seconds <= time.perf_counter() - started


def test_records_nest_end_and_leave_decoding_out():
    model, ids = build(), tokens(n=40)
    with options(theta=THETA, **SIZES), record() as outer:
        with record() as inner:
            model.generate(ids, max_new_tokens=3, do_sample=False)
        assert [call.queries for call in inner.calls] == [40, 40]
        logits(model, ids)
        assert len(outer.calls) == 2
    logits(model, ids)
    assert len(outer.calls) == 2


def test_a_record_reads_as_a_table():
    with options(theta=THETA, **SIZES), record() as stats:
        logits(build(), tokens())
    head, *rows = str(stats).splitlines()
    assert head.split() == ["layer", "ran", "density", "least-most", "tail", "seconds"]
    assert [row.split()[:2] for row in rows] == [["0", "anchor"], ["1", "anchor"]]
    assert rows[1].split()[2] == f"{stats.layers[1].density.mean():.3f}"
    assert str(type(stats)()) == head


def test_the_density_of_nothing_is_refused_with_what_is_missing():
    with record() as stats:
        logits(build(), tokens(n=1))
    assert stats.seconds == 0
    with pytest.raises(ValueError, match="the record must hold a call, got none: no model with"):
        _ = stats.density
