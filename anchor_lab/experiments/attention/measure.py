"""The kernels on a GPU against dense attention and FlexAttention: time, memory, error.

    python -m anchor_lab attention --activations bundled    writes attention.json, .md and .png
    python -m anchor_lab attention --table                  .md and .png from attention.json

bf16, causal, batch 1, 32 query and 8 kv heads of 128, planted stripes. `--activations` adds the
queries, keys and values of models: `bundled` stands for every layer of the one that comes with the
package (8 query and 2 kv heads of 64) at 8192 and 16384 tokens, anything else for a file or folder
that `anchor_models.capture_qkv(save_to=)` wrote.

time        CUDA events around each call, waits for the host inside; L2 is flushed before it
TFLOP/s     4·D per kept pair and head, 2·D per pooled pair of stage 2
floor       the larger of FLOP / matrix rate and bytes / copy rate, both measured in the same run;
            bytes count every tensor once, and stage 3 without its rows of k and v
memory      peak of one call above what was there before it and the output
error       ‖out − dense‖ / ‖dense‖ per head on sampled rows, dense in float64

Dense methods and FlexAttention end at stated lengths, and other densities than 5 % see them at
131072 tokens only. Each result is written as soon as it is there; the same command goes on where
a run was cut off.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from math import inf
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from anchor_lab.experiments.attention.cells import DENSE, DENSITY_LENGTH, REFERENCE_DENSITY
from anchor_lab.experiments.attention.instruments import CudaInstruments, attempt, measure_job
from anchor_lab.experiments.attention.jobs import Case, Job, kernels, make_methods
from anchor_lab.experiments.environment import cuda_facts, kernels_version
from anchor_lab.experiments.store import Store
from anchor_models import (
    Captured,
    capture_qkv,
    load_bundled,
    load_capture,
    make_document,
    planted_stripes,
)
from anchor_ref.config import AnchorConfig

LENGTHS = [2**power for power in range(12, 21)]
DENSITIES = [0.01, 0.02, 0.05, 0.1, 0.2]
QUICK_LENGTHS = [4096, 16384]
# Times of different devices, kernels or libraries are no one table.
SAME_IN_ALL_RUNS = ("device", "kernels", "torch", "triton")
BUNDLED = "bundled"
BUNDLED_LENGTHS = [8192, 16384]
# A layer of a model at one length: name, layer, tokens.
Captures = dict[tuple[str, int, int], Captured]


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


KEY = tuple(field.name for field in fields(Cell))
Plan = list[tuple[Cell, str]]  # each cell with the reason to skip it, or ""


def planned(
    lengths: list[int],
    densities: list[float],
    methods: list[str],
    captures: Captures,
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
    limits = dict.fromkeys(DENSE, dense_to) | {"flex": flex_to}
    inputs = [("planted", None, n, reference) for n in lengths]
    inputs += [(*capture, None) for capture in captures]
    inputs += [("planted", None, compared, density) for density in others]
    inputs += [("planted", None, n, d) for n in lengths if n != compared for d in others]
    for source, layer, n, density in inputs:
        for method in methods:
            # Density changes little of what the others do: one length shows it.
            if density in others and n != compared and method in limits:
                continue
            limit = limits.get(method, inf)
            reason = f"measured up to N = {limit}" if n > limit else ""
            yield Cell(source, layer, n, density, method), reason


def missing(plan: Plan, rows: Sequence[dict], retry: bool = False) -> Plan:
    """What a file does not hold yet.

    Args:
        plan: all cells.
        rows: those that the file holds. One once skipped is missing when nothing forbids it.
        retry: whether one that failed is missing as well.
    """
    present = {tuple(row[name] for name in KEY): row["status"] for row in rows}

    def is_missing(cell: Cell, reason: str) -> bool:
        status = present.get(astuple(cell))
        if status in (None, "ok"):
            return status is None
        return not reason if status == "skipped" else retry

    return [(cell, reason) for cell, reason in plan if is_missing(cell, reason)]


@torch.no_grad()
def run(
    todo: Plan,
    make_case: Callable[[Cell], Case],
    methods: dict[str, Callable[[Case], Job]],
    instruments,
    store: Store,
    budget_s: float = inf,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Measure cell by cell, saving each; how many are left when the budget is used up.

    Raises:
        RuntimeError: the device stopped answering after a failure. What failed is saved.
    """
    started = clock()
    rates = {name: store.run[name] for name in ("matrix_tflops", "copy_tbs")}
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
            return measure_job(methods[cell.method](case), case, instruments, rates)

        found = {"status": "skipped", "message": reason} if reason else attempt(measured)
        found = {**asdict(cell), **found}
        store.add([found])
        print(line(found), flush=True)
        if found["status"] in ("error", "out of memory"):
            instruments.settle()
    return 0


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


def find_captures(names: Iterable[str | Path], device: str = "cuda") -> Captures:
    """Every layer of the bundled model, of the files and of the folders that are named.

    Layer files of `capture_qkv` are called alike in every folder, so the folder's name is theirs.

    Raises:
        ValueError: two of them have one name.
    """
    found: Captures = {}
    for name in names:
        more = bundled_captures(BUNDLED_LENGTHS, device) if name == BUNDLED else _read(Path(name))
        if twice := found.keys() & more.keys():
            raise ValueError(f"activations must have different names, got {min(twice)[0]} twice")
        found |= more
    return found


def _read(path: Path) -> Captures:
    path = path.resolve()
    name = path.parent.name if path.name.startswith("layer_") else path.stem
    return {(name, layer, x.q.shape[2]): x for layer, x in load_capture(path).items()}


def bundled_captures(lengths: list[int], device: str = "cuda") -> Captures:
    """What every layer of the bundled model is given when it reads a made-up document, in bf16.

    It reads the longest prompt alone: no token sees a later one, so the shorter prompts are its
    beginnings.
    """
    model, tokenizer = load_bundled(device=device)
    text = make_document(6 * max(lengths), seed=7, depths=(0.1, 0.3, 0.55)).text
    tokens = tokenizer(text, return_tensors="pt").input_ids[:, : max(lengths)]
    whole = capture_qkv(model, tokens.to(device), dtype=torch.bfloat16)
    return {(BUNDLED, layer, n): x.first(n) for n in lengths for layer, x in whole.items()}


def case_maker(
    captures: Captures, backend: ModuleType | SimpleNamespace, device: str = "cuda"
) -> Callable[[Cell], Case]:
    """A function that makes the inputs of a cell, in bf16 on the device."""
    config = AnchorConfig()
    shape = {"q_heads": 32, "kv_heads": 8, "head_dim": 128}

    def make_case(cell: Cell) -> Case:
        if cell.source == "planted":
            where = {"dtype": torch.bfloat16, "device": device}
            inputs = planted_stripes(cell.n, **shape, density=cell.density, **where)
            return Case(inputs.q, inputs.k, inputs.v, None, config, backend)
        found = captures[cell.source, cell.layer, cell.n].causal().widened()
        q, k, v = (x.to(device, torch.bfloat16) for x in (found.q, found.k, found.v))
        return Case(q, k, v, found.scaling, config, backend)

    return make_case


def options(parser: argparse.ArgumentParser) -> None:
    """What is measured, and for how long."""
    names = list(make_methods())
    parser.add_argument("--retry", action="store_true", help="failed cells again")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--densities", type=float, nargs="+", help="shares of planted keys")
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--activations", nargs="+", default=[], help="bundled, or captures")
    parser.add_argument("--dense-to", type=int, default=262_144, help="largest N of SDPA")
    parser.add_argument("--flex-to", type=int, default=131_072, help="largest N of FlexAttention")
    parser.add_argument("--cell-s", type=float, default=2.0, help="seconds of repeats per cell")
    parser.add_argument("--budget-s", type=float, default=inf, help="stop cleanly after that")


def measure(options: argparse.Namespace) -> int:
    """Measure what the file lacks.

    Returns:
        0; 1 while the file has no cell at all.

    Raises:
        OtherResults: the file is of another device, of other kernels or libraries, or none of this
            experiment.
    """
    about = cuda_facts() | {"kernels": kernels_version()}
    store = Store(options.out, KEY, {name: about.pop(name) for name in SAME_IN_ALL_RUNS})
    captures = find_captures(options.activations)
    plan = planned(
        options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS),
        options.densities or ([REFERENCE_DENSITY] if options.quick else DENSITIES),
        options.methods,
        captures,
        options.dense_to,
        options.flex_to,
    )
    todo = missing(list(plan), store.rows, options.retry)
    if not todo:
        print(f"{options.out} holds all of it.")
        return 0
    instruments = CudaInstruments(options.cell_s)
    store.run = {**about, "command": options.command, **instruments.rates()}
    make_case = case_maker(captures, kernels())
    left = run(todo, make_case, make_methods(), instruments, store, options.budget_s)
    if left:
        print(
            f"Budget of {options.budget_s:.0f} s used: {left} cells left, the same call goes on."
        )
    return 0 if store.rows else 1
