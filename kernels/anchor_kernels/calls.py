"""Calls of a kind: all that follows from sizes, strides, settings and device, settled once.

A model asks for the same call in each of its layers: the same shapes, strides and settings, other
tensors. Checks, tables, tile sizes and the places of what the stages hand each other are the same
for all of them. They are made for the first and kept, and what is left for the others is a buffer,
an output and six launches.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from anchor_kernels.anchor import prepare_anchor
from anchor_kernels.launch import select_launch
from anchor_kernels.sparse import prepare_sparse
from anchor_kernels.stripes import (
    WORD,
    cuts,
    lists_of,
    prepare_compact,
    prepare_pool,
    prepare_select,
    stack_rows,
)
from anchor_kernels.support import check_call, interpreted
from anchor_kernels.tables import Tables, chunks_of, tables_of
from anchor_kernels.tail import prepare_tail
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_type
from anchor_ref.plan import AnchorTrace, StripePlan
from anchor_ref.regions import groups
from anchor_ref.stripes import at_lowered_anchors, thresholds

ROOM = 2**25  # candidates for which a list of 128 MiB has places, whatever is selected
KEPT = 64  # kinds of calls that are remembered
THETAS_KEPT = 1024  # layers whose thresholds by head are
ALIGNED = 256  # bytes: where the parts of a buffer begin


class Place(NamedTuple):
    """A part of the buffer: where it begins in bytes, and what it holds."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        return self.start + self.nbytes

    def of(self, buffer: Tensor) -> Tensor:
        return buffer[self.start : self.end].view(self.dtype).view(self.shape)


class Call:
    """AnchorAttention for tensors like those of its first call, see `call_like`.

    Attributes:
        candidates: of all heads and groups.
        places: what the stages hand each other, and where in a buffer it stands.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        config: AnchorConfig,
        scale: float,
        cu_seqlens: Tensor | None,
        by_head: bool = False,
    ):
        if by_head:
            config = at_lowered_anchors(config)
        found = groups(config, q.shape[2], k.shape[2], cu_seqlens)
        self._tables = tables = tables_of(found, q.device, config.outliers)
        launch = select_launch(q)
        stack = stack_rows(config, q.shape[1] // k.shape[1], tables.n_groups, launch.rows)
        self._chunks = chunks = chunks_of(*cuts(q, k, tables, stack, launch))
        out = torch.empty_like(q)
        # An output takes the place of stage 1's part of it. Anchors that are to be lowered first
        # are pooled after it.
        self._anchor = prepare_anchor(q, k, v, out, tables, scale, pool=not by_head)
        self._pool = None if self.pools_in_stage_1 else prepare_pool(q, tables)
        self._select = prepare_select(q, k, tables, chunks, stack, scale, config, launch)
        self._compact = prepare_compact(q, tables, chunks)
        self._sparse = prepare_sparse(q, k, v, out, out, tables, scale)
        self._tail = prepare_tail(q, k, v, out, out, found, scale)

        heads = q.shape[0] * q.shape[1]
        self.candidates = heads * sum(map(len, tables.candidates))
        self._offsets = _a_place_each(q, tables) if self.candidates <= ROOM else None
        self.places = _in_a_row(
            lse=((*q.shape[:3],), torch.float32),
            row_anchor=((*q.shape[:3],), torch.float32),
            lowered=(q.shape[:3] if by_head else (0,), torch.float32),
            redo_anchor=((self._anchor.programs,), torch.int8),
            pooled_q=((heads, tables.n_blocks, q.shape[3]), torch.float32),
            pooled_anchor=((heads, tables.n_blocks), torch.float32),
            words=((heads, chunks.n_slots, chunks.length // WORD.value), torch.int32),
            slot_counts=((*q.shape[:2], chunks.n_slots), torch.int32),
            counts=((*q.shape[:2], tables.n_groups), torch.int32),
            redo_sparse=((self._sparse.programs,), torch.int8),
            indices=((self.candidates if self._offsets is not None else 0,), torch.int32),
        )
        self._bytes = max(place.end for place in self.places.values())
        self._streams: set[int] = set()
        self._launched = False

    @property
    def capturable(self) -> bool:
        """Does the host run ahead of the device from the first launch to the last?"""
        return self._offsets is not None

    @property
    def pools_in_stage_1(self) -> bool:
        """Are query blocks the tiles of stage 1, so that it leaves their means?"""
        return self._anchor.pools

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        return_trace: bool = False,
        thetas: Tensor | None = None,
    ) -> tuple[Tensor, AnchorTrace | None]:
        """Attention output, `[B, Hq, Nq, D]`, and what the stages found.

        Args:
            thetas: of each head, `[Hq, 1]` float32, for a call that was made for them.
        """
        out = torch.empty_like(q)
        buffer = torch.empty(self._bytes, dtype=torch.uint8, device=q.device)
        stream = self._use_stream(q)
        if self._launched:  # a kernel that was launched before takes addresses
            start = buffer.data_ptr()
            at = {name: start + place.start for name, place in self.places.items()}
            qkvo = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
        else:
            at = {name: place.of(buffer) for name, place in self.places.items()}
            qkvo = q, k, v, out
        tables, chunks = self._tables, self._chunks
        pooled = at["pooled_q"], at["pooled_anchor"]
        words, slot_counts, counts = at["words"], at["slot_counts"], at["counts"]

        anchored = at["row_anchor"], at["lse"], at["redo_anchor"]
        self._anchor((q, k, v), *qkvo, *anchored, *pooled, tables.groups, stream=stream)
        row_anchor = at["row_anchor"]
        if thetas is not None:
            row_anchor = at["lowered"]
            found, lowered = (self.places[name].of(buffer) for name in ("row_anchor", "lowered"))
            torch.sub(found, thetas, out=lowered)
        if self._pool is not None:
            self._pool(qkvo[0], row_anchor, *pooled, tables.blocks, stream=stream)
        asked = qkvo[0], row_anchor  # and the rows that are asked by themselves
        of_tables = tables.groups, tables.asked, chunks.slots, chunks.order
        self._select(*pooled, *asked, qkvo[1], words, slot_counts, *of_tables, stream=stream)
        offsets, indices = self._offsets, at["indices"]
        if offsets is None or return_trace:  # a trace's list holds stripes and nothing else
            offsets, total = lists_of(self.places["slot_counts"].of(buffer), chunks)
            indices = torch.empty(total, dtype=torch.int32, device=q.device)
        self._compact(words, slot_counts, offsets, indices, counts, chunks.slots, stream=stream)
        lists = indices, offsets, counts, tables.by_work, at["redo_sparse"], tables.groups
        # Nobody else reads the partial output: the result takes its place.
        self._sparse(*qkvo, at["lse"], qkvo[3], *lists, stream=stream)
        if self._tail is not None:
            self._tail(q, k, v, out, self.places["lse"].of(buffer), out)
        self._launched = not interpreted()
        if not return_trace:
            return out, None
        # Copies: a part would keep the whole buffer.
        row_anchor, counts = (
            self.places[name].of(buffer).clone() for name in ("row_anchor", "counts")
        )
        return out, AnchorTrace(row_anchor, StripePlan(counts, offsets, indices))

    def _use_stream(self, q: Tensor) -> int | None:
        """The current stream; tables outlive what is queued on it, also when they are given up."""
        if not q.is_cuda:
            return None
        current = torch.cuda.current_stream(q.device)
        if torch.cuda.is_current_stream_capturing():
            _captured.add(self)  # a graph is replayed, nobody knows how often
        elif current.cuda_stream not in self._streams:
            for tensor in self._held():
                tensor.record_stream(current)
            self._streams.add(current.cuda_stream)
        return current.cuda_stream

    def _held(self) -> list[Tensor]:
        tables, chunks = self._tables, self._chunks
        held = [tables.groups, tables.blocks, tables.asked, tables.by_work]
        held += [chunks.slots, chunks.order]
        held += [] if self._offsets is None else [self._offsets]
        return held + list(self._tail.tensors if self._tail is not None else ())


_calls: dict[tuple, Call] = {}
_thetas: dict[tuple, Tensor] = {}
_keeping = Lock()
_captured: set[Call | Tensor] = set()  # tensors by identity, as their hash is


def call_like(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: AnchorConfig,
    scale: float | None,
    cu_seqlens: Tensor | None,
    return_trace: bool = False,
    by_head: bool = False,
) -> Call:
    """The call for tensors like these, made if there is none yet.

    Args:
        return_trace: will a trace be asked for? Its list is as long as the device says.
        by_head: will each head have a threshold of its own?

    Raises:
        TypeError, ValueError: see `anchor_ref.inputs.check_inputs`.
        UnsupportedError: the kernels cannot run here or on these inputs; the message says why.
        RuntimeError: a CUDA graph is being captured and the call cannot be part of it.
    """
    try:
        key = _key(q, k, v, config, scale, cu_seqlens, by_head)
        found = _calls.get(key)
    except (AttributeError, TypeError):  # no tensors, or no settings
        key = found = None
    if found is None:
        # What is looked at here is in the key: it need not be looked at again.
        check_type("v", v, Tensor)
        check_type("config", config, AnchorConfig)
        scale = check_call(q, k, v, scale, cu_seqlens, config)
        _refuse_capture(q, made=False)
        found = Call(q, k, v, config, scale, cu_seqlens, by_head)
        if key is not None:
            with _keeping:
                if len(_calls) >= KEPT:
                    del _calls[next(iter(_calls))]  # the oldest
                _calls[key] = found
    elif return_trace or not found.capturable:
        _refuse_capture(q, made=True)
    return found


def thetas_like(q: Tensor, theta_by_head: Sequence[float]) -> Tensor:
    """Thresholds of q's heads on its device, `[Hq, 1]` float32; those of a layer are made once.

    Raises:
        TypeError, ValueError: see `anchor_ref.stripes.thresholds`.
        RuntimeError: a CUDA graph is being captured, and they are not there yet.
    """
    key = q.device, thresholds(theta_by_head, q.shape[1])
    found = _thetas.get(key)
    if found is None:
        _refuse_capture(q, made=False)
        with _keeping:
            if len(_thetas) >= THETAS_KEPT:
                del _thetas[next(iter(_thetas))]
            found = _thetas[key] = torch.tensor(key[1], dtype=torch.float32, device=q.device)[
                :, None
            ]
    if q.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            _captured.add(found)
        else:
            found.record_stream(torch.cuda.current_stream(q.device))
    return found


def _key(q, k, v, config, scale, cu_seqlens, by_head) -> tuple:
    """All that checks, tables and launches depend on."""
    needs_gradient = torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad
    )
    return (
        *((x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % 16) for x in (q, k, v)),
        config,
        scale,
        type(scale),  # True equals 1.0, and is refused
        None if cu_seqlens is None else _bounds(cu_seqlens),
        needs_gradient,
        by_head,
    )


def _bounds(cu_seqlens: Tensor) -> tuple:
    """Values, and what else of them is looked at."""
    if cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "cu_seqlens must be on the CPU while a CUDA graph is captured, got "
            f"{cu_seqlens.device}: its values decide what is launched"
        )
    return cu_seqlens.dtype, cu_seqlens.device, cu_seqlens.ndim, tuple(cu_seqlens.tolist())


def _refuse_capture(q: Tensor, made: bool) -> None:
    if not q.is_cuda or not torch.cuda.is_current_stream_capturing():
        return
    if made:
        raise RuntimeError(
            "a call whose length of the list only the device knows cannot be captured in a CUDA "
            f"graph: it must return no trace, and its heads have at most {ROOM} candidates in all"
        )
    raise RuntimeError(
        "a call must have run once before it is captured in a CUDA graph, since its first run "
        f"copies tables and loads kernels: got the first with q of shape {tuple(q.shape)}"
    )


def _a_place_each(q: Tensor, tables: Tables) -> Tensor:
    """Offsets of lists that have a place for every candidate, `[B, Hq, G]` int64."""
    sizes = list(map(len, tables.candidates))
    starts = torch.tensor([0, *accumulate(sizes)][:-1])
    heads = torch.arange(q.shape[0] * q.shape[1]).view(*q.shape[:2], 1)
    return (heads * sum(sizes) + starts).to(q.device)


def _in_a_row(**parts: tuple[tuple[int, ...], torch.dtype]) -> dict[str, Place]:
    """Places one after the other, each on a boundary."""
    places, start = {}, 0
    for name, (shape, dtype) in parts.items():
        places[name] = Place(start, shape, dtype)
        start = -(-places[name].end // ALIGNED) * ALIGNED
    return places
