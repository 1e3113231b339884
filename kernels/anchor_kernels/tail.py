"""The tail: the last rows of each sequence see every key. Mirrors `anchor_ref.tail`.

Those rows go on from stage 1's state like all others; but in place of their group's stripes they
take in all its candidates, which lie side by side: a rectangle without a mask. A long one in half
precision is work for cuDNN, which PyTorch brings along. All others, of packed or short sequences,
in float32, with wide heads or on other devices, go through stage 3's kernel with lists that hold
every candidate.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from anchor_kernels.anchor import AnchorState
from anchor_kernels.launch import has_whole_rows
from anchor_kernels.sparse import check_state, continue_softmax
from anchor_kernels.support import check_call, interpreted
from anchor_kernels.tables import Tables, tables_of
from anchor_ref.config import AnchorConfig
from anchor_ref.plan import StripePlan
from anchor_ref.regions import Group, groups

LONG = 2048  # candidates from which on cuDNN's start and the merge cost less than its speed gains


@dataclass(frozen=True, eq=False)
class Tail:
    """The rows of the tail, counted from 0, and what they see of the candidates.

    Attributes:
        rows: rows of q: a slice where they are the last ones, else `[T]` int64 on the device.
        parts: of each group with such rows, which rows of the T they are, and its candidates.
        tables: those parts as groups of queries.
    """

    rows: slice | Tensor
    parts: tuple[tuple[range, range], ...]
    tables: Tables

    def of(self, x: Tensor) -> Tensor:
        """The tail's rows of a tensor `[B, H, N, ...]`: a view where they are the last ones."""
        return x[:, :, self.rows] if isinstance(self.rows, slice) else x.index_select(2, self.rows)


def attend_tail(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: AnchorState,
    out: Tensor,
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """The output of stage 3 with the rows of the tail replaced by dense attention.

    out_i = softmax over all j <= i of s_ij, times v_j   for the last `config.tail` rows

    Args:
        q, k, v: as in stage 1.
        state: what `compute_anchor` returned; it is read, not changed.
        out: what `attend_stripes` returned; it is read, not changed.
        config: regions and tail; its θ plays no part.
        scale: factor of q·k; None means 1/sqrt(D).
        cu_seqlens: boundaries of packed sequences; each has a tail.

    Returns:
        `[B, Hq, Nq, D]` in q's dtype. Rows before the tail are those of `out`, bit for bit.

    Raises:
        TypeError, ValueError: see `anchor_ref.inputs.check_inputs`; or `state` does not fit q.
        UnsupportedError: the kernels cannot run here or on these inputs; the message says why.
    """
    scale = check_call(q, k, v, scale, cu_seqlens)
    check_state(state, q)
    out = out.clone()
    if (tail := dense_tail(q, k, v, state, config, scale, cu_seqlens)) is not None:
        tail.write(out)
    return out


@dataclass(frozen=True, eq=False)
class DenseTail:
    """Dense attention of the tail's rows, to be written into the output of stage 3.

    Attributes:
        tail: which rows.
        out: `[B, Hq, T, D]` in q's dtype.
    """

    tail: Tail
    out: Tensor

    def write(self, out: Tensor) -> None:
        """Put the rows in their places of `out`, `[B, Hq, Nq, D]`."""
        out[:, :, self.tail.rows] = self.out


def dense_tail(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: AnchorState,
    config: AnchorConfig,
    scale: float,
    cu_seqlens: Tensor | None,
) -> DenseTail | None:
    """The tail's rows on inputs that are known to be sound; `state` is only read.

    Returns:
        None where there is no tail, or stage 1 saw all that its rows can see. The host does not
        wait for the device.
    """
    tail = _tail(config, q, k, cu_seqlens) if config.tail else None
    if tail is None:
        return None
    q_tail = tail.of(q)
    begun = AnchorState(*(tail.of(x) for x in (state.max, state.lse, state.out)))
    if isinstance(tail.rows, slice) and _suits_cudnn(q_tail, k, v, tail):
        return DenseTail(tail, _by_cudnn(q_tail, k, v, begun, tail, scale))
    stripes = _all_candidates(tail, (*q.shape[:2], len(tail.parts)), k)
    out = torch.empty_like(q_tail)
    continue_softmax(
        q_tail, k, v, begun, stripes, config, scale, None, out=out, tables=tail.tables
    )
    return DenseTail(tail, out)


def _tail(config: AnchorConfig, q: Tensor, k: Tensor, cu_seqlens: Tensor | None) -> Tail | None:
    bounds = None if cu_seqlens is None else tuple(cu_seqlens.tolist())
    stream = torch.cuda.current_stream(q.device).cuda_stream if q.is_cuda else None
    return _made_tail(replace(config, theta=0.0), q.shape[2], k.shape[2], bounds, q.device, stream)


@lru_cache(maxsize=32)
def _made_tail(config, n_queries, n_keys, bounds, device, stream) -> Tail | None:
    cu_seqlens = None if bounds is None else torch.tensor(bounds)
    found: list[tuple[Group, range]] = []
    rows: list[int] = []
    for group in groups(config, n_queries, n_keys, cu_seqlens):
        if group.tail and group.candidates:
            found.append((group, range(len(rows), len(rows) + len(group.tail))))
            rows += group.tail
    if not found:
        return None
    last = rows == list(range(n_queries - len(rows), n_queries))
    # As groups of queries of their own: stage 3's kernel reads their rows alone.
    own = [replace(group, rows=places, blocks=(places,)) for group, places in found]
    return Tail(
        slice(rows[0], None) if last else torch.tensor(rows, device=device),
        tuple((places, group.candidates) for group, places in found),
        tables_of(own, device),
    )


def _all_candidates(tail: Tail, shape: tuple[int, int, int], k: Tensor) -> StripePlan:
    """The plan that holds every candidate of each part: one list of all keys serves them all."""

    def of_parts(values: list[int], dtype: torch.dtype) -> Tensor:
        # Filled on the device: a copy from the host would wait for it.
        parts = [torch.full(shape[:2], x, dtype=dtype, device=k.device) for x in values]
        return torch.stack(parts, -1)

    return StripePlan(
        of_parts([len(keys) for _, keys in tail.parts], torch.int32),
        of_parts([keys.start for _, keys in tail.parts], torch.int64),
        torch.arange(k.shape[2], dtype=torch.int32, device=k.device),
    )


def _suits_cudnn(q: Tensor, k: Tensor, v: Tensor, tail: Tail) -> bool:
    """Is it a few long rectangles of half precision, on a GPU for which cuDNN is at its best?"""
    return (
        q.is_cuda
        and not interpreted()
        and torch.version.hip is None
        and torch.cuda.get_device_capability(q.device) >= (9, 0)
        and q.dtype != torch.float32
        and q.shape[-1] <= 128
        and q.shape[-1] % 8 == 0
        and all(has_whole_rows(x) for x in (k, v))
        and len(tail.parts) <= 4
        and all(len(keys) >= LONG for _, keys in tail.parts)
        and torch.backends.cudnn.is_available()
    )


def _by_cudnn(
    q: Tensor, k: Tensor, v: Tensor, begun: AnchorState, tail: Tail, scale: float
) -> Tensor:
    """Each part as one rectangle without a mask, merged into what stage 1 left of its rows."""
    out = torch.empty_like(q)
    for rows, keys in tail.parts:
        at, seen = slice(rows.start, rows.stop), slice(keys.start, keys.stop)
        other, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q[:, :, at], k[:, :, seen], v[:, :, seen], None, True, scale=scale
        )
        merge(begun.out[:, :, at], begun.lse[:, :, at], other, lse, out[:, :, at])
    return out


def merge(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor, out: Tensor) -> None:
    """Attention over two disjoint sets of keys, from the attention over each.

    lse = log(e^a_lse + e^b_lse),   out = e^(a_lse − lse) a + e^(b_lse − lse) b

    Args:
        a, b: `[B, H, N, D]`, normalised outputs.
        a_lse, b_lse: log Σ exp of the scores, float32, natural-log units: `[B, H, N]`, or with a
            last dimension of 1.
        out: where the result goes, of a's shape.
    """
    batch, heads, n, head_dim = a.shape
    block = max(1, 4096 // triton.next_power_of_2(head_dim))
    with torch.cuda.device_of(a):
        merge_kernel[(triton.cdiv(n, block), batch * heads)](
            a,
            a_lse,
            b,
            b_lse,
            out,
            *a.stride(),
            *a_lse.stride()[:3],
            *b.stride(),
            *b_lse.stride()[:3],
            *out.stride(),
            n,
            heads,
            D=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim),
            BLOCK_N=block,
        )


@triton.jit
def merge_kernel(
    a,
    a_lse,
    b,
    b_lse,
    out,
    a_b,
    a_h,
    a_n,
    a_d,
    al_b,
    al_h,
    al_n,
    b_b,
    b_h,
    b_n,
    b_d,
    bl_b,
    bl_h,
    bl_n,
    out_b,
    out_h,
    out_n,
    out_d,
    n,
    heads,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: BLOCK_N rows of one head."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    dims = tl.arange(0, BLOCK_D).to(tl.int64)  # [D]
    real_row = rows < n
    real = real_row[:, None] & (dims < D)[None, :]
    rows = rows.to(tl.int64)
    first = tl.load(a_lse + batch * al_b + head * al_h + rows * al_n, mask=real_row, other=0.0)
    second = tl.load(b_lse + batch * bl_b + head * bl_h + rows * bl_n, mask=real_row, other=0.0)
    largest = tl.maximum(first, second)
    # A row that saw no finite score on either side: measure from 0, as everywhere.
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    first, second = tl.exp(first - largest), tl.exp(second - largest)
    a += batch * a_b + head * a_h + rows[:, None] * a_n + dims[None, :] * a_d
    b += batch * b_b + head * b_h + rows[:, None] * b_n + dims[None, :] * b_d
    total = first[:, None] * tl.load(a, mask=real, other=0.0).to(tl.float32)
    total += second[:, None] * tl.load(b, mask=real, other=0.0).to(tl.float32)
    out += batch * out_b + head * out_h + rows[:, None] * out_n + dims[None, :] * out_d
    tl.store(out, (total / (first + second)[:, None]).to(out.dtype.element_ty), mask=real)
