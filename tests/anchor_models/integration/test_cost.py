"""Dense attention where no gain is expected: what is expected, when it is asked, what is told."""

import json
import math
from itertools import product

import pytest
import torch

from anchor_models.integration import cost
from anchor_models.integration.cost import Coefficients, Expected, Shape, expected
from anchor_models.transformers import options, record
from anchor_ref import AnchorConfig
from anchor_ref.measure import stripe_pairs
from anchor_ref.plan import StripePlan
from anchor_ref.regions import causal_pairs, groups
from tests.anchor_models.integration.tiny import (
    ROUNDING,
    SIZES,
    THETA,
    N,
    build,
    far,
    logits,
    tokens,
)

KEPT = {
    "9.0": {"share": 0.2, "tokens": 8192, "exponent": -0.5},
    "12.0": {"share": 0.5, "tokens": 8192, "exponent": -0.5},
}


def values(**changes) -> dict:
    """Times of a made-up GPU: dense attention costs a unit a product, we half of it and a call."""
    zero = dict.fromkeys(cost.ANCHOR_WORK, 0.0)
    dense = dict.fromkeys(cost.DENSE_WORK, 0.0)
    found = {
        "device": "a made-up GPU",
        "generation": 9,
        "layer_host_ms": 0.1,
        "host_busy": 1.0,
        "layer_device_ms": {},
        "margin": 0.0,
        "kept": KEPT,
        "anchor": {"host_ms": 0.3, "device_ms": zero | {"products": 1.0, "tail": 1.0}},
        "dense": {"host_ms": 0.1, "device_ms": dense | {"products": 1.0}},
    }
    return found | changes


@pytest.fixture
def measured(monkeypatch):
    """As if these values had been measured on what the tests run on."""

    def take(**changes):
        found = Coefficients(values(**changes))
        monkeypatch.setattr(
            "anchor_models.integration.prefill.expected",
            lambda q, k, config, thetas: cost._expected(
                found,
                Shape(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3]),
                config,
                thetas,
            ),
        )
        return found

    return take


def ran(model, ids, **named) -> list[tuple[str, str]]:
    with options(**(SIZES | {"theta": THETA} | named)), record() as stats:
        logits(model, ids)
    return [(call.ran, call.why) for call in stats.calls]


FAST = {"host_ms": 0.0, "device_ms": dict.fromkeys(cost.ANCHOR_WORK, 0.0)}
SLOW = {"host_ms": 9.0, "device_ms": dict.fromkeys(cost.ANCHOR_WORK, 0.0)}


def test_dense_attention_runs_where_it_is_expected_to_be_faster_and_the_record_has_the_numbers(
    measured,
):
    model, ids = build(), tokens(2)
    measured(anchor=SLOW)
    with options(theta=-math.inf, **SIZES):
        found = logits(model, ids)
    assert torch.equal(found, logits(model, ids, "sdpa"))
    model.set_attn_implementation("anchor_attention")
    ((one, why), other) = ran(model, ids)
    assert (one, other[0]) == ("dense", "dense")
    assert why == (
        "when='auto': a layer is expected to take 9.1 ms with AnchorAttention and 0.2 ms dense, "
        "by times on a made-up GPU"
    )


def test_anchor_attention_runs_where_a_gain_is_expected_and_the_record_has_the_numbers(measured):
    dense = {"host_ms": 5.0, "device_ms": dict.fromkeys(cost.DENSE_WORK, 0.0)}
    measured(anchor=FAST, dense=dense)
    ((one, why), _) = ran(build(), tokens())
    assert one == "anchor"
    assert why.startswith("torch: ")
    assert "to take 0.1 ms with AnchorAttention and 5.1 ms dense" in why


@pytest.mark.parametrize("named", [{"when": "always"}, {"backend": "torch"}])
def test_who_names_a_backend_or_wants_it_always_is_not_overruled(measured, named):
    measured(anchor=SLOW)
    assert [one for one, _ in ran(build(), tokens(), **named)] == ["anchor"] * 2
    model = build()
    model.config.anchor_attention = named
    assert [one for one, _ in ran(model, tokens())] == ["anchor"] * 2
    assert [one for one, _ in ran(model, tokens(), when="auto", backend="auto")] == ["dense"] * 2


@pytest.mark.parametrize(("busy", "gain"), [(1.0, True), (2.4, True), (2.6, False)])
def test_a_gain_must_be_one_with_a_busy_host_too(busy, gain):
    """Of 4 ms dense on the device ours takes 2; the host needs 1.6 ms for ours, 0.6 for dense."""
    shape, config = Shape(1, 4, 2, 4096, 4096, 64), AnchorConfig()
    per_call = {"call": 2.0, **dict.fromkeys(cost.ANCHOR_WORK[1:], 0.0)}
    dense = {"call": 4.0, **dict.fromkeys(cost.DENSE_WORK[1:], 0.0)}
    found = cost.expected_at(
        values(
            anchor={"host_ms": 1.5, "device_ms": per_call},
            dense={"host_ms": 0.5, "device_ms": dense},
            host_busy=busy,
        ),
        shape,
        config,
        0.5,
    )
    assert found.gain is gain
    assert (found.anchor, found.dense) == (2.0, 4.0)  # told is what is usual


def test_each_text_is_asked_about_by_itself(measured):
    """A long text runs AnchorAttention beside a short one that does not."""
    enough = (causal_pairs(80) * 4 * 8) / 1e9
    dense = {"host_ms": 0, "device_ms": dict.fromkeys(cost.DENSE_WORK, 0.0) | {"products": 1.0}}
    anchor = {"host_ms": 0, "device_ms": dict.fromkeys(cost.ANCHOR_WORK, 0.0) | {"call": enough}}
    measured(dense=dense, anchor=anchor, layer_host_ms=0.0)
    mask = (torch.arange(N) >= torch.tensor([[0], [40]])).long()
    with options(theta=-math.inf, **SIZES), record() as stats:
        found = logits(build(num_hidden_layers=1), tokens(2), attention_mask=mask)
    model, ids = build(num_hidden_layers=1), tokens(2)
    assert stats.calls[0].ran == "anchor"
    assert far(found[1:, 40:], logits(model, ids[1:, 40:], "sdpa")) <= ROUNDING
    assert far(found[:1], logits(model, ids[:1], "sdpa")) > 1e-3


def test_where_nothing_was_measured_nothing_is_expected(monkeypatch, tmp_path):
    q = torch.zeros(1, 4, 64, 8)
    assert expected(q, q, AnchorConfig(), (12.0,)) is None  # a processor

    class OnGpu(torch.Tensor):
        is_cuda, device = True, torch.device("cuda", 0)

    def on_gpu(dtype):
        x = torch.zeros(1, 4, 4096, 8, dtype=dtype).as_subclass(OnGpu)
        return expected(x, x, AnchorConfig(), (12.0,))

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: here["capability"])
    monkeypatch.setattr(cost, "FILE", tmp_path / "cost.json")
    here = {"capability": (9, 0)}
    cost.fitted_for.cache_clear()
    assert on_gpu(torch.bfloat16) is None  # no file
    (tmp_path / "cost.json").write_text(json.dumps(values()))
    for here["capability"], dtype, known in (
        ((9, 0), torch.bfloat16, True),
        ((9, 0), torch.float16, True),
        ((9, 0), torch.float32, False),
        ((8, 0), torch.bfloat16, False),
        ((10, 0), torch.bfloat16, False),
    ):
        cost.fitted_for.cache_clear()
        assert (on_gpu(dtype) is not None) == known
    cost.fitted_for.cache_clear()


def test_a_chunk_is_compared_with_masked_attention_and_runs_where_that_was_not_measured():
    shape, config = Shape(1, 4, 2, 100, 400, 8), AnchorConfig(**SIZES)
    assert cost._expected(Coefficients(values()), shape, config, (12.0,)) is None
    masked = {"host_ms": 7.0, "device_ms": dict.fromkeys(cost.DENSE_WORK, 0.0)}
    found = cost._expected(Coefficients(values(masked=masked)), shape, config, (12.0,))
    assert found.dense == pytest.approx(7.1)
    assert cost.dense_work(shape)["scores"] == 4 * 100 * 400 / 1e9


def test_a_gain_must_be_larger_than_what_the_expectation_may_err():
    shape, config = Shape(1, 32, 8, 8192, 8192, 128), AnchorConfig()
    found = [
        cost._expected(Coefficients(values(margin=m)), shape, config, (12.0,)) for m in (0, 9)
    ]
    assert [(x.anchor, x.dense) for x in found] == [(found[0].anchor, found[0].dense)] * 2
    assert 2 * found[0].anchor > found[0].dense > found[0].anchor
    assert [x.gain for x in found] == [True, False]


def test_the_host_counts_where_the_device_is_faster():
    shape, config = Shape(1, 4, 2, 100, 100, 8), AnchorConfig(**SIZES)
    found = cost._expected(Coefficients(values()), shape, config, (12.0,))
    assert (found.anchor, found.dense, found.gain) == (pytest.approx(0.4), 0.2, False)


def test_what_the_device_does_beside_attention_hides_the_host():
    """A call that the host is slow to issue costs nothing where the device has other work."""
    shape, config = Shape(1, 4, 2, 9000, 9000, 8), AnchorConfig(**SIZES)
    assert cost.layer_work(shape) == {"rows": 9000 * 32 / 1e9, "squares": 9000 * 32**2 / 1e9}
    rest = {"rows": 0.5e9 / (9000 * 32), "squares": 1.5e9 / (9000 * 32**2)}
    found = cost._expected(Coefficients(values(layer_device_ms=rest)), shape, config, (12.0,))
    attention = cost.dense_work(shape)["products"]
    assert found.dense == pytest.approx(2.0 + attention)
    assert 2.0 < found.anchor < found.dense
    assert found.gain


@pytest.mark.parametrize(
    ("queries", "keys"), [(100, 100), (33, 33), (40, 100), (20, 111), (1, 64)]
)
@pytest.mark.parametrize("tail", [0, 9, 200])
def test_work_is_what_the_method_counts(queries, keys, tail):
    """With every candidate kept, all pairs are dense attention's; and stage 3's are those of a
    plan that holds every candidate."""
    config, shape = AnchorConfig(16, 2, tail=tail), Shape(3, 4, 2, queries, keys, 8)
    layout = groups(config, queries, keys)
    work = cost.anchor_work(shape, config, 1.0)
    per_head = causal_pairs(queries, keys)
    assert work["products"] + work["tail"] == pytest.approx(3 * 4 * 8 * per_head / 1e9)
    assert work["scores"] == pytest.approx(work["products"] / 8)
    kept = torch.zeros(3, 4, len(layout), keys, dtype=torch.bool)
    for g, group in enumerate(layout):
        kept[:, :, g, group.candidates.start : group.candidates.stop] = True
    always = cost.anchor_work(shape, config, 0.0)
    third = work["products"] - always["products"]
    pairs = int(stripe_pairs(StripePlan.from_mask(kept), layout).sum())
    assert third == pytest.approx(8 * pairs / 1e9)
    assert work["pooled"] == 3 * 4 * 8 * sum(x.pooled_pairs for x in layout) / 1e9
    if tail == 0:
        assert work["tail"] == 0


def test_longer_texts_and_lower_thresholds_keep_a_smaller_share():
    lengths, thetas = (1024, 8192, 65_536), (-math.inf, 0.0, 9.0, 10.0, 12.0, 20.0, math.inf)
    share = {(n, t): cost.kept_share(KEPT, t, n) for n, t in product(lengths, thetas)}
    assert share[8192, 9.0] == 0.2
    assert share[8192, 12.0] == 0.5
    assert share[8192, 10.0] == pytest.approx(0.3)
    assert share[65_536, 12.0] == pytest.approx(0.5 / 8**0.5)
    assert all(share[n, -math.inf] == 0 and share[n, math.inf] == 1 for n in lengths)
    for n in lengths:
        row = [share[n, t] for t in thetas]
        assert row == sorted(row)
        assert 0 <= min(row) <= max(row) <= 1
    for t in thetas:
        column = [share[n, t] for n in lengths]
        assert column == sorted(column, reverse=True)
    assert cost.kept_share({"12.0": KEPT["12.0"]}, 9.0, 8192) == 0.5


def test_thresholds_by_head_count_by_their_mean():
    shape, found = Shape(1, 2, 2, 8192, 8192, 64), Coefficients(values())
    one, other, both = (
        cost._expected(found, shape, AnchorConfig(), t).anchor
        for t in ((9.0,), (12.0,), (9.0, 12.0))
    )
    assert both == pytest.approx((one + other) / 2)


def test_what_is_written_down_is_what_is_read():
    """The committed file: what the experiment writes and this reads."""
    found = json.loads(cost.FILE.read_text(encoding="utf-8"))
    for n, heads, d in product((4096, 131_072), (9, 32), (64, 128)):
        shape = Shape(1, heads, heads // 3 if heads == 9 else 8, n, n, d)
        result = cost._expected(Coefficients(found), shape, AnchorConfig(tail=512), (12.0,))
        assert isinstance(result, Expected)
        assert result.gain or n < 131_072
