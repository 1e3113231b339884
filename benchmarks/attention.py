"""The kernels on a GPU against dense attention and FlexAttention: time, memory, error.

    python -m benchmarks.attention --out benchmarks/attention.json
    python -m benchmarks.attention --out benchmarks/attention.json --resume    what is missing
    python -m benchmarks.attention --out benchmarks/attention.json --table     attention.md from it

bf16, causal, batch 1, 32 query and 8 kv heads of 128, planted stripes; with `--activations` the
queries, keys and values of a model, as `anchor_ref.activations.capture_qkv(save_to=)` wrote them.

time        CUDA events around each call, waits for the host inside; L2 is flushed before it
TFLOP/s     4·D per kept pair and head, 2·D per pooled pair of stage 2
floor       the larger of FLOP / matrix rate and bytes / copy rate, both measured in the same run;
            bytes count every tensor once, and stage 3 without its rows of k and v
memory      peak of one call above what was there before it and the output
error       ‖out − dense‖ / ‖dense‖ per head on sampled rows, dense in float64

Dense methods and FlexAttention end at stated lengths. Dense attention does the same work at every
stripe density and is measured at one. Each result is written as soon as it is there.
"""

import argparse
import gc
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from itertools import pairwise
from math import ceil, exp, inf, log
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from anchor_ref.activations import Captured, load_capture, planted_stripes
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import output_error
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups

HERE = Path(__file__).parent
LENGTHS = [2**power for power in range(12, 21)]
DENSITIES = [0.01, 0.02, 0.05, 0.1, 0.2]
REFERENCE_DENSITY = 0.05
DENSITY_LENGTH = 131_072  # where densities are compared
QUICK_LENGTHS = [4096, 16384]
LEAST_REPEATS, MOST_REPEATS = 3, 50
MIB = 2**20


@dataclass(frozen=True)
class Cell:
    """One measurement to make: a method on one set of inputs.

    Attributes:
        source: "planted", or the name of a capture.
        layer: of the capture; None when planted.
        n: tokens.
        density: share of planted keys; None for a capture.
        method: a key of `make_methods`.
    """

    source: str
    layer: int | None
    n: int
    density: float | None
    method: str

    @property
    def inputs(self) -> tuple:
        """What the cells on the same tensors have in common."""
        return astuple(self)[:-1]


@dataclass(frozen=True, eq=False)
class Case:
    """One set of inputs, and what the methods share on it.

    Attributes:
        q, k, v: `[B, Hq, N, D]` and `[B, Hkv, N, D]`.
        scale: factor of q·k; None means 1/sqrt(D).
        config: sizes and threshold.
        backend: module with the four functions of AnchorAttention.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float | None
    config: AnchorConfig
    backend: ModuleType

    @property
    def n(self) -> int:
        return self.q.shape[2]

    @property
    def heads(self) -> int:
        """Query heads of the whole batch."""
        return self.q.shape[0] * self.q.shape[1]

    @cached_property
    def stripes(self) -> StripePlan:
        """What the project keeps: pairs are counted from it, FlexAttention gets its blocks."""
        inputs = (self.q, self.k, self.v, self.config, self.scale)
        return self.backend.anchor_attention(*inputs, return_trace=True)[1].stripes

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
        pooled: (pooled query, key) pairs scored.
        bytes: least traffic, every tensor once.
        complete: `run` returns the attention output.
        held_bytes: of tables that were made beforehand and that `run` needs besides its inputs.
        note: for the record.
    """

    run: Callable[[], object]
    pairs: int
    pooled: int
    bytes: int
    complete: bool = True
    held_bytes: int = 0
    note: str = ""


# What there is to do


def causal_pairs(n: int) -> int:
    """Pairs of a query and an earlier key or its own."""
    return n * (n + 1) // 2


def always_pairs(config: AnchorConfig, n: int) -> int:
    """Pairs of stage 1, one head: initial region and window."""
    total = 0
    for group in groups(config, n, n):
        before = group.rows.start - group.window_start  # the window's keys before the group
        rows = len(group.rows)
        total += rows * (len(group.init) + before) + causal_pairs(rows)
    return total


def stripe_pairs(stripes: StripePlan, config: AnchorConfig, n: int) -> int:
    """Pairs of stage 3, all heads: every stripe is seen by all rows of its group."""
    rows = torch.tensor([len(group.rows) for group in groups(config, n, n)])
    return int((stripes.counts.cpu().long() * rows).sum())


def pooled_pairs(config: AnchorConfig, n: int) -> int:
    """Pairs of a block's pooled query and a candidate, one head: what stage 2 scores."""
    return sum(len(group.blocks) * len(group.candidates) for group in groups(config, n, n))


def flop(pairs: int, pooled: int, head_dim: int) -> int:
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
    return sum(x.numel() * x.element_size() for x in tensors)


# The methods


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


DENSE = ("sdpa-flash", "sdpa-cudnn")


def end_to_end(case: Case) -> Job:
    """This project: the three stages in one call."""
    q, k, v, config, scale = case.q, case.k, case.v, case.config, case.scale
    return Job(
        lambda: case.backend.anchor_attention(q, k, v, config, scale),
        pairs=case.heads * always_pairs(config, case.n)
        + stripe_pairs(case.stripes, config, case.n),
        pooled=case.heads * pooled_pairs(config, case.n),
        bytes=size(q, q, k, v),
    )


def stage_1(case: Case) -> Job:
    q, k, v, config, scale = case.q, case.k, case.v, case.config, case.scale
    return Job(
        lambda: case.backend.compute_anchor(q, k, v, config, scale),
        pairs=case.heads * always_pairs(config, case.n),
        pooled=0,
        bytes=size(q, q, k, v) + 2 * _row_bytes(q),  # a maximum and a sum for each row
        complete=False,
    )


def stage_2(case: Case) -> Job:
    q, k, v, config, scale = case.q, case.k, case.v, case.config, case.scale
    row_anchor = case.backend.compute_anchor(q, k, v, config, scale).max
    return Job(
        lambda: case.backend.identify_stripes(q, k, row_anchor, config, scale),
        pairs=0,
        pooled=case.heads * pooled_pairs(config, case.n),
        bytes=size(q, k, case.stripes.indices) + _row_bytes(q),
        complete=False,
    )


def stage_3(case: Case) -> Job:
    q, k, v, config, scale = case.q, case.k, case.v, case.config, case.scale
    state = case.backend.compute_anchor(q, k, v, config, scale)
    return Job(
        lambda: case.backend.attend_stripes(q, k, v, state, case.stripes, config, scale),
        pairs=stripe_pairs(case.stripes, config, case.n),
        pooled=0,
        # q, stage 1's part and the output; lists of several groups may share their rows of k.
        bytes=size(q, q, q, case.stripes.indices) + _row_bytes(q),
    )


def _row_bytes(q: Tensor) -> int:
    """One float32 for each row."""
    return 4 * q.shape[0] * q.shape[1] * q.shape[2]


def sdpa_flash(case: Case) -> Job:
    """`scaled_dot_product_attention` with its flash backend."""
    return _sdpa(case, "FLASH_ATTENTION")


def sdpa_cudnn(case: Case) -> Job:
    """`scaled_dot_product_attention` with its cuDNN backend."""
    return _sdpa(case, "CUDNN_ATTENTION")


def _sdpa(case: Case, backend: str) -> Job:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    options = {"is_causal": True, "scale": case.scale, "enable_gqa": True}

    def run() -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(case.q, case.k, case.v, **options)

    # Which one a call takes that forces none: the table says what "default SDPA" is here.
    chosen = torch._fused_sdp_choice(case.q, case.k, case.v, **options)
    names = {int(value): name for name, value in SDPBackend.__members__.items()}
    return Job(
        run,
        pairs=case.heads * causal_pairs(case.n),
        pooled=0,
        bytes=size(case.q, case.q, case.k, case.v),
        note=f"SDPA without a forced backend is {names.get(chosen, chosen)}",
    )


def flex(case: Case) -> Job:
    """FlexAttention over the blocks that hold a kept key."""
    from torch.nn.attention.flex_attention import BlockMask

    tables = block_tables(case.stripes, case.config, case.n)
    block = case.config.block_size
    mask = BlockMask.from_kv_blocks(
        *tables, BLOCK_SIZE=block, mask_mod=_causal, seq_lengths=(case.n, case.n)
    )
    attend, gqa = _compiled_flex(), case.q.shape[1] != case.k.shape[1]
    pairs = block_pairs(tables[2], block, case.n)
    share = pairs / (case.heads * causal_pairs(case.n))
    return Job(
        lambda: attend(case.q, case.k, case.v, block_mask=mask, scale=case.scale, enable_gqa=gqa),
        pairs=pairs,
        pooled=0,
        bytes=size(case.q, case.q, case.k, case.v),
        held_bytes=size(*tables),
        note=f"blocks of {block} that hold a kept key: {share:.1%} of the causal pairs",
    )


def _causal(_b, _h, q_index, kv_index):
    return q_index >= kv_index


@cache
def _compiled_flex() -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    # Every length is compiled anew. Beyond this limit fullgraph raises; without it the call would
    # go on uncompiled, with an N x N matrix.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def block_tables(
    stripes: StripePlan, config: AnchorConfig, n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The kept blocks as FlexAttention's tables, straight from the ragged list.

    A block of `block_size` x `block_size` pairs is kept when it holds a kept pair. The one on the
    diagonal needs the causal mask; all others precede their queries and are kept whole.

    Returns:
        Number of masked blocks `[B, Hq, Q]`, their indices `[B, Hq, Q, K]`, and the same two of
        the whole blocks; int32, Q = K = number of blocks. Of the indices of a row only as many
        count as its number says.
    """
    block, n_blocks = config.block_size, ceil(n / config.block_size)
    counts, device = stripes.counts, stripes.indices.device
    lists = torch.arange(counts.numel(), device=device)
    lists = lists.repeat_interleave(counts.flatten().long())
    touched = torch.zeros(counts.numel(), n_blocks, dtype=torch.bool, device=device)
    touched[lists, stripes.indices.long() // block] = True
    touched = touched.view(*counts.shape, n_blocks)

    whole = torch.zeros(
        *counts.shape[:2], n_blocks, n_blocks, dtype=torch.bool, device=device
    )  # [B, Hq, Q, K]
    for g, group in enumerate(groups(config, n, n)):
        for rows in group.blocks:
            own = rows.start // block
            whole[:, :, own] = touched[:, :, g]
            whole[:, :, own, : ceil(group.init.stop / block)] = True
            whole[:, :, own, group.window_start // block : own] = True
    whole_indices = whole.byte().argsort(stable=True, dim=-1, descending=True).int()

    masked_indices = torch.zeros_like(whole_indices)
    masked_indices[..., 0] = torch.arange(n_blocks, device=device)
    number = whole.sum(-1, dtype=torch.int32)
    return torch.ones_like(number), masked_indices, number, whole_indices


def block_pairs(whole_number: Tensor, block: int, n: int) -> int:
    """Causal pairs inside the kept blocks, all heads; the last block of queries may be shorter."""
    rows = torch.full(whole_number.shape[-1:], block, dtype=torch.int64)
    rows[-1] = n - block * (len(rows) - 1)
    diagonal = sum(causal_pairs(r) for r in rows.tolist())
    whole = int((whole_number.cpu().long() * rows).sum()) * block
    return whole + diagonal * (whole_number.numel() // len(rows))


# The truth


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
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, scale: float | None, elements: int = 2**26
) -> Tensor:
    """Dense causal attention of some rows in float64, `[B, Hq, R, D]`.

    At most about `elements` scores exist at a time.
    """
    batch, q_heads, _, head_dim = q.shape
    shared, n_keys = q_heads // k.shape[1], k.shape[2]
    scale = head_dim**-0.5 if scale is None else scale
    rows, keys = rows.to(q.device), torch.arange(n_keys, device=q.device)
    out = torch.empty(batch, q_heads, len(rows), v.shape[3], dtype=torch.float64, device=q.device)
    for b in range(batch):
        for kv_head in range(k.shape[1]):
            heads = slice(kv_head * shared, (kv_head + 1) * shared)
            k_all, v_all = k[b, kv_head].double(), v[b, kv_head].double()
            places = torch.arange(len(rows), device=q.device)
            for part in places.split(max(1, elements // (shared * n_keys))):
                q_rows = q[b, heads, rows[part]].double()  # [r, P, D]
                scores = (q_rows @ k_all.mT).mul_(scale)  # [r, P, N]
                scores.masked_fill_(keys > rows[part, None], -torch.inf)
                out[b, heads, part] = scores.softmax(-1) @ v_all
    return out


# The measuring


def repeats_for(once_s: float, budget_s: float) -> int:
    """As many calls as fit into the budget, within what a quantile needs and what it gains by."""
    return min(MOST_REPEATS, max(LEAST_REPEATS, int(budget_s / max(once_s, 1e-9))))


def quantiles(times: list[float]) -> dict:
    """Median, 10th and 90th percentile and number of repeats."""
    sample = torch.tensor(times, dtype=torch.float64)
    low, middle, high = sample.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    return {
        "median": _digits(middle),
        "p10": _digits(low),
        "p90": _digits(high),
        "repeats": len(times),
    }


def _digits(x: float) -> float:
    """Four digits: more would only be noise in the committed file."""
    return float(f"{float(x):.4g}")


class CudaInstruments:
    """Clock, memory meter and reference rates of the current CUDA device."""

    def __init__(self, budget_s: float):
        self.budget_s = budget_s  # of the repeats of one measurement
        self.flush = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")

    def times(self, run: Callable[[], object]) -> list[float]:
        """Milliseconds of each repeat, after a call that compiles and one that sets how many."""
        run()
        repeats = repeats_for(self._once(run) / 1e3, self.budget_s)
        return [self._once(run) for _ in range(repeats)]

    def _once(self, run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Empties the L2 cache, and keeps the device busy while the host queues the call.
        self.flush.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def peak(self, run: Callable[[], object]) -> tuple[object, int]:
        """What one call returns, and the bytes it needs above what is there and a tensor returned.

        What is no tensor, as a stage's state, counts as needed.
        """
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        own = size(result) if isinstance(result, Tensor) else 0
        return result, torch.cuda.max_memory_allocated() - before - own

    def settle(self) -> None:
        """Give memory back after a failure. Raises when the device no longer answers."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def rates(self) -> dict:
        """bf16 matrix product of 8192³ on random data, and a copy of 2 GiB."""
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        product = quantiles(self.times(lambda: a @ b))["median"]
        del a, b
        source = torch.zeros(2048 * MIB, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        copy = quantiles(self.times(lambda: target.copy_(source)))["median"]
        return {
            "matrix_tflops": _digits(2 * 8192**3 / product / 1e9),
            "copy_tbs": _digits(2 * size(source) / copy / 1e9),
        }


def measure(job: Job, case: Case, instruments, rates: dict) -> dict:
    """Everything about one method on one case."""
    times = quantiles(instruments.times(job.run))
    # After the timing: the first call of a kernel may need memory that later ones do not.
    result, extra = instruments.peak(job.run)
    work = flop(job.pairs, job.pooled, case.q.shape[3])
    least = floor_ms(work, job.bytes, **rates)
    found = {
        "status": "ok",
        "ms": times,
        "pairs": job.pairs,
        "kept": _digits(job.pairs / (case.heads * causal_pairs(case.n))),
        "pooled": job.pooled,
        "flop": work,
        "bytes": job.bytes,
        "tflops": _digits(work / times["median"] / 1e9),
        "floor_ms": _digits(least),
        "floor_ratio": _digits(times["median"] / least),
        "extra_mib": round((extra + job.held_bytes) / MIB, 1),
        "input_output_mib": round(size(case.q, case.q, case.k, case.v) / MIB, 1),
        "heads": [case.q.shape[0], case.q.shape[1], case.k.shape[1], case.q.shape[3]],
    }
    if job.complete:
        rows, truth = case.truth
        errors = output_error(result[:, :, rows.to(result.device)].double(), truth)
        found |= {
            "error_mean": _digits(errors.mean()),
            "error_worst_head": _digits(errors.max()),
        }
    return found | ({"note": job.note} if job.note else {})


def attempt(measured: Callable[[], dict]) -> dict:
    """Its result, or what kept it from having one."""
    try:
        return measured()
    except torch.OutOfMemoryError as error:
        return {"status": "out of memory", "message": _first_line(error)}
    except Exception as error:
        return {"status": "error", "message": f"{type(error).__name__}: {_first_line(error)}"}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


# The run


def planned(
    lengths: list[int],
    densities: list[float],
    methods: list[str],
    captures: dict[tuple[str, int], Captured],
    dense_to: int,
    flex_to: int,
) -> Iterator[tuple[Cell, str]]:
    """All cells, those that tell most first, each with the reason to skip it or "".

    The reference density at all lengths, captures, all densities at one length, then the rest.
    """
    reference = REFERENCE_DENSITY if REFERENCE_DENSITY in densities else densities[0]
    compared = DENSITY_LENGTH if DENSITY_LENGTH in lengths else max(lengths)
    lengths = sorted(set(lengths))
    others = [density for density in dict.fromkeys(densities) if density != reference]
    inputs = [("planted", None, n, reference) for n in lengths]
    inputs += [(*name, found.q.shape[2], None) for name, found in captures.items()]
    inputs += [("planted", None, compared, density) for density in others]
    inputs += [("planted", None, n, d) for n in lengths if n != compared for d in others]
    for source, layer, n, density in inputs:
        for method in methods:
            if density in others and method in DENSE:
                continue
            # Its blocks are nearly all kept from a few per cent on: one length shows it.
            if density in others and method == "flex" and n != compared:
                continue
            limit = {"flex": flex_to}.get(method, dense_to if method in DENSE else inf)
            reason = f"measured up to N = {limit}" if n > limit else ""
            yield Cell(source, layer, n, density, method), reason


def missing(plan: list[tuple[Cell, str]], results: dict) -> list[tuple[Cell, str]]:
    """What the results do not hold yet; a cell once skipped is missing when nothing forbids it."""
    fields = Cell.__dataclass_fields__
    present = {
        tuple(found[name] for name in fields): found["status"] for found in results["cells"]
    }
    return [
        (cell, reason)
        for cell, reason in plan
        if astuple(cell) not in present or (present[astuple(cell)] == "skipped" and not reason)
    ]


@torch.no_grad()
def run(
    todo: list[tuple[Cell, str]],
    make_case: Callable[[Cell], Case],
    methods: dict[str, Callable[[Case], Job]],
    instruments,
    results: dict,
    save: Callable[[dict], None],
    budget_s: float = inf,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Measure cell by cell, saving each; how many are left when the budget is used up.

    Raises:
        RuntimeError: the device stopped answering after a failure. What failed is saved.
    """
    started, number = clock(), len(results["runs"]) - 1
    rates = {name: results["runs"][-1][name] for name in ("matrix_tflops", "copy_tbs")}
    case, inputs = None, None

    for place, (cell, reason) in enumerate(todo):
        if clock() - started >= budget_s:
            return len(todo) - place
        if cell.inputs != inputs:
            case, inputs = None, cell.inputs  # the old tensors go before the new ones come

        def measured(cell=cell) -> dict:
            nonlocal case
            if case is None:
                case = make_case(cell)
            return measure(methods[cell.method](case), case, instruments, rates)

        found = {"status": "skipped", "message": reason} if reason else attempt(measured)
        _replace(results, {**asdict(cell), "run": number, **found})
        save(results)
        print(line(results["cells"][-1]), flush=True)
        if found["status"] in ("error", "out of memory"):
            instruments.settle()
    return 0


def _replace(results: dict, found: dict) -> None:
    """Put a cell at the end, in place of an older one of the same name."""
    fields = list(Cell.__dataclass_fields__)
    name = [found[field] for field in fields]
    results["cells"] = [x for x in results["cells"] if [x[field] for field in fields] != name]
    results["cells"].append(found)


def line(found: dict) -> str:
    """One cell on one line."""
    what = f"{found['density']:.0%}" if found["layer"] is None else f"layer {found['layer']}"
    head = f"{found['source']} {what}  N {found['n']}  {found['method']}: "
    if found["status"] != "ok":
        return f"{head}{found['status']}, {found['message']}"
    ms = found["ms"]
    error = f", error {found['error_mean']:.2g}" if "error_mean" in found else ""
    return (
        f"{head}{ms['median']:.4g} ms ({ms['p10']:.4g}–{ms['p90']:.4g}, {ms['repeats']} calls), "
        f"{found['tflops']:.3g} TFLOP/s, {found['floor_ratio']:.3g} x floor, "
        f"{found['extra_mib']:.0f} MiB{error}"
    )


# The tables

# What one row of a table is made of: the cells on the same inputs, by method.
Row = dict[str, dict]


def break_even(times: dict[int, tuple[float, float]]) -> float:
    """The length from which on the first time is the smaller one.

    Interpolated between the last two measured lengths around the crossing: the logarithm of the
    ratio is taken as linear in log N.

    Args:
        times: by length, (the method's, the other's).

    Returns:
        The length; 0 when the first is smaller at all lengths, inf when it is not at the last.
    """
    points = [(log(n), log(ours / theirs)) for n, (ours, theirs) in sorted(times.items())]
    if not points or points[-1][1] >= 0:
        return inf
    for (x0, y0), (x1, y1) in reversed(list(pairwise(points))):
        if y0 >= 0:
            return exp(x0 + (x1 - x0) * y0 / (y0 - y1))
    return 0.0


def by_inputs(results: dict) -> dict[tuple, Row]:
    """The cells by (source, layer, n, density), then by method."""
    rows: dict[tuple, Row] = {}
    for cell in results["cells"]:
        inputs = (cell["source"], cell["layer"], cell["n"], cell["density"])
        rows.setdefault(inputs, {})[cell["method"]] = cell
    return rows


def reference_density(rows: dict[tuple, Row]) -> float:
    """The density at which lengths are compared: 5 %, or what was measured first instead."""
    densities = [density for source, _, _, density in rows if source == "planted"]
    if REFERENCE_DENSITY in densities or not densities:
        return REFERENCE_DENSITY
    return densities[0]


def by_length(rows: dict[tuple, Row]) -> dict[int, Row]:
    """Planted inputs of the reference density, by ascending length."""
    wanted = reference_density(rows)
    found = {n: row for (_, _, n, density), row in rows.items() if density == wanted}
    return dict(sorted(found.items()))


def by_density(rows: dict[tuple, Row]) -> tuple[int, dict[float, Row]]:
    """The length with most densities, the longest of several, and its planted inputs.

    Dense attention, measured at one density, stands in the rows of all: its work is the same.
    """
    found: dict[int, dict[float, Row]] = {}
    for (source, _, n, density), row in rows.items():
        if source == "planted":
            found.setdefault(n, {})[density] = row
    if not found:
        return 0, {}
    n = max(found, key=lambda n: (len(found[n]), n == DENSITY_LENGTH, n))
    reference = found[n].get(reference_density(rows), {})
    dense = {method: cell for method, cell in reference.items() if method in DENSE}
    return n, {density: dense | row for density, row in sorted(found[n].items())}


def crossing(rows: dict[tuple, Row], other: str) -> tuple[float, list[int]]:
    """`break_even` of the project with another method, and the lengths it rests on."""
    times = {
        n: (row["anchor"]["ms"]["median"], row[other]["ms"]["median"])
        for n, row in by_length(rows).items()
        if is_ok(row, "anchor", other)
    }
    return break_even(times), list(times)


def is_ok(row: Row, *methods: str) -> bool:
    """All of these methods were measured on the row's inputs."""
    return all(method in row and row[method]["status"] == "ok" for method in methods)


def number(x: float) -> str:
    """Three digits; whole numbers from 100 on."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def percent(x: float) -> str:
    return f"{100 * x:.3g} %"


Column = tuple[str, Callable[[Row], str]]


def _column(header: str, method: str, text: Callable[[dict], str]) -> Column:
    """A column about one method; where it has no result, its status."""

    def entry(row: Row) -> str:
        if is_ok(row, method):
            return text(row[method])
        return row[method]["status"] if method in row else "–"

    return header, entry


def _time(header: str, method: str) -> Column:
    def text(cell: dict) -> str:
        ms = cell["ms"]
        return f"{number(ms['median'])} [{number(ms['p10'])}–{number(ms['p90'])}]"

    return _column(header, method, text)


def _rate(header: str, method: str) -> Column:
    return _column(
        header, method, lambda cell: f"{number(cell['ms']['median'])} ({number(cell['tflops'])})"
    )


def _field(header: str, method: str, name: str, form: Callable = number) -> Column:
    return _column(header, method, lambda cell: form(cell[name]))


def _quotient(header: str, method: str) -> Column:
    def entry(row: Row) -> str:
        if not is_ok(row, "anchor", method):
            return "–"
        return f"{row[method]['ms']['median'] / row['anchor']['ms']['median']:.2f}"

    return header, entry


def _sum_of_stages(row: Row) -> str:
    stages = ("stage1", "stage2", "stage3")
    if not is_ok(row, *stages):
        return "–"
    return number(sum(row[stage]["ms"]["median"] for stage in stages))


def _of_any(text: Callable[[dict], str]) -> Callable[[Row], str]:
    """What is the same for all methods, from one that has a result."""
    return lambda row: next((text(c) for c in row.values() if c["status"] == "ok"), "–")


TIMES = (
    _time("AnchorAttention, ms", "anchor"),
    _time("SDPA flash, ms", "sdpa-flash"),
    _time("SDPA cuDNN, ms", "sdpa-cudnn"),
    _time("FlexAttention, ms", "flex"),
    _quotient("flash / ours", "sdpa-flash"),
    _quotient("cuDNN / ours", "sdpa-cudnn"),
)
KEPT = _field("pairs kept", "anchor", "kept", percent)
FLOOR = (
    _field("floor, ms", "anchor", "floor_ms"),
    _field("ours / floor", "anchor", "floor_ratio"),
)
ERROR = _field("error, ours", "anchor", "error_mean", "{:.2g}".format)
STAGES = tuple(_rate(f"stage {i}, ms", f"stage{i}") for i in (1, 2, 3))
END_TO_END_COLUMNS = (
    KEPT,
    *TIMES,
    *FLOOR,
    ERROR,
    _field("error, cuDNN", "sdpa-cudnn", "error_mean", "{:.2g}".format),
    _column("repeats", "anchor", lambda cell: str(cell["ms"]["repeats"])),
)
STAGE_COLUMNS = (
    *STAGES,
    ("sum", _sum_of_stages),
    _rate("end to end, ms", "anchor"),
    *(_field(f"stage {i} / floor", f"stage{i}", "floor_ratio") for i in (1, 2, 3)),
)
DENSITY_COLUMNS = (
    KEPT,
    *TIMES,
    *STAGES,
    *FLOOR,
    _field("pairs in Flex's blocks", "flex", "kept", percent),
    ERROR,
)
MEMORY_COLUMNS = (
    ("inputs and output", _of_any(lambda cell: number(cell["input_output_mib"]))),
    _field("AnchorAttention", "anchor", "extra_mib"),
    _field("SDPA flash", "sdpa-flash", "extra_mib"),
    _field("SDPA cuDNN", "sdpa-cudnn", "extra_mib"),
    _field("FlexAttention, block tables included", "flex", "extra_mib"),
)
CAPTURE_COLUMNS = (
    ("heads", _of_any(lambda cell: "{1} / {2} of {3}".format(*cell["heads"]))),
    KEPT,
    *TIMES,
    *FLOOR,
    ERROR,
    _field("of the worst head", "anchor", "error_worst_head", "{:.2g}".format),
)


def table(results: dict) -> str:
    """The results as Markdown."""
    rows = by_inputs(results)
    at = f"{percent(reference_density(rows))} stripes"
    lengths = {(str(n),): row for n, row in by_length(rows).items()}
    n, of_densities = by_density(rows)
    densities = {(percent(density),): row for density, row in of_densities.items()}
    captures = {
        (source, str(layer), str(n)): row
        for (source, layer, n, _), row in rows.items()
        if source != "planted"
    }
    memory = f"Peak memory above inputs and output, MiB, {at}"
    parts = [
        "# Attention on a GPU",
        _conditions(results, at),
        _section(f"End to end, {at}", ["N"], END_TO_END_COLUMNS, lengths),
        _break_even_text(rows),
        _section(f"Stages, {at}", ["N"], STAGE_COLUMNS, lengths),
        _section(f"By stripe density, N = {n}", ["stripes"], DENSITY_COLUMNS, densities),
        _section(memory, ["N"], MEMORY_COLUMNS, lengths),
        _section("Activations of a model", ["capture", "layer", "N"], CAPTURE_COLUMNS, captures),
        _gaps(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, names: list[str], columns: tuple[Column, ...], rows: dict) -> str:
    """A titled table whose rows begin with the entries of their key; "" without rows."""
    if not rows:
        return ""
    header = [*names, *(header for header, _ in columns)]
    entries = [[*key, *(entry(row) for _, entry in columns)] for key, row in rows.items()]
    return f"## {title}\n\n{_markdown(header, entries)}"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _conditions(results: dict, at: str) -> str:
    """What was measured on what, one line for each run."""
    ok = [cell for cell in results["cells"] if cell["status"] == "ok"]
    notes = sorted({cell["note"] for cell in ok if cell["method"] in DENSE})
    shapes = [cell["heads"] for cell in ok if cell["source"] == "planted"]
    shape = "B = {}, {} query / {} kv heads, D = {}".format(*shapes[0]) if shapes else "none"
    text = (
        "Medians [10th–90th percentile] of one call, in brackets (TFLOP/s on kept pairs). bf16, "
        f"causal; block 128, step 16, θ = 12. Planted inputs: {shape}. Dense attention at {at}"
        f"{': ' + '; '.join(notes) if notes else ''}. FlexAttention gets the 128 x 128 blocks "
        "that hold a kept pair."
    )
    names = ("date", "device", "torch", "triton", "cuda", "cudnn", "driver")
    header = ["run", *names, "matrix, TFLOP/s", "copy, TB/s", "command"]
    rows = [
        [
            str(place),
            *(str(run[name]) for name in names),
            number(run["matrix_tflops"]),
            number(run["copy_tbs"]),
            f"`{run['command']}`",
        ]
        for place, run in enumerate(results["runs"])
    ]
    return f"{text}\n\n{_markdown(header, rows)}"


def _break_even_text(rows: dict[tuple, Row]) -> str:
    lines = []
    for method, name in (("sdpa-cudnn", "SDPA cuDNN"), ("sdpa-flash", "SDPA flash")):
        length, measured = crossing(rows, method)
        if not measured:
            text = "no length has both"
        elif length == inf:
            text = f"none up to N = {measured[-1]}"
        elif length == 0:
            text = f"below N = {measured[0]}, the shortest measured"
        else:
            text = f"N = {length:.0f}, interpolated in log N"
        lines.append(f"- Break-even with {name}: {text}.")
    return "\n".join(lines)


def _gaps(results: dict) -> str:
    """What has no result, and why."""
    rows = [
        [
            cell["source"] if cell["layer"] is None else f"{cell['source']}, {cell['layer']}",
            str(cell["n"]),
            "–" if cell["density"] is None else percent(cell["density"]),
            cell["method"],
            cell["status"],
            cell["message"].replace("|", "\\|"),
        ]
        for cell in results["cells"]
        if cell["status"] != "ok"
    ]
    header = ["inputs", "N", "stripes", "method", "status", "message"]
    return f"## Not measured\n\n{_markdown(header, rows)}" if rows else ""


# The command


def describe(command: list[str], date: str) -> dict:
    """What a run was made on."""
    import triton

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.check_output(query, text=True).splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {
        "date": date,
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver,
        "command": command_line(command),
    }


def command_line(arguments: list[str]) -> str:
    """As it was given, of absolute paths the last part: where files lay tells nobody anything."""
    short = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    return shlex.join(["python", "-m", "benchmarks.attention", *short])


def find_captures(paths: list[Path]) -> dict[tuple[str, int], Captured]:
    """Every layer of the files or folders, by the name of the file and the layer.

    Layer files of `capture_qkv` are called alike in every folder, so the folder's name is theirs.
    """
    found: dict[tuple[str, int], Captured] = {}
    for path in paths:
        path = path.resolve()
        name = path.parent.name if path.name.startswith("layer_") else path.stem
        for layer, captured in load_capture(path).items():
            if (name, layer) in found:
                raise ValueError(f"activations must have different names, got {name} twice")
            found[name, layer] = captured
    return found


def case_maker(
    captures: dict[tuple[str, int], Captured], backend: ModuleType, device: str = "cuda"
) -> Callable[[Cell], Case]:
    """A function that makes the inputs of a cell, in bf16 on the device."""
    config = AnchorConfig()

    def make_case(cell: Cell) -> Case:
        if cell.source == "planted":
            inputs = planted_stripes(
                cell.n,
                q_heads=32,
                kv_heads=8,
                head_dim=128,
                density=cell.density,
                dtype=torch.bfloat16,
                device=device,
            )
            return Case(inputs.q, inputs.k, inputs.v, None, config, backend)
        found = captures[cell.source, cell.layer]
        if found.sliding_window is not None and found.sliding_window < cell.n:
            raise ValueError(f"layer sees only the last {found.sliding_window} keys")
        if found.softcap is not None:
            raise ValueError("layer caps its scores, which none of the methods does")
        q, k, v = (x.to(device, torch.bfloat16) for x in (found.q, found.k, found.v))
        return Case(q, k, v, found.scaling, config, backend)

    return make_case


def write(results: dict, path: Path) -> None:
    """Replace the file in one step: a run that is cut off leaves the last whole one."""
    cells = ",\n".join("  " + json.dumps(cell) for cell in results["cells"])
    runs = ",\n".join("  " + json.dumps(run) for run in results["runs"])
    fresh = path.with_name(path.name + ".part")
    fresh.write_text(f'{{\n "runs": [\n{runs}\n ],\n "cells": [\n{cells}\n ]\n}}\n')
    os.replace(fresh, path)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    if options.table:
        text = table(json.loads(options.out.read_text()))
        options.out.with_suffix(".md").write_text(text)
        print(text)
        return 0
    if not torch.cuda.is_available():
        print("benchmarks.attention needs a CUDA device, and torch finds none.", file=sys.stderr)
        return 2
    if options.out.exists() and not options.resume:
        print(f"{options.out} exists: add --resume, or name another --out.", file=sys.stderr)
        return 2
    import anchor_kernels

    results = {"runs": [], "cells": []}
    if options.out.exists():
        results = json.loads(options.out.read_text())
    about = describe(arguments, options.date)
    others = {run["device"] for run in results["runs"]} - {about["device"]}
    if others:
        print(f"{options.out} holds results of {others.pop()}.", file=sys.stderr)
        return 2
    if options.retry:
        results["cells"] = [c for c in results["cells"] if c["status"] in ("ok", "skipped")]

    captures = find_captures(options.activations)
    plan = planned(
        options.lengths,
        options.densities,
        options.methods,
        captures,
        options.dense_to,
        options.flex_to,
    )
    todo = missing(list(plan), results)
    if not todo:
        print(f"{options.out} holds all of it.")
        return 0
    instruments = CudaInstruments(options.cell_s)
    results["runs"].append(about | instruments.rates())
    left = run(
        todo,
        case_maker(captures, anchor_kernels),
        make_methods(),
        instruments,
        results,
        lambda results: write(results, options.out),
        options.budget_s,
    )
    if left:
        print(f"Budget of {options.budget_s:.0f} s used: {left} cells left, go on with --resume.")
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(make_methods())
    parser.add_argument("--out", type=Path, default=HERE / "attention.json")
    parser.add_argument("--resume", action="store_true", help="keep what --out holds, add to it")
    parser.add_argument("--retry", action="store_true", help="with --resume: failed cells again")
    parser.add_argument("--table", action="store_true", help="write --out as .md, measure nothing")
    parser.add_argument("--quick", action="store_true", help="two lengths, one density")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--densities", type=float, nargs="+", help="shares of planted keys")
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--activations", type=Path, nargs="+", default=[], help="captures")
    parser.add_argument("--dense-to", type=int, default=262_144, help="largest N of SDPA")
    parser.add_argument("--flex-to", type=int, default=131_072, help="largest N of FlexAttention")
    parser.add_argument("--cell-s", type=float, default=2.0, help="seconds of repeats per cell")
    parser.add_argument("--budget-s", type=float, default=inf, help="stop cleanly after that")
    parser.add_argument("--date", default=f"{datetime.now(UTC):%Y-%m-%d}")
    options = parser.parse_args(arguments)
    quick = options.quick
    options.lengths = options.lengths or (QUICK_LENGTHS if quick else LENGTHS)
    options.densities = options.densities or ([REFERENCE_DENSITY] if quick else DENSITIES)
    return options


if __name__ == "__main__":
    sys.exit(main())
