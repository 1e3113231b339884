"""The methods that are timed: each made ready on one set of inputs, and the work it has to do.

Pairs are counted from the method's own definition, not from what an implementation multiplies.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import product
from math import ceil
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.measure import stripe_pairs
from anchor_ref.plan import StripePlan
from anchor_ref.regions import Group, causal_pairs, groups


@dataclass(frozen=True, eq=False)
class Case:
    """One set of inputs, and what the methods share on it.

    Attributes:
        q, k, v: `[B, Hq, N, D]` and `[B, Hkv, N, D]`.
        scale: factor of q·k; None means 1/sqrt(D).
        config: sizes and threshold.
        backend: the four functions of AnchorAttention, as attributes.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float | None
    config: AnchorConfig
    backend: ModuleType | SimpleNamespace

    @property
    def n(self) -> int:
        return self.q.shape[2]

    @property
    def heads(self) -> int:
        """Query heads of the whole batch."""
        return self.q.shape[0] * self.q.shape[1]

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, AnchorConfig, float | None]:
        """Arguments of stage 1 and of the whole call."""
        return self.q, self.k, self.v, self.config, self.scale

    @cached_property
    def layout(self) -> tuple[Group, ...]:
        return groups(self.config, self.n, self.n)

    @property
    def dense_pairs(self) -> int:
        """All causal pairs of all heads."""
        return self.heads * causal_pairs(self.n)

    @property
    def always_pairs(self) -> int:
        """Pairs of stage 1, all heads: initial region and window."""
        return self.heads * sum(group.always_pairs for group in self.layout)

    @property
    def stripe_pairs(self) -> int:
        """Pairs of stage 3, all heads: every stripe is seen by all rows of its group."""
        return int(stripe_pairs(self.stripes, self.layout).sum())

    @property
    def pooled_pairs(self) -> int:
        """Pairs that stage 2 scores, all heads."""
        return self.heads * sum(group.pooled_pairs for group in self.layout)

    @cached_property
    def stripes(self) -> StripePlan:
        """What the project keeps: pairs are counted from it, FlexAttention gets its blocks."""
        return self.backend.anchor_attention(*self.inputs, return_trace=True)[1].stripes

    @cached_property
    def truth(self) -> tuple[Tensor, Tensor]:
        """Sampled rows and their dense attention in float64."""
        rows = sample_rows(self.n)
        return rows, dense_rows(self.q, self.k, self.v, rows, self.scale)


@dataclass(frozen=True, eq=False)
class Job:
    """A method made ready on one case: what is timed, and what it has to do.

    Attributes:
        run: the timed call.
        pairs: (query, key) pairs attended to, all heads together.
        bytes: least traffic, every tensor once.
        pooled: (pooled query, key) pairs scored.
        complete: `run` returns the attention output.
        held_bytes: of tables that were made beforehand and that `run` needs besides its inputs.
        note: for the record.
    """

    run: Callable[[], object]
    pairs: int
    bytes: int
    pooled: int = 0
    complete: bool = True
    held_bytes: int = 0
    note: str = ""


def flop(pairs: int | float, pooled: int, head_dim: int) -> int | float:
    """q·k and p·v are 2·D each; a pooled pair has the first alone."""
    return 4 * head_dim * pairs + 2 * head_dim * pooled


def floor_ms(work: int, traffic: int, matrix_tflops: float, copy_tbs: float) -> float:
    """The time below which no implementation can come: arithmetic or traffic, the larger.

    Args:
        work: FLOP.
        traffic: bytes.
        matrix_tflops: 10¹² FLOP per second.
        copy_tbs: 10¹² bytes per second, read and written bytes counted.
    """
    return max(work / matrix_tflops, traffic / copy_tbs) / 1e9


def size(*tensors: Tensor) -> int:
    """Bytes of the elements."""
    return sum(x.nbytes for x in tensors)


def make_methods() -> dict[str, Callable[[Case], Job]]:
    """Every method by its name; each makes itself ready on a case, untimed."""
    return {
        "anchor": end_to_end,
        "stage1": stage_1,
        "stage2": stage_2,
        "stage3": stage_3,
        "sdpa-flash": sdpa_flash,
        "sdpa-cudnn": sdpa_cudnn,
        "flex": flex,
    }


def end_to_end(case: Case) -> Job:
    """This project: the three stages in one call."""
    return Job(
        lambda: case.backend.anchor_attention(*case.inputs),
        pairs=case.always_pairs + case.stripe_pairs,
        pooled=case.pooled_pairs,
        bytes=size(case.q, case.q, case.k, case.v),
    )


def stage_1(case: Case) -> Job:
    return Job(
        lambda: case.backend.compute_anchor(*case.inputs),
        pairs=case.always_pairs,
        # A maximum and a sum for each row.
        bytes=size(case.q, case.q, case.k, case.v) + 2 * _row_bytes(case.q),
        complete=False,
    )


def stage_2(case: Case) -> Job:
    q, k, _, config, scale = case.inputs
    row_anchor = case.backend.compute_anchor(*case.inputs).max
    return Job(
        lambda: case.backend.identify_stripes(q, k, row_anchor, config, scale),
        pairs=0,
        pooled=case.pooled_pairs,
        bytes=size(q, k, case.stripes.indices) + _row_bytes(q),
        complete=False,
    )


def stage_3(case: Case) -> Job:
    q, k, v, config, scale = case.inputs
    state = case.backend.compute_anchor(*case.inputs)
    return Job(
        lambda: case.backend.attend_stripes(q, k, v, state, case.stripes, config, scale),
        pairs=case.stripe_pairs,
        # q, stage 1's part and the output; lists of several groups may share their rows of k.
        bytes=size(q, q, q, case.stripes.indices) + _row_bytes(q),
    )


def _row_bytes(q: Tensor) -> int:
    """One float32 for each row."""
    return 4 * q[..., 0].numel()


def kernels() -> SimpleNamespace:
    """The Triton kernels, each stage as the whole call runs it.

    That is without the check of a plan from outside: passes over its lists and waits of the host.
    """
    import anchor_kernels
    from anchor_kernels.sparse import continue_softmax

    def attend_stripes(q, k, v, state, stripes, config, scale, launch=None):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        where = {"out": torch.empty_like(q), "launch": launch}
        return continue_softmax(q, k, v, state, stripes, config, scale, None, **where)

    return SimpleNamespace(
        anchor_attention=anchor_kernels.anchor_attention,
        compute_anchor=anchor_kernels.compute_anchor,
        identify_stripes=anchor_kernels.identify_stripes,
        attend_stripes=attend_stripes,
    )


def sdpa(case: Case, backend: str | None = None) -> Job:
    """`scaled_dot_product_attention` with one of its backends, or with that which it takes."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    options = {"is_causal": True, "scale": case.scale, "enable_gqa": True}

    def run() -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, backend)) if backend else nullcontext():
            return F.scaled_dot_product_attention(case.q, case.k, case.v, **options)

    # Which one a call takes that forces none: the table says what "default SDPA" is here.
    chosen = torch._fused_sdp_choice(case.q, case.k, case.v, **options)
    names = {int(value): name for name, value in SDPBackend.__members__.items()}
    shape = f"{case.q.shape[1]} / {case.k.shape[1]} heads of {case.q.shape[3]}"
    return Job(
        run,
        pairs=case.dense_pairs,
        bytes=size(case.q, case.q, case.k, case.v),
        note=f"SDPA without a forced backend is {names.get(chosen, chosen)} for {shape}",
    )


sdpa_flash = partial(sdpa, backend="FLASH_ATTENTION")
sdpa_cudnn = partial(sdpa, backend="CUDNN_ATTENTION")


def flex(case: Case) -> Job:
    """FlexAttention over the blocks that hold a kept key."""
    block = case.config.block_size
    job = flex_over(case, kept_blocks(case.stripes, case.config, case.n), block)
    share = job.pairs / case.dense_pairs
    note = f"blocks of {block} that hold a kept key: {share:.1%} of the causal pairs"
    return replace(job, note=note)


def flex_over(case: Case, whole: Bool[Tensor, "B Hq T T"], block: int) -> Job:
    """FlexAttention over given blocks.

    Args:
        case: its stripes play no part. On a CPU all pairs are computed.
        whole: which blocks are kept of those before a query block's own, which always is.
        block: queries and keys of a block.
    """
    from torch.nn.attention.flex_attention import BlockMask

    tables = tables_of(whole)
    mask = BlockMask.from_kv_blocks(
        *tables,
        BLOCK_SIZE=block,
        mask_mod=_mask_function(whole, block),
        seq_lengths=(case.n, case.n),
    )
    attend, gqa = _compiled_flex(), case.q.shape[1] != case.k.shape[1]
    return Job(
        lambda: attend(case.q, case.k, case.v, block_mask=mask, scale=case.scale, enable_gqa=gqa),
        pairs=block_pairs(tables[2], block, case.n),
        bytes=size(case.q, case.q, case.k, case.v),
        held_bytes=size(*tables),
    )


def _mask_function(whole: Tensor, block: int) -> Callable:
    """Which pairs of a masked block count; not compiled, FlexAttention asks it of all pairs."""
    # No functions with names: their annotations would be checked inside what is compiled.
    if whole.is_cuda:
        return lambda _b, _h, query, key: query >= key
    kept = whole | torch.eye(whole.shape[-1], dtype=torch.bool)
    return lambda b, h, query, key: (query >= key) & kept[b, h, query // block, key // block]


@cache
def _compiled_flex() -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    if not torch.cuda.is_available():  # small inputs alone: no compiler need be there

        def uncompiled(*inputs, **options) -> Tensor:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
                return flex_attention(*inputs, **options)

        return uncompiled
    # Every length is compiled anew. Beyond this limit fullgraph raises; without it the call would
    # go on uncompiled, with an N x N matrix.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def kept_blocks(stripes: StripePlan, config: AnchorConfig, n: int) -> Bool[Tensor, "B Hq T T"]:
    """Which blocks of `block_size` x `block_size` pairs hold a kept pair, from the ragged list.

    Those on the diagonal all do, and are not marked: they alone need the causal mask.
    """
    block, n_blocks, device = config.block_size, ceil(n / config.block_size), stripes.counts.device
    size = *stripes.counts.shape[:2], n_blocks, n_blocks
    whole = torch.zeros(size, dtype=torch.bool, device=device)  # [B, Hq, Q, K]
    for g, group in enumerate(groups(config, n, n)):
        # The candidates begin and end where blocks do.
        first, window = group.candidates.start // block, group.window_start // block
        kept = stripes.kept(g, group.candidates).unflatten(-1, (window - first, block)).any(-1)
        for rows in group.blocks:
            own = rows.start // block
            whole[:, :, own, :first] = True
            whole[:, :, own, first:window] = kept
            whole[:, :, own, window:own] = True
    return whole


def tables_of(whole: Bool[Tensor, "B Hq T T"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blocks as tables: the one on the diagonal masked, those marked before it whole.

    Args:
        whole: query block by key block; nothing on or after the diagonal is marked.

    Returns:
        Number of masked blocks `[B, Hq, T]`, their indices `[B, Hq, T, T]`, and the same two of
        the whole blocks; int32. Of the indices of a row only as many count as its number says.
    """
    whole_indices = whole.byte().argsort(stable=True, dim=-1, descending=True).int()

    masked_indices = torch.zeros_like(whole_indices)
    masked_indices[..., 0] = torch.arange(whole.shape[-1], device=whole.device)
    number = whole.sum(-1, dtype=torch.int32)
    return torch.ones_like(number), masked_indices, number, whole_indices


def block_pairs(whole_number: Tensor, block: int, n: int) -> int:
    """Causal pairs inside the kept blocks, all heads; the last block of queries may be shorter."""
    rows = torch.full(whole_number.shape[-1:], block, dtype=torch.int64)
    rows[-1] = n - block * (len(rows) - 1)
    diagonal = sum(causal_pairs(r) for r in rows.tolist())
    whole = int((whole_number.cpu().long() * rows).sum()) * block
    return whole + diagonal * (whole_number.numel() // len(rows))


def sample_rows(n: int, count: int = 64) -> Tensor:
    """Query positions, ascending: one drawn from each of `count` equal parts, and the last."""
    if n <= count:
        return torch.arange(n)
    edges = torch.arange(count + 1) * n // count
    # Drawn, not evenly spaced: those would stand at the same place of every block.
    draw = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = edges[:-1] + (draw * edges.diff()).long()
    rows[-1] = n - 1
    return rows


def dense_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    scale: float | None,
    elements: int = 2**26,
    blocks: Bool[Tensor, "B Hq T T"] | None = None,
    block: int = 128,
) -> Tensor:
    """Causal attention of some rows in float64, `[B, Hq, R, D]`; dense unless `blocks` are given.

    Args:
        q, k, v, scale: as in `Case`.
        rows: query positions.
        elements: about as many scores exist at a time at most.
        blocks: which blocks each query block attends to; None for all.
        block: queries and keys of a block.
    """
    batch, q_heads, _, head_dim = q.shape
    shared, n_keys = q_heads // k.shape[1], k.shape[2]
    scale = head_dim**-0.5 if scale is None else scale
    rows, keys = rows.to(q.device), torch.arange(n_keys, device=q.device)
    out = torch.empty(batch, q_heads, len(rows), v.shape[3], dtype=torch.float64, device=q.device)
    for b, kv_head in product(range(batch), range(k.shape[1])):
        heads = slice(kv_head * shared, (kv_head + 1) * shared)
        k_all, v_all = k[b, kv_head].double(), v[b, kv_head].double()
        places = torch.arange(len(rows), device=q.device)
        for part in places.split(max(1, elements // (shared * n_keys))):
            q_rows = q[b, heads, rows[part]].double()  # [r, P, D]
            scores = (q_rows @ k_all.mT).mul_(scale)  # [r, P, N]
            scores.masked_fill_(keys > rows[part, None], -torch.inf)
            if blocks is not None:
                kept = blocks[b, heads][:, rows[part] // block]  # [r, P, T]
                scores.masked_fill_(~kept[..., keys // block], -torch.inf)
            out[b, heads, part] = scores.softmax(-1) @ v_all
    return out
