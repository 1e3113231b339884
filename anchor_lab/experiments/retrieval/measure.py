"""Does the bundled model still answer when a method chooses its keys?

    python -m anchor_lab retrieval                 writes retrieval.json, .md and .png
    python -m anchor_lab retrieval --time-s 500    stops between two cells; the same call goes on
    python -m anchor_lab retrieval --table         .md and .png from retrieval.json

A cell is a row, a density, a task of `anchor_lab.experiments.retrieval.prompts` and a length. A row is a method of
`anchor_lab.methods`, set to keep half, or three quarters, of the causal pairs on a prompt that
is not among those asked: no less, because what some methods keep unasked is over a quarter. Blocks
are the published 128 tokens; groups are the published 2048 from 8192 tokens on and a quarter of
shorter prompts, which would be one dense group otherwise.

Four rows are no methods of their own. AnchorAttention as published, θ = 12 and groups of 2048, has
the density that it has; up to 2048 tokens that is dense attention, and not run. θ = −∞ leaves its
initial region and window, without which nothing can be lost by a choice. And in AnchorAttention
with means of 32 and of 8 queries pooling alone differs; regions and groups stay.

A task that dense attention answers in less than half of the cases says nothing about a method:
there only dense attention is run.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import torch

from anchor_lab.experiments import command
from anchor_lab.experiments.retrieval.matching import match_density
from anchor_lab.experiments.retrieval.page import draw, table
from anchor_lab.experiments.retrieval.prompts import TASKS, Prompt, make_retrieval
from anchor_lab.experiments.retrieval.score import retrieval_accuracy
from anchor_lab.experiments.store import write_whole
from anchor_lab.methods import METHODS, AnchorAttention, Method
from anchor_models import Captured, bundled_model_path, capture_qkv, load_bundled
from anchor_models.models import device_name
from anchor_ref import AnchorConfig

HERE = Path("results") / "retrieval"
HALF, MORE = 0.5, 0.75
SEED, MATCH_SEED = 0, 10_000
BLOCK, GROUP = 128, 2048
GPU_TOKENS, GPU_PAIRS = 2**18, 2**28  # in one prefill; dense attention may hold all pairs

Cell = tuple[int, float | None, str, str]  # length, density, row, task

DENSE, PUBLISHED, REGIONS = "Dense", "AnchorAttention, θ = 12", "AnchorAttention, θ = −∞"
UNMATCHED = (DENSE, PUBLISHED, REGIONS)
POOLED = {f"AnchorAttention, means of {size}": size for size in (32, 8)}
PEERS = ("StreamingLLM", "VerticalSlash", "FlexPrefill", "XAttention", "SpargeAttention")
PEERS = (*PEERS, "FlashPrefill")
OWN = (REGIONS, PUBLISHED, "AnchorAttention", *POOLED, "AnchorBlocks")
VARIANTS = ("PartialAnchor", "ConstantThreshold", "PooledMaximum", "PooledTopK", "PooledTopCdf")
ORACLES = ("TokenTopK", "TokenTopCdf", "DifferenceOracle", "BlockTopK", "BlockTopCdf")
ORACLES = (*ORACLES, "StripeOracle")
ROWS = (DENSE, *PEERS, *OWN, *VARIANTS, *ORACLES)

UNPOOLED = tuple(row for row in ROWS if row not in POOLED)
ASKED = ("multi-key", "multi-query", "variable", "key-value")
FEW = (*UNMATCHED, *PEERS, "AnchorAttention", "ConstantThreshold")
FEW = (*FEW, "DifferenceOracle", "BlockTopCdf", "StripeOracle")

# length: (prompts a cell, rows, tasks, densities); some twenty minutes of an H100. For means of
# few queries the reference takes as many steps as there are means: they are asked up to 2048.
PLAN = {
    1024: (50, ROWS, tuple(TASKS), (HALF,)),
    2048: (50, ROWS, tuple(TASKS), (HALF, MORE)),
    4096: (32, UNPOOLED, (*ASKED, "multi-value", "variables"), (HALF, MORE)),
    8192: (20, UNPOOLED, ASKED[1:], (HALF,)),
    16384: (16, FEW, ("multi-query", "variable"), (HALF,)),
}


def cells() -> Iterator[Cell]:
    """Every cell in the order in which they are run: of each length first what needs no match."""
    for length, (_, rows, tasks, densities) in PLAN.items():
        for row in rows:
            if row in UNMATCHED and (row != PUBLISHED or length > GROUP):
                yield from ((length, None, row, task) for task in tasks)
        for density, row in product(densities, rows):
            if row not in UNMATCHED:
                yield from ((length, density, row, task) for task in tasks)


def name(length: int, density: float | None, row: str, task: str) -> str:
    """The cell's key in the results."""
    return f"{length} | {row} | {density or 'own'} | {task}"


def fill(
    results: dict,
    measure: Callable[[Cell], dict],
    save: Callable[[dict], None],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Measure the cells that are missing; whether all are there at the end.

    Args:
        results: gets one entry in "cells" after another.
        measure: what is to be found in a cell.
        save: called after every cell.
        seconds: no cell is begun later than this.
        clock: in seconds.
    """
    started, found = clock(), results["cells"]
    for cell in cells():
        length, _, row, task = cell
        if name(*cell) in found:
            continue
        if row != DENSE and not answerable(found, length, task):
            continue
        if clock() - started > seconds:
            return False
        found[name(*cell)] = measure(cell)
        save(results)
    return True


def answerable(found: dict[str, dict], length: int, task: str) -> bool:
    """Whether dense attention answers at least half."""
    dense = found[name(length, None, DENSE, task)]
    return 2 * dense["right"] >= dense["asked"]


def sizes_at(length: int, block: int = BLOCK) -> dict[str, int]:
    """Fields of an `AnchorConfig`: same regions and groups for every block."""
    step, init = min(GROUP, length // 4) // block, BLOCK // block
    return {"block_size": block, "step": step, "init_blocks": init}


def sweep_at(row: str, length: int) -> list[Method]:
    """The sweep of a row's method with the bench's blocks and groups."""
    sizes = sizes_at(length, POOLED.get(row, BLOCK))
    return [
        replace(each, config=replace(each.config, **sizes)) if hasattr(each, "config") else each
        for each in METHODS[row.split(",")[0]].sweep()
    ]


class Bench:
    """The model, its prompts, and what was matched last."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.model, self.tokenizer = load_bundled(device=device)
        self.prompts = lru_cache(maxsize=len(TASKS))(self._prompts)
        self.layers = lru_cache(maxsize=2)(self._layers)
        self.matched = lru_cache(maxsize=2)(self._matched)

    def measure(self, cell: Cell) -> dict:
        """What a cell of the results holds."""
        length, density, row, task = cell
        started = time.perf_counter()
        if row == DENSE:
            chosen = None
        elif row == PUBLISHED:
            chosen = AnchorAttention()
        elif row == REGIONS:
            chosen = AnchorAttention(AnchorConfig(**sizes_at(length), theta=-torch.inf))
        else:
            # Lists are another text than prose with facts, and have another density.
            text = task if task == "key-value" else "multi-query"
            chosen = self.matched(length, density, row, text)
        found = retrieval_accuracy(
            self.model, self.prompts(length, task), chosen, batch=self.batch(length, chosen)
        )
        taken = round(time.perf_counter() - started, 1)
        print(f"{name(*cell)}: {found.right}/{found.asked}, {taken} s", flush=True)
        found = asdict(found)
        kept = {"kept": found.pop("density"), "config": repr(chosen), "seconds": taken}
        return {"length": length, "density": density, "row": row, "task": task, **found, **kept}

    def batch(self, length: int, chosen: Method | None) -> int:
        """Prompts that fit in one prefill; a processor has nothing to gain from several."""
        if self.device.type == "cpu":
            return 1
        most = GPU_TOKENS // length if chosen else GPU_PAIRS // length**2
        return max(1, most)

    def _prompts(self, length: int, task: str) -> list[Prompt]:
        seeds = range(SEED, SEED + PLAN[length][0])
        return [make_retrieval(self.tokenizer, task, length, seed) for seed in seeds]

    def _matched(self, length: int, density: float, row: str, task: str) -> Method:
        return match_density(sweep_at(row, length), self.layers(length, task), density)[0]

    def _layers(self, length: int, task: str) -> list[Captured]:
        tokens = make_retrieval(self.tokenizer, task, length, MATCH_SEED).tokens[None]
        found = capture_qkv(self.model, tokens.to(self.device), dtype=torch.float32)
        return [x.to(self.device) for x in found.values()]


def settings(device: str) -> dict:
    """What a resumed run must share with the one before."""
    return {
        "seeds": [SEED, MATCH_SEED],
        "prompts": {str(length): plan[0] for length, plan in PLAN.items()},
        **environment(device),
    }


def environment(device: str) -> dict:
    """The bundled model's weights, and what runs it."""
    import transformers

    weights = (bundled_model_path() / "model.safetensors").read_bytes()
    return {
        "model_sha256": hashlib.sha256(weights).hexdigest(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "device": device_name(torch.device(device)),
    }


def resume(path: Path, wanted: dict) -> dict:
    """The results to go on with: those of the file, or new ones.

    Raises:
        ValueError: the file was made with other settings.
    """
    if not path.exists():
        return {"date": time.strftime("%Y-%m-%d"), "settings": wanted, "cells": {}}
    results = json.loads(path.read_text())
    for key, value in wanted.items():
        if results["settings"].get(key) != value:
            raise ValueError(
                f"{path.name} was made with {key} {results['settings'].get(key)!r}, this run has "
                f"{value!r}: give another --out, or remove the file"
            )
    return results


def save(results: dict, path: Path) -> None:
    """Write the results as JSON, whole or not at all."""
    write_whole(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = command.parser(__doc__, HERE / "retrieval.json")
    parser.add_argument("--time-s", type=float, default=float("inf"), help="begin no cell later")
    options = parser.parse_args()
    if not options.table:
        results = resume(options.out, settings(options.device))
        bench = Bench(options.device)
        if not fill(results, bench.measure, partial(save, path=options.out), options.time_s):
            print("not all cells are measured: call again to go on", file=sys.stderr)
            return
    results = json.loads(options.out.read_text())
    options.out.with_suffix(".md").write_text(table(results))
    draw(results, options.out.with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    main()
