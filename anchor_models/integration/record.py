"""What each layer of a model kept of its attention, and how long it took."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

_running: ContextVar["Record | None"] = ContextVar("anchor_attention_record", default=None)


@dataclass(frozen=True, eq=False)
class Part:
    """One text of a call, or all of the call when its mask does not tell texts apart.

    Attributes:
        ran: "anchor" or "dense".
        why: one sentence: what ran, or why it was dense.
        pairs: causal pairs, a weight for means.
        density: share of the causal pairs that was kept, for each query head, `[Hq]` float64; NaN
            where a mask that AnchorAttention has no part in says what is kept.
        tail: how many rows of a text that ran AnchorAttention saw every key all the same.
    """

    ran: str
    why: str
    pairs: int
    density: Float[Tensor, "Hq"]
    tail: int


@dataclass(frozen=True, eq=False)
class LayerCall(Part):
    """One call of one layer with more than one query, all its texts together.

    `ran` is "anchor" where AnchorAttention ran for at least one text, and `why` tells of that one.

    Attributes:
        layer: the layer's index.
        queries, keys: Nq and Nk of the call, padding included.
        seconds: wall time of the attention alone.
    """

    layer: int
    queries: int
    keys: int
    seconds: float


@dataclass(frozen=True, eq=False)
class LayerSummary:
    """All calls of a layer together.

    Attributes:
        ran: "anchor", "dense", or "both".
        density: mean over calls, weighted by their causal pairs, `[Hq]` float64.
        tail: rows that saw every key though AnchorAttention ran, sum over calls.
        seconds: sum over calls.
        calls: how many.
    """

    ran: str
    density: Float[Tensor, "Hq"]
    tail: int
    seconds: float
    calls: int


@dataclass
class Record:
    """Calls in the order in which they ran; decoding, one query at a time, is not among them."""

    calls: list[LayerCall] = field(default_factory=list)

    @property
    def layers(self) -> dict[int, LayerSummary]:
        """What each layer did, by its index, in ascending order."""
        layers = sorted({call.layer for call in self.calls})
        return {n: _summary([call for call in self.calls if call.layer == n]) for n in layers}

    @property
    def density(self) -> float:
        """Mean over layers and heads of the share of the causal pairs that was kept.

        Layers whose own mask says what is kept are left out; NaN where none is left.

        Raises:
            ValueError: nothing was recorded.
        """
        if not self.calls:
            raise ValueError(
                "the record must hold a call, got none: no model with "
                "attn_implementation='anchor_attention' took in more than one token in its "
                "thread inside the `with`"
            )
        return torch.stack([x.density.mean() for x in self.layers.values()]).nanmean().item()

    @property
    def seconds(self) -> float:
        """Time spent in attention, all layers together."""
        return sum((call.seconds for call in self.calls), 0.0)

    def __str__(self) -> str:
        lines = ["layer  ran     density  least-most    tail  seconds"]
        lines += [
            f"{layer:5}  {x.ran:6}  {x.density.mean():7.3f}  "
            f"{x.density.min():.3f}-{x.density.max():.3f}  {x.tail:5}  {x.seconds:7.3f}"
            for layer, x in self.layers.items()
        ]
        return "\n".join(lines)


@contextmanager
def record() -> Iterator[Record]:
    """Inside the `with`, every prefill of a model that runs AnchorAttention is written down.

    On a GPU each layer's attention is waited for, twice, so that its time is its own: a recorded
    run is slower than one that is not.

    Models that run in another thread are not recorded, unless the thread was started inside the
    `with` with `contextvars.copy_context().run` as its target.

    Yields:
        A `Record` that fills while models run. Records may be nested; the inner one gets the
        calls.
    """
    stats = Record()
    token = _running.set(stats)
    try:
        yield stats
    finally:
        _running.reset(token)


def running_record() -> Record | None:
    """The record that is being kept, if any."""
    return _running.get()


def call_of(
    parts: Sequence[Part], layer: int, queries: int, keys: int, seconds: float
) -> LayerCall:
    """The call that these parts make up."""
    told = next((part for part in parts if part.ran == "anchor"), parts[0])
    pairs, kept = _together(parts)
    tail = sum(part.tail for part in parts)
    return LayerCall(told.ran, told.why, pairs, kept, tail, layer, queries, keys, seconds)


def now(q: Tensor) -> float:
    """Seconds on a clock, after what was queued on q's device has ended."""
    if q.is_cuda:
        torch.cuda.synchronize(q.device)
    return time.perf_counter()


def _summary(calls: list[LayerCall]) -> LayerSummary:
    kinds = {call.ran for call in calls}
    ran = kinds.pop() if len(kinds) == 1 else "both"
    tail, seconds = sum(x.tail for x in calls), sum(x.seconds for x in calls)
    return LayerSummary(ran, _together(calls)[1], tail, seconds, len(calls))


def _together(parts: Sequence[Part]) -> tuple[int, Tensor]:
    """Causal pairs of all parts, and the mean density by them."""
    pairs = sum(part.pairs for part in parts)
    return pairs, sum(part.density * part.pairs for part in parts) / pairs
