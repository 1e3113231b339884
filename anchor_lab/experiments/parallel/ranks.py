"""What is measured on every rank: time, memory, what attention takes, what is sent."""

import statistics
import time
from collections.abc import Callable
from math import prod
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anchor_models.interface import replaced_attention

CHUNK = 4096  # rows of logits that are compared at once: float32 copies of all would be 24 GiB


def of_ranks(mine: object) -> list:
    """What each rank has, rank 0's first; every rank gets the list."""
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def timed(
    run: Callable[[], object], device: torch.device, repeats: int = 3
) -> tuple[float, float]:
    """Median seconds of a run on all ranks, and the most memory it held on this one, bytes."""
    taken = []
    for repeat in range(repeats + 1):
        settle(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        run()
        settle(device)
        if repeat:  # the first compiles
            taken.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return statistics.median(taken), float(peak)


def settle(device: torch.device) -> None:
    """Wait for the device and for the other ranks."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()


class Clock:
    """Milliseconds between marks, on the device's own time line: the host does not wait."""

    def __init__(self, device: torch.device):
        self.device = device
        self.spans: list[tuple] = []

    def _now(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def around(self, function: Callable) -> Callable:
        """The function, of whose calls each adds a span."""

        def call(*args, **kwargs):
            start = self._now()
            found = function(*args, **kwargs)
            self.spans.append((start, self._now()))
            return found

        return call

    def ms(self) -> list[float]:
        """Of each call."""
        if self.device.type != "cuda":
            return [1e3 * (end - start) for start, end in self.spans]
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) for start, end in self.spans]


def spread(
    model, run: Callable[[], object], device: torch.device, repeats: int = 3
) -> dict[str, list[float]]:
    """What attention takes on each rank, and what the ranks wait for each other on its account.

    Args:
        model: its layers attend once in each run, in the same order on every rank.
        run: a prefill.
        device: of the rank.
        repeats: runs, after one that does not count; of each layer the median.

    Returns:
        A list with a number of each rank: "attention_ms", that of all layers without exchange;
        "waits_ms", what the rank with the longest attention took more, summed over the layers:
        the next exchange or sum begins once that one has come; "exchange_ms", from the call of
        each all-to-all to its end, so that this waiting is part of it; None without one.
    """
    attended, exchanged = [], []
    for repeat in range(repeats + 1):
        settle(device)
        attention, exchange = Clock(device), Clock(device)
        with (
            replaced_attention(model, attention.around),
            patch.object(dist, "all_to_all_single", exchange.around(dist.all_to_all_single)),
        ):
            run()
        if repeat:
            attended.append(attention.ms())
            exchanged.append(sum(exchange.ms()))
    mine = [statistics.median(layer) for layer in zip(*attended, strict=True)]
    everyone = of_ranks((mine, statistics.median(exchanged) or None))
    layers = [taken for taken, _ in everyone]
    longest = [max(layer) for layer in zip(*layers, strict=True)]
    return {
        "attention_ms": [sum(taken) for taken in layers],
        "waits_ms": [sum(longest) - sum(taken) for taken in layers],
        "exchange_ms": [ms for _, ms in everyone],
    }


class Sent(TorchDispatchMode):
    """Inside the `with`, bytes that collectives take from this rank to others.

    Read off the tensors that the collectives are called with. An all-to-all sends what is not for
    the rank itself. Of sums and gathers it is what each rank must send at least, and does around
    a ring: 2 (P − 1) / P of a tensor that is summed, P − 1 times its share of one that is
    gathered.

    Raises:
        ValueError: a collective that this does not know.
    """

    SUMS = ("c10d::allreduce_", "_c10d_functional::all_reduce", "_c10d_functional::all_reduce_")
    GATHERS = (
        "c10d::_allgather_base_",
        "c10d::allgather_",
        "_c10d_functional::all_gather_into_tensor",
    )
    # Of what its name says that it sends, all must be known; a barrier or a wait sends nothing.
    WORDS = ("reduce", "gather", "to_all", "toall", "broadcast", "scatter", "send", "recv")

    def __init__(self):
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        from torch.distributed.tensor import DTensor

        if any(issubclass(x, DTensor) for x in types):
            return NotImplemented  # it comes again as the collectives of plain tensors
        name = str(getattr(getattr(func, "_schema", None), "name", ""))
        ours = name.startswith(("c10d::", "_c10d_functional"))
        if ours and any(word in name for word in self.WORDS):
            self.bytes += self._of(name, args)
        return func(*args, **(kwargs or {}))

    def _of(self, name: str, args: tuple) -> float:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        if name == "c10d::alltoall_base_":
            _, sent, _, _, sizes = args[:5]
            row = sent.element_size() * prod(sent.shape[1:])
            return float(row * (sum(sizes) - sizes[rank]))
        if name in self.SUMS:
            return 2 * (ranks - 1) / ranks * _bytes(args[0])
        if name in self.GATHERS:
            # Those of c10d are given what they fill first, and what they send after it.
            return float(ranks - 1) * _bytes(args[1 if name.startswith("c10d") else 0])
        raise ValueError(f"collective must be a sum, a gather or an all-to-all, got {name}")


def _bytes(tensors: Tensor | list) -> int:
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(map(_bytes, tensors))


def sent_by(run: Callable[[], object]) -> list[float]:
    """Bytes that each rank sends in a run."""
    with Sent() as sent:
        run()
    return of_ranks(sent.bytes)


def compared(one: Tensor, other: Tensor) -> dict[str, list[float]]:
    """How far the logits of this rank's rows are apart, of each rank.

    Args:
        one, other: `[B, n, vocabulary]`; n may differ between ranks.

    Returns:
        Lists with a number of each rank: "difference", the largest; "typical", the mean of its
        size; "same token", the share of rows whose most likely token is the same.
    """
    largest, total, same = 0.0, 0.0, 0
    for left, right in zip(one.split(CHUNK, 1), other.split(CHUNK, 1), strict=True):
        apart = (left.float() - right.float()).abs()
        # Not `max` of Python: that would drop a NaN.
        largest = float(torch.stack([apart.max(), apart.new_tensor(largest)]).max())
        total += float(apart.mean()) * left.shape[1]
        same += int((left.argmax(-1) == right.argmax(-1)).sum())
    rows = one.shape[0] * one.shape[1]
    found = of_ranks((largest, total / one.shape[1], same / rows))
    names = ("difference", "typical", "same token")
    return {name: list(x) for name, x in zip(names, zip(*found, strict=True), strict=True)}
