"""Clocks, bytes and differences of ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from anchor_lab.experiments.parallel import ranks

CPU = torch.device("cpu")


def test_times_are_medians_without_the_first_and_ranks_wait(monkeypatch):
    ticks = iter([0.0, 100.0, 101.0, 200.0, 205.0, 300.0, 302.0])
    order = []

    def now() -> float:
        order.append("time")
        return next(ticks)

    monkeypatch.setattr(dist, "barrier", lambda: order.append("wait"))
    monkeypatch.setattr(ranks.time, "perf_counter", now)
    seconds, peak = ranks.timed(lambda: order.append("run"), CPU)
    assert (seconds, peak) == (2.0, 0.0)
    # What is not done yet, here or on another rank, is part of the time.
    first = ["wait", "time", "run", "wait"]
    assert order == first + 3 * [*first, "time"]


def test_the_peak_is_that_of_a_run_and_not_of_what_was_before(monkeypatch):
    calls = []
    monkeypatch.setattr(dist, "barrier", lambda: None)
    for name in ("synchronize", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _device, name=name: calls.append(name) or 7)
    _, peak = ranks.timed(lambda: calls.append("run"), torch.device("cuda"), 1)
    assert peak == 7
    last = len(calls) - 1 - calls[::-1].index("run")
    assert calls[last - 1 :] == [
        "reset_peak_memory_stats",
        "run",
        "synchronize",
        "max_memory_allocated",
    ]


def two_ranks(monkeypatch, theirs):
    """This is rank 0 of two; `theirs` says what rank 1 has."""
    monkeypatch.setattr(ranks, "of_ranks", lambda mine: [mine, theirs])


def test_differences_are_told_of_each_rank(monkeypatch):
    two_ranks(monkeypatch, (7.0, 0.5, 0.25))
    whole = torch.zeros(1, 2 * ranks.CHUNK + 5, 3)
    whole[..., 1] = 1
    mine = whole.clone()
    mine[0, -1] = torch.tensor([9.0, 1.0, 0.0])  # another token, in the last and shortest chunk
    mine[0, 0, 1] = 0.9
    found = ranks.compared(mine, whole)
    assert found["difference"] == [9, 7]
    # 9.1 over all elements, however they were cut.
    assert found["typical"][0] == pytest.approx(9.1 / whole.numel(), rel=1e-4)
    assert found["same token"] == [1 - 1 / whole.shape[1], 0.25]


def test_a_nan_is_a_difference(monkeypatch):
    two_ranks(monkeypatch, (0.0, 0.0, 1.0))
    logits = torch.zeros(1, 2 * ranks.CHUNK, 3)
    broken = logits.clone()
    broken[0, 0] = torch.nan
    assert torch.tensor(ranks.compared(broken, logits)["difference"][0]).isnan()


def test_waits_are_for_the_slowest_rank_of_each_layer_not_of_the_sum(monkeypatch):
    # Rank 0 is slow in the first layer, rank 1 in the second: their sums are equal.
    two_ranks(monkeypatch, ([2.0, 7.0], 4.0))
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(ranks.Clock, "ms", lambda _clock: [6.0, 3.0])
    monkeypatch.setattr(ranks, "replaced_attention", lambda _model, _make: torch.no_grad())
    found = ranks.spread(nn.Identity(), lambda: None, CPU)
    assert found["attention_ms"] == [9, 9]
    assert found["waits_ms"] == [4, 4]  # 6 + 7 − 9
    assert found["exchange_ms"] == [9, 4]


def test_the_first_run_which_compiles_is_no_part_of_the_spread(monkeypatch):
    two_ranks(monkeypatch, ([1.0], None))
    runs = []
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(ranks.Clock, "ms", lambda _clock: [100.0 if len(runs) == 1 else 2.0])
    monkeypatch.setattr(ranks, "replaced_attention", lambda _model, _make: torch.no_grad())
    found = ranks.spread(nn.Identity(), lambda: runs.append(1), CPU, 1)
    assert len(runs) == 2
    assert found["attention_ms"] == [2, 1]
    assert found["exchange_ms"] == [2, None]


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*all_gather_into_tensor")  # old torch has no other name
@pytest.mark.usefixtures("one_rank")
def test_bytes_are_what_a_rank_of_three_sends_of_each_collective(monkeypatch):
    x = torch.zeros(3, 4, dtype=torch.float64)  # 96 bytes
    calls = {
        "sum": (lambda: dist.all_reduce(x), 2 * 2 / 3 * 96),
        "gather": (lambda: dist.all_gather_into_tensor(x.clone(), x), 2 * 96),
        "gather of a list": (lambda: dist.all_gather([x.clone()], x), 2 * 96),
        "barrier": (dist.barrier, 0),
    }
    for name, (run, expected) in calls.items():
        with monkeypatch.context() as patched, ranks.Sent() as sent:
            # Of three as far as counting goes; the call itself is of one.
            patched.setattr(ranks.dist, "get_world_size", lambda *_: 3)
            run()
        assert sent.bytes == pytest.approx(expected), name


@pytest.mark.usefixtures("one_rank")
def test_a_collective_that_is_not_known_is_not_left_out():
    with pytest.raises(ValueError, match="a sum, a gather or an all-to-all, got c10d::broadcast_"):
        ranks.sent_by(lambda: dist.broadcast(torch.zeros(2), 0))
