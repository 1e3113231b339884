"""The tail: the last rows of each sequence see every key. Mirrors `anchor_ref.tail`.

Those rows go on from stage 1's state like all others; but in place of their group's stripes they
take in all its candidates, which lie side by side: a rectangle without a mask. A long one in half
precision is work for cuDNN, which PyTorch brings along. All others, of packed or short sequences,
in float32, with wide heads or on other devices, go through stage 3's kernel with lists that hold
every candidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from anchor_kernels.anchor import AnchorState
from anchor_kernels.launch import has_whole_rows
from anchor_kernels.prepared import Prepared
from anchor_kernels.sparse import SparseRuns, check_state, prepare_sparse
from anchor_kernels.support import check_call, interpreted, multiprocessors
from anchor_kernels.tables import Tables, tables_of
from anchor_ref.config import AnchorConfig
from anchor_ref.regions import Group, groups

# Candidates from which on cuDNN's speed gains more than its call costs the host, 0.1 ms: with
# fewer the device would wait for it.
LONG = 8192
SHORTEST = 2048  # keys of a share, where the keys of a tail are split


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
    found = groups(config, q.shape[2], k.shape[2], cu_seqlens)
    if (runs := prepare_tail(q, k, v, state.out, out, found, scale)) is not None:
        with torch.cuda.device_of(q):
            runs(q, k, v, state.out, state.lse.contiguous(), out)
    return out


def prepare_tail(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first_out: Tensor,
    out: Tensor,
    found: Sequence[Group],
    scale: float,
) -> "ByKernel | ByCudnn | None":
    """The tail's launches for tensors of these sizes and strides.

    Args:
        first_out: stage 1's output; it may be `out`.
        out: where the tail's rows go; no other row of it is touched.
        found: the groups of the call.

    Returns:
        None where there is no tail, or stage 1 saw all that its rows can see.
    """
    parts = [group for group in found if group.tail and group.candidates]
    if not parts:
        return None
    if _suits_cudnn(q, k, v, parts):
        free = multiprocessors(q)
        return ByCudnn(parts, scale, [shares_of(q, group, free) for group in parts])
    # Groups of their own, of the tail's rows alone.
    own = [
        replace(
            group,
            rows=group.tail,
            blocks=(group.tail,),
            tail=range(group.tail.stop, group.tail.stop),
        )
        for group in parts
    ]
    tables = tables_of(own, q.device)
    runs = prepare_sparse(q, k, v, first_out, out, tables, scale)

    def of_parts(values: list[int], dtype: torch.dtype) -> Tensor:
        # Whole before it is copied: a stream that did not make it could read it too early.
        return torch.tensor(values, dtype=dtype).repeat(*q.shape[:2], 1).to(q.device)

    return ByKernel(
        runs,
        tables,
        # One list of all keys serves every part.
        torch.arange(k.shape[2], dtype=torch.int32, device=q.device),
        of_parts([group.candidates.start for group in parts], torch.int64),
        of_parts([len(group.candidates) for group in parts], torch.int32),
    )


@dataclass(frozen=True, eq=False)
class ByKernel:
    """The tail through stage 3's kernel, with the list of every candidate of each part."""

    runs: SparseRuns
    tables: Tables
    indices: Tensor
    offsets: Tensor
    counts: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it holds on the device."""
        tables = self.tables
        return self.indices, self.offsets, self.counts, tables.groups, tables.by_work

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        first_out: Tensor,
        lse: Tensor,
        out: Tensor,
    ) -> None:
        redo = torch.empty(self.runs.programs, dtype=torch.int8, device=q.device)
        lists = self.indices, self.offsets, self.counts
        of_tables = self.tables.by_work, redo, self.tables.groups
        self.runs(q, k, v, first_out, lse, out, *lists, *of_tables)


class ByCudnn:
    """Each part as one rectangle without a mask, merged into what stage 1 left of its rows.

    A few rows of a few heads would leave most of a GPU idle. Their keys are split then, and what
    comes of each share is merged as well.
    """

    tensors = ()

    def __init__(self, parts: Sequence[Group], scale: float, shares: Sequence[int]):
        self._parts = [(*_slices(group), n) for group, n in zip(parts, shares, strict=True)]
        self._scale = scale
        self._merges: dict[tuple, Prepared] = {}

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        first_out: Tensor,
        lse: Tensor,
        out: Tensor,
    ) -> None:
        for rows, keys, shares in self._parts:
            queries = q[:, :, rows]
            if shares > 1:
                queries = queries.expand(shares, *queries.shape[1:]).contiguous()
            kept = (share_keys(x[:, :, keys], shares) for x in (k, v))
            other, other_lse = rectangle(queries, *kept, self._scale)
            # Shares stand where the batch stood; there is one or the other.
            other, other_lse = (x.unflatten(0, (shares, -1)) for x in (other, other_lse))
            tensors = first_out[:, :, rows], lse[:, :, rows], other, other_lse, out[:, :, rows]
            # Strides of what cuDNN returns are its own choice.
            key = rows.start, other.stride(), other_lse.stride()
            if (run := self._merges.get(key)) is None:
                run = self._merges[key] = prepare_merge(*tensors)
            run(*tensors)


def rectangle(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention without a mask by cuDNN: output in q's dtype, and log-sum-exp `[B, H, N, 1]`."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, scale=scale
    )
    return out, lse


def share_keys(x: Tensor, shares: int) -> Tensor:
    """Keys or values `[1, H, N, D]` as a batch of `shares` neighbours, `[S, H, N / S, D]`; a view.

    For one share x itself, of any batch.
    """
    if shares == 1:
        return x
    return x[0].unflatten(1, (shares, -1)).transpose(0, 1)


def shares_of(q: Tensor, group: Group, multiprocessors: int) -> int:
    """Into how many shares to split the keys of a part, so that each multiprocessor has work.

    A power of two that divides them, and leaves SHORTEST or more in each; 1 for a batch.
    """
    tiles = q.shape[1] * triton.cdiv(len(group.tail), 128)
    shares = 1
    while (
        q.shape[0] == 1
        and shares * tiles <= multiprocessors  # two for each, at most
        and len(group.candidates) % (2 * shares) == 0
        and len(group.candidates) >= 2 * shares * SHORTEST
    ):
        shares *= 2
    return shares


def _slices(group: Group) -> tuple[slice, slice]:
    """The tail's rows of a group, and its candidates."""
    rows, keys = group.tail, group.candidates
    return slice(rows.start, rows.stop), slice(keys.start, keys.stop)


def _suits_cudnn(q: Tensor, k: Tensor, v: Tensor, parts: Sequence[Group]) -> bool:
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
        and len(parts) <= 4
        and all(len(group.candidates) >= LONG for group in parts)
        and torch.backends.cudnn.is_available()
    )


def merge(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor, out: Tensor) -> None:
    """Attention over disjoint sets of keys, from the attention over each.

    lse = log(e^a_lse + Σ_s e^b_lse[s]),   out = e^(a_lse − lse) a + Σ_s e^(b_lse[s] − lse) b[s]

    Args:
        a: `[B, H, N, D]`, normalised output.
        a_lse: log Σ exp of its scores, `[B, H, N]` float32, natural-log units.
        b, b_lse: of S other sets, `[S, B, H, N, D]` and `[S, B, H, N]`, or with a last dimension
            of 1.
        out: where the result goes, of a's shape; it may be a.
    """
    with torch.cuda.device_of(a):
        prepare_merge(a, a_lse, b, b_lse, out)(a, a_lse, b, b_lse, out)


def prepare_merge(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor, out: Tensor) -> Prepared:
    """The launch of `merge` for tensors of these sizes and strides."""
    batch, heads, n, head_dim = a.shape
    width = triton.next_power_of_2(head_dim)
    block = max(1, 4096 // width)
    return Prepared(
        merge_kernel,
        (triton.cdiv(n, block), batch * heads),
        (
            *a.stride(),
            *a_lse.stride(),
            *b.stride(),
            *b_lse.stride()[:4],
            *out.stride(),
            n,
            heads,
        ),
        {"SETS": len(b), "D": head_dim, "BLOCK_D": width, "BLOCK_N": block},
        {},
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
    b_s,
    b_b,
    b_h,
    b_n,
    b_d,
    bl_s,
    bl_b,
    bl_h,
    bl_n,
    out_b,
    out_h,
    out_n,
    out_d,
    n,
    heads,
    SETS: tl.constexpr,
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
    b_lse += batch * bl_b + head * bl_h + rows * bl_n
    largest = first
    for s in tl.static_range(SETS):
        largest = tl.maximum(largest, tl.load(b_lse + s * bl_s, mask=real_row, other=0.0))
    # A row that saw no finite score in any set: measure from 0, as everywhere.
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    a += batch * a_b + head * a_h + rows[:, None] * a_n + dims[None, :] * a_d
    b += batch * b_b + head * b_h + rows[:, None] * b_n + dims[None, :] * b_d
    weights = tl.exp(first - largest)
    total = weights[:, None] * tl.load(a, mask=real, other=0.0).to(tl.float32)
    for s in tl.static_range(SETS):
        weight = tl.exp(tl.load(b_lse + s * bl_s, mask=real_row, other=0.0) - largest)
        total += weight[:, None] * tl.load(b + s * b_s, mask=real, other=0.0).to(tl.float32)
        weights += weight
    out += batch * out_b + head * out_h + rows[:, None] * out_n + dims[None, :] * out_d
    tl.store(out, (total / weights[:, None]).to(out.dtype.element_ty), mask=real)
