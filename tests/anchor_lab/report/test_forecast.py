"""A forecast by the integration's cost model, and its coefficients measured on the spot."""

import json
import math
from dataclasses import replace

import pytest
import torch

from anchor_lab.report import forecast, rates
from anchor_lab.report.inspected import InspectedHeads
from anchor_models import Captured
from anchor_models.integration import cost
from anchor_ref import AnchorConfig
from anchor_ref.regions import causal_pairs, groups

TAIL = 512
ZERO = dict.fromkeys(cost.ANCHOR_WORK, 0.0)
# A product costs the same on both sides; a call of ours 20 ms more.
VALUES = {
    "device": "a made-up GPU",
    "layer_host_ms": 0.0,
    "host_busy": 1.0,
    "layer_device_ms": {},
    "margin": 0.0,
    "error": 0.07,
    "matrix_tflops": 100.0,
    "kept": {},
    "anchor": {"host_ms": 0.0, "device_ms": ZERO | {"call": 20.0, "products": 1.0, "tail": 1.0}},
    "dense": {"host_ms": 0.0, "device_ms": {"products": 1.0}},
}


def of(n: int, share: float, positions: int | None = 131_072):
    """A model of 8 heads whose groups all keep this share of their candidates."""
    table = torch.full((2, 3, -(-n // 2048)), share, dtype=torch.float64)
    model = {"heads": 8, "kv_heads": 2, "positions": positions, "layers": 3}
    x = torch.zeros(1, 1, 1, 64)
    heads = torch.zeros(2, 3, 1, dtype=torch.float64)
    return InspectedHeads(
        settings={"length": n},
        model=model,
        layers=[0, 1, 2],
        heads=[0],
        skipped={},
        thetas=[0.0, 9.0],
        recall=heads,
        p10=heads,
        least=heads,
        density=heads,
        shares=table,
        captured={0: Captured(x, x, x, 0.125)},
    )


def test_times_are_those_of_the_cost_model_of_the_integration():
    told = forecast.forecast(of(8192, 0.1), 9.0, VALUES)
    shape, config = cost.Shape(1, 8, 2, 8192, 8192, 64), AnchorConfig(tail=TAIL)
    assert told.here.expected == cost.expected_at(VALUES, shape, config, 0.1)
    assert told.here.expected.dense == pytest.approx(8 * 64 * causal_pairs(8192) / 1e9)
    assert told.here in told.table
    assert [x.tokens for x in told.table] == [4096, 8192, 16_384, 32_768, 65_536, 131_072]
    assert [x.measured for x in told.table] == [True, True, *[False] * 4]


def test_it_is_faster_from_the_length_on_from_which_a_gain_is_expected_at_all_lengths():
    told = forecast.forecast(of(4096, 0.1), 9.0, VALUES)
    first = told.faster_from
    assert 8192 < first < 32_768
    shape = cost.Shape(1, 8, 2, first, first, 64)

    def gain(n):
        config = AnchorConfig(tail=TAIL)
        return cost.expected_at(VALUES, shape._replace(queries=n, keys=n), config, 0.1).gain

    assert gain(first)
    assert not gain(round(first / 1.12))
    assert all(gain(n) for n in range(first, 20 * first, first))
    assert str(told) == (
        f"slower here: use sdpa at 4096 tokens; faster from about {first} tokens on"
    )
    # A gain must be larger than what the expectation may err.
    surer = forecast.forecast(of(4096, 0.1), 9.0, VALUES | {"margin": 1.0})
    assert surer.faster_from > first


def test_words_follow_the_numbers():
    faster = forecast.forecast(of(65_536, 0.1), 9.0, VALUES)
    assert str(faster).startswith("faster here: use AnchorAttention at 65536 tokens; faster from")
    assert not any("do not use it here" in line for line in faster.reasons())
    slower = forecast.forecast(of(4096, 0.1), 9.0, VALUES)
    assert "At this length do not use it here." in slower.reasons()
    assert "a made-up GPU; either may be off by 7 %." in slower.reasons()[0]
    short = forecast.forecast(of(4096, 0.1, positions=8192), 9.0, VALUES)
    assert str(short) == (
        "do not use it here, it is slower: use sdpa at 4096 tokens; faster from about "
        f"{slower.faster_from} tokens on, and the model reads 8192"
    )
    assert [x.tokens for x in short.table] == [4096, 8192]
    never = forecast.forecast(of(4096, 1.0), 9.0, VALUES)
    assert never.faster_from is None
    assert str(never).endswith("not faster at any length up to 1048576")
    even = forecast.forecast(of(65_536, 0.1), 9.0, VALUES | {"margin": 99.0})
    assert "no clear gain: use sdpa at 65536" in str(even)
    lines = slower.lines()
    assert lines[0] == str(slower)
    assert sum(line.lstrip()[:1].isdigit() for line in lines) == len(slower.table)


def test_the_floor_alone_is_named_where_no_threshold_would_help():
    """A product of ours is twice as dear, and at 4096 tokens more than half are kept."""
    dear = timed(anchor=2.0)
    short, longer = (forecast.forecast(of(n, 0.9), 9.0, dear) for n in (4096, 65_536))
    assert not short.floor.pays
    said = "first group, windows and tail alone, which are kept with any θ, are 0.6"
    assert any(f"No θ would change that: {said}" in line for line in short.reasons())
    assert longer.floor.pays
    costly = forecast.forecast(of(65_536, 1.0), 9.0, dear)
    assert not costly.here.expected.gain
    assert not any("No θ would" in line for line in costly.reasons()), "a smaller θ would"


def test_what_a_call_costs_beside_its_pairs_is_named_where_that_decides():
    """The call's 20 ms are more than all of dense attention at 4096 tokens, which takes 4.3."""
    told = forecast.forecast(of(4096, 0.9), 9.0, VALUES)
    assert told.floor.fixed == 20.0
    dense = f"{told.floor.dense:.3g} ms in all with dense attention"
    assert f"takes 20 ms beside its pairs, and {dense}" in told.reasons()[-1]
    assert told.floor.dense == told.here.expected.dense


def timed(host_ms=0.0, busy=1.0, anchor=0.5):
    """Each product of ours takes so many times as long as one of dense attention."""
    return VALUES | {
        "layer_host_ms": host_ms / 2,
        "host_busy": busy,
        "anchor": {"host_ms": host_ms / 2, "device_ms": {"products": anchor, "tail": anchor}},
        "dense": {"host_ms": 0.0, "device_ms": {"products": 1.0}},
    }


def test_where_the_host_decides_it_is_named_and_not_the_pairs():
    dense = cost.dense_work(cost.Shape(1, 8, 2, 8192, 8192, 64))["products"]
    told = forecast.forecast(of(8192, 0.1), 9.0, timed(1.5 * dense))
    floor, line = told.floor, told.reasons()[-1]
    assert not floor.pays
    assert floor.device == pytest.approx(floor.density * dense / 2)
    assert f"No θ would change that: the host needs {1.5 * dense:.3g} ms to issue a layer" in line
    assert f"done in {floor.device:.3g} ms without a stripe. A longer prompt would" in line
    assert "of the pairs" not in line
    # A busy host alone decides where one that is not busy would not.
    busy = forecast.forecast(of(8192, 0.1), 9.0, timed(0.6 * floor.device, busy=20.0))
    assert (
        "ms to issue a layer's attention of AnchorAttention, 20 times as long where it is"
        in (busy.reasons()[-1])
    )
    # Without a host the device would still take longer.
    both = forecast.forecast(of(8192, 0.1), 9.0, timed(99 * dense, anchor=5.0))
    said = f"A faster host would not either, dense takes the device {dense:.3g} ms and a gain"
    assert said in both.reasons()[-1]
    # A host that is not waited for is no cause.
    pairs = forecast.forecast(of(8192, 0.1), 9.0, timed(0.1, anchor=5.0))
    assert "No θ would change that: first group, windows" in pairs.reasons()[-1]


def test_a_longer_prompt_is_promised_a_gain_only_where_one_is_expected_and_read():
    """Where nearly all pairs are kept and are dearer than dense ones no length pays."""
    slow_host = 1.5 * cost.dense_work(cost.Shape(1, 8, 2, 8192, 8192, 64))["products"]
    never = forecast.forecast(of(8192, 0.99), 9.0, timed(slow_host, anchor=1.2))
    unread = forecast.forecast(of(8192, 0.1, positions=8192), 9.0, timed(slow_host))
    assert never.faster_from is None
    assert unread.faster_from > unread.positions
    for told in (never, unread):
        assert told.reasons()[-1].endswith("without a stripe. A faster host would.")
    read = forecast.forecast(of(8192, 0.1), 9.0, timed(slow_host))
    assert read.reasons()[-1].endswith(". A longer prompt would, or a faster host.")


def of_a_layer(rows: float, host_ms: float = 0.0):
    """Both sides have work by rows, beside their pairs; a gain must be larger than a tenth."""
    ours = {"call": 0.5, "rows": rows, "products": 0.5, "tail": 0.5}
    return VALUES | {
        "layer_device_ms": {"rows": 500.0},
        "margin": 0.1,
        "anchor": {"host_ms": host_ms, "device_ms": ours},
        "dense": {"host_ms": 0.0, "device_ms": {"rows": 100.0, "products": 1.0}},
    }


def test_a_floor_is_a_whole_layer_without_a_stripe():
    values, shape = of_a_layer(rows=1000.0), cost.Shape(1, 8, 2, 8192, 8192, 64)
    floor = forecast.forecast(of(8192, 0.1), 9.0, values).floor
    rest = 500.0 * 8192 * 8 * 64 / 1e9
    work = cost.anchor_work(shape, AnchorConfig(tail=TAIL), 0.0)
    without_pairs = work | dict.fromkeys(("products", "scores", "pooled", "tail"), 0.0)
    assert floor.device == pytest.approx(cost.layer_ms(values, "anchor", work, rest))
    assert floor.fixed == pytest.approx(cost.layer_ms(values, "anchor", without_pairs, rest))
    dense = cost.layer_ms(values, "dense", cost.dense_work(shape), rest)
    assert floor.dense == pytest.approx(dense)
    assert rest + 0.5 < floor.fixed < floor.device


def test_a_gain_within_the_margin_is_none():
    """What the layer takes lies just below dense attention's time, by less than the margin."""
    told = forecast.forecast(of(8192, 0.1), 9.0, of_a_layer(rows=4000.0))
    assert told.floor.fixed < told.floor.dense < 1.1 * told.floor.fixed
    assert "ms beside its pairs, and" in told.reasons()[-1]
    told = forecast.forecast(of(8192, 0.1), 9.0, of_a_layer(rows=3000.0, host_ms=99.0))
    assert told.floor.device < told.floor.dense < 1.1 * told.floor.device
    assert "A faster host would not either" in told.reasons()[-1]


def test_shares_of_shorter_prompts_are_their_own_groups():
    """A text's first tokens are a prompt, whose groups keep what they keep in the text."""
    shares = [0.0, 0.8, 0.4, 0.2]
    for n in (2304, 4096, 5000, 8192):
        layout = groups(AnchorConfig(), n, n)
        kept = sum(
            len(x.rows) * len(x.candidates) * s for x, s in zip(layout, shares, strict=False)
        )
        every = sum(len(x.rows) * len(x.candidates) for x in layout)
        assert forecast.share_at(shares, 8192, n) == pytest.approx(kept / every)


def test_shares_of_longer_prompts_go_on_as_the_groups_do():
    shares = [0.0, *(0.8 * g**-0.5 for g in range(1, 8))]
    assert forecast.exponent(shares) == pytest.approx(-0.5)
    own = forecast.share_at(shares, 16_384, 16_384)
    assert forecast.share_at(shares, 16_384, 65_536) == pytest.approx(own / 2)
    assert forecast.exponent([0.0, 0.3]) == 0, "one group tells of no slope"
    assert forecast.exponent([0.0, 0.1, 0.4]) == 0, "nothing is kept beyond all"
    assert forecast.exponent([0.0, 0.9, 0.001]) == -1
    assert forecast.exponent([0.0, 0.0, 0.0]) == 0
    assert forecast.share_at([0.0, 1.0], 4096, 8192) == 1.0


def test_density_counts_the_tail_that_models_have():
    config = AnchorConfig(tail=TAIL)
    always = sum(group.always_pairs for group in groups(config, 4096, 4096))
    assert forecast.density_at(4096, 0.0) == pytest.approx(always / causal_pairs(4096))
    assert forecast.density_at(4096, 1.0) == pytest.approx(1.0)
    assert forecast.density_at(4096, 0.0) > 0.531


# -- on the spot

QUICK = rates.Plan((300, 2304), ((2304, 0.3, 0), (2304, 0.02, 64), (2500, 0.3, 0)), 2500, 1)
QUICK = replace(QUICK, dense=(300, 2304, 2500))


def test_coefficients_of_a_clock_that_counts_products_are_found_again(monkeypatch):
    """Each call is said to take a time by its products: then so does the fit say."""

    def pretend(calls, device, repeats):
        if len(calls) == 1:
            return [2.0]
        cells = [("dense", n, 0.05, 0) for n in QUICK.dense]
        cells += [("anchor", *cell) for cell in QUICK.anchor]
        found = []
        for way, n, kept, tail in cells:
            shape = cost.Shape(1, 2, 1, n, n, 32)
            if way == "dense":
                found.append(3.0 * cost.dense_work(shape)["products"])
            else:
                work = cost.anchor_work(shape, AnchorConfig(tail=tail), kept)
                late = 1.5 if n == QUICK.held_out else 1.0
                found.append(late * (5.0 * work["products"] + 4.0 * work["tail"]))
        return found

    monkeypatch.setattr(rates, "_fastest_ms", pretend)
    found = rates.measured_here("cpu", 4, 2, 32, QUICK)
    assert found["dense"]["device_ms"]["products"] == pytest.approx(3.0, rel=1e-3)
    work = cost.anchor_work(cost.Shape(1, 2, 1, 2304, 2304, 32), AnchorConfig(), 0.3)
    told = sum(ms * work[name] for name, ms in found["anchor"]["device_ms"].items())
    assert told == pytest.approx(5.0 * work["products"], rel=1e-3)
    # The held-out call took half as much again as was expected.
    assert found["margin"] == pytest.approx(0.5, rel=0.01)
    assert found["error"] == pytest.approx(1 / 3, rel=0.01)
    assert found["matrix_tflops"] == pytest.approx(2 * 1024**3 / 2.0 / 1e9, rel=1e-3)


def test_what_is_measured_here_is_what_the_cost_model_reads(tmp_path):
    found = rates.measured_here("cpu", 2, 1, 16, QUICK)
    assert found["margin"] >= rates.LEAST_MARGIN
    assert found["device"] == f"cpu, {torch.get_num_threads()} threads"
    shape = cost.Shape(1, 8, 2, 4096, 4096, 64)
    expected = cost.expected_at(found, shape, AnchorConfig(tail=TAIL), 0.2)
    assert 0 < expected.anchor < math.inf
    assert 0 < expected.dense < math.inf


def test_the_gpu_that_the_project_measured_is_told_of_beside_this_machine(monkeypatch, tmp_path):
    here = VALUES | {"device": "here"}
    monkeypatch.setattr(rates, "measured_here", lambda device, **sizes: here)
    monkeypatch.setattr(cost, "FILE", tmp_path / "cost.json")
    sizes = {"q_heads": 8, "kv_heads": 2, "head_dim": 64}
    assert rates.known_here("cpu", **sizes) == [here]
    cost.FILE.write_text(json.dumps(VALUES | {"kept": {"12.0": {
        "share": 0.5, "tokens": 8192, "exponent": -0.4}}}))  # fmt: skip
    assert [x["device"] for x in rates.known_here("cpu", **sizes)] == ["here", "a made-up GPU"]
    fitted = cost.Coefficients(VALUES)
    monkeypatch.setattr(cost, "fitted_for", lambda device: fitted)
    assert rates.known_here("cuda", **sizes) == [VALUES], "nothing is measured twice"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"device": "x", "dense": 1}'])
def test_a_file_without_coefficients_is_refused(tmp_path, text):
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"rates must be a file of .*crossover\.fit.*rates\.json"):
        cost.read_values(path)
    path.write_text(json.dumps(VALUES))
    assert cost.read_values(path) == VALUES
