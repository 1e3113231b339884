"""Does the bundled model still answer when a method chooses its keys?

    python -m anchor_lab retrieval                 writes retrieval.json, .md and .png
    python -m anchor_lab retrieval --time-s 500    stops between two cells; the same call goes on
    python -m anchor_lab retrieval --table         .md and .png from retrieval.json

A cell is a length, a density, a row and a task (see prompts.py). A row is a method of
`anchor_lab.methods`, set to keep half, or three quarters, of the causal pairs on a prompt that is
not among those asked: no less, because what some methods keep in any case is over a quarter.
Blocks are the published 128 tokens; groups are the published 2048 from 8192 tokens on and a
quarter of shorter prompts, which would be one dense group otherwise.

Four rows are not methods of their own. AnchorAttention as published, θ = 12 and groups of 2048,
has the density that it has; up to 2048 tokens that is dense attention, and not run. θ = −∞ leaves
its initial region and window, without which a choice could lose nothing. And in AnchorAttention
with means of 32 and of 8 queries pooling alone differs; regions and groups stay.

A task that dense attention answers in less than half of the cases says nothing about a method:
there only dense attention is run.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch

from anchor_lab.experiments.compare.measure import GROUP, group_for
from anchor_lab.experiments.environment import environment
from anchor_lab.experiments.retrieval.matching import match_density
from anchor_lab.experiments.retrieval.prompts import TASKS, Prompt, make_retrieval
from anchor_lab.experiments.retrieval.score import retrieval_accuracy
from anchor_lab.experiments.store import Store
from anchor_lab.methods import METHODS, AnchorAttention, Method
from anchor_models import Captured, bundled_model_path, capture_qkv, load_bundled
from anchor_ref import AnchorConfig

HALF, MORE = 0.5, 0.75
SEED, MATCH_SEED = 0, 10_000
BLOCK = 128
GPU_TOKENS, GPU_PAIRS = 2**18, 2**28  # in one prefill; dense attention may hold all pairs


class Cell(NamedTuple):
    """What a row of the results is about; a density of None is the row's own."""

    length: int
    density: float | None
    row: str
    task: str


class Part(NamedTuple):
    """What is asked at one length; `prompts` are those of a cell."""

    prompts: int
    rows: tuple[str, ...]
    tasks: tuple[str, ...]
    densities: tuple[float, ...]


Plan = dict[int, Part]  # by length

DENSE, PUBLISHED, REGIONS = "Dense", "AnchorAttention, θ = 12", "AnchorAttention, θ = −∞"
UNMATCHED = (DENSE, PUBLISHED, REGIONS)
# Came to the laboratory after these prompts had been asked.
LATER = ("PBSAttention", "MoBA", "BFLA", "Triangle", "HeadAveragedTopK")
LATER = (*LATER, "FlashPrefillV2", "SkipSoftmax", "SALE", "SALEFloat")
POOLED = {f"AnchorAttention, means of {size}": size for size in (32, 8)}
ROWS = (*(name for name in METHODS if name not in LATER), REGIONS, PUBLISHED, *POOLED)
UNPOOLED = tuple(row for row in ROWS if row not in POOLED)
PEERS = ("StreamingLLM", "VerticalSlash", "FlexPrefill", "XAttention", "SpargeAttention")
FEW = (*UNMATCHED, *PEERS, "FlashPrefill", "AnchorAttention", "ConstantThreshold")
FEW = (*FEW, "DifferenceOracle", "BlockTopCdf", "StripeOracle")
ASKED = ("multi-key", "multi-query", "variable", "key-value")

# Some twenty minutes of an H100. For means of few queries the reference takes as many steps as
# there are means: they are asked up to 2048 tokens.
PLAN: Plan = {
    1024: Part(50, ROWS, tuple(TASKS), (HALF,)),
    2048: Part(50, ROWS, tuple(TASKS), (HALF, MORE)),
    4096: Part(32, UNPOOLED, (*ASKED, "multi-value", "variables"), (HALF, MORE)),
    8192: Part(20, UNPOOLED, ASKED[1:], (HALF,)),
    16384: Part(16, FEW, ("multi-query", "variable"), (HALF,)),
}
# The page tells why AnchorAttention loses answers with these.
EXPLAINED = ("PooledMaximum", "StripeOracle", "DifferenceOracle", "ConstantThreshold")
QUICK: Plan = {
    512: Part(2, (DENSE, REGIONS, "AnchorAttention", *POOLED, *EXPLAINED), ("single",), (HALF,))
}


def options(parser: argparse.ArgumentParser) -> None:
    """--time-s"""
    parser.add_argument("--time-s", type=float, default=float("inf"), help="begin no cell later")


def run(chosen: argparse.Namespace) -> int:
    """Measure what is missing; 1 when the time was over before all was there."""
    plan = QUICK if chosen.quick else PLAN
    settings, own = surroundings(chosen.device)
    prompts = {length: part.prompts for length, part in plan.items()}
    settings = {"seeds": [SEED, MATCH_SEED], "prompts": prompts, **settings}
    store = Store(chosen.out, Cell._fields, settings, own)
    if fill(store, plan, Examiner(plan, chosen.device).measure, chosen.time_s):
        return 0
    print("not all cells are measured: call again to go on", file=sys.stderr)
    return 1


def surroundings(device: str) -> tuple[dict, dict]:
    """(settings that a later run must share, what is this run's alone).

    The settings are the bundled model's weights and what runs it.
    """
    about = environment(device, ("torch", "transformers"))
    weights = (bundled_model_path() / "model.safetensors").read_bytes()
    date = about.pop("date")
    return {"model_sha256": hashlib.sha256(weights).hexdigest(), **about}, {"date": date}


def cells(plan: Plan) -> Iterator[Cell]:
    """Every cell in the order in which they are run: of each length first what needs no match."""
    for length, (_, rows, tasks, densities) in plan.items():
        for row in rows:
            if row in UNMATCHED and (row != PUBLISHED or length > GROUP):
                yield from (Cell(length, None, row, task) for task in tasks)
        for density, row in product(densities, rows):
            if row not in UNMATCHED:
                yield from (Cell(length, density, row, task) for task in tasks)


def fill(
    store: Store,
    plan: Plan,
    measure: Callable[[Cell], dict],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Measure the cells that are missing; whether all are there at the end.

    Args:
        store: gets a row for each.
        plan: which cells.
        measure: what is to be found in a cell.
        seconds: no cell is begun later than this.
        clock: in seconds.
    """
    started = clock()
    for cell in cells(plan):
        if store.holds(**cell._asdict()):
            continue
        if cell.row != DENSE and cell.task not in answerable_tasks(store.rows, cell.length):
            continue
        if clock() - started > seconds:
            return False
        store.add([{**cell._asdict(), **measure(cell)}])
    return True


def answerable_tasks(rows: Sequence[dict], length: int) -> list[str]:
    """The tasks that dense attention answers in at least half of the cases.

    Args:
        rows: of the results.
        length: N.
    """
    return [
        row["task"]
        for row in rows
        if (row["row"], row["length"]) == (DENSE, length) and 2 * row["right"] >= row["asked"]
    ]


def sizes_at(length: int, block: int = BLOCK) -> dict[str, int]:
    """Fields of an `AnchorConfig`: same regions and groups for every block."""
    step = group_for(length, block) // block
    return {"block_size": block, "step": step, "init_blocks": BLOCK // block}


def sweep_at(row: str, length: int) -> list[Method]:
    """The sweep of a row's method with this experiment's blocks and groups."""
    sizes = sizes_at(length, POOLED.get(row, BLOCK))
    return [
        replace(each, config=replace(each.config, **sizes)) if hasattr(each, "config") else each
        for each in METHODS[row.split(",")[0]].sweep()
    ]


class Examiner:
    """The model, its prompts, and what was matched last."""

    def __init__(self, plan: Plan, device: str):
        self.plan, self.device = plan, torch.device(device)
        self.model, self.tokenizer = load_bundled(device=device)
        self.prompts = lru_cache(maxsize=len(TASKS))(self._prompts)
        self.layers = lru_cache(maxsize=2)(self._layers)
        self.matched = lru_cache(maxsize=2)(self._matched)

    def measure(self, cell: Cell) -> dict:
        """The answers of a cell, the density that was kept, configuration and seconds."""
        started = time.perf_counter()
        method = self.method(cell)
        batch = self.batch(cell.length, method)
        prompts = self.prompts(cell.length, cell.task)
        found = asdict(retrieval_accuracy(self.model, prompts, method, batch=batch))
        kept = found.pop("density")
        taken = round(time.perf_counter() - started, 1)
        print(f"{tuple(cell)}: {found['right']} of {found['asked']}, {taken} s", flush=True)
        return {**found, "kept": kept, "config": repr(method), "seconds": taken}

    def method(self, cell: Cell) -> Method | None:
        """What chooses the keys of a cell; None for dense attention."""
        if cell.row == DENSE:
            return None
        if cell.row == PUBLISHED:
            return AnchorAttention()
        if cell.row == REGIONS:
            return AnchorAttention(AnchorConfig(**sizes_at(cell.length), theta=-torch.inf))
        # Lists are another text than prose with facts, and have another density.
        text = cell.task if cell.task == "key-value" else "multi-query"
        return self.matched(cell.length, cell.density, cell.row, text)

    def batch(self, length: int, method: Method | None) -> int:
        """Prompts that fit in one prefill; a processor has nothing to gain from several."""
        if self.device.type == "cpu":
            return 1
        most = GPU_TOKENS // length if method else GPU_PAIRS // length**2
        return max(1, most)

    def _prompts(self, length: int, task: str) -> list[Prompt]:
        seeds = range(SEED, SEED + self.plan[length].prompts)
        return [make_retrieval(self.tokenizer, task, length, seed) for seed in seeds]

    def _matched(self, length: int, density: float, row: str, task: str) -> Method:
        return match_density(sweep_at(row, length), self.layers(length, task), density)[0]

    def _layers(self, length: int, task: str) -> list[Captured]:
        tokens = make_retrieval(self.tokenizer, task, length, MATCH_SEED).tokens[None]
        found = capture_qkv(self.model, tokens.to(self.device), dtype=torch.float32)
        return [x.to(self.device) for x in found.values()]
