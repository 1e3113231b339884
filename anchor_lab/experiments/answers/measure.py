"""Which answers are found: by task, by where the question stands, by how the prompt is read?

    python -m anchor_lab answers                    writes answers.json and answers.md
    python -m anchor_lab answers --time-s 450       begins nothing later; the same call goes on
    python -m anchor_lab answers --parts ours       dense attention, AnchorAttention
    python -m anchor_lab answers --parts rivals --lengths 4096 --methods FlexPrefill
    python -m anchor_lab answers --lengths 32640    a length that is not asked by default
    python -m anchor_lab answers --table            .md from answers.json

SmolLM2-135M-Instruct reads made-up prose with a fact in it (tasks and placements: prompts.py) and
goes on with an answer that has begun, greedily. A cell is a length, a task and a placement; in
each the same prompts are read in different ways:

ours      dense attention; AnchorAttention at θ = 12 with tails of 0, 128, 512 and 1024 rows; and
          AnchorAttention without a tail on the document alone, the rest by a second, dense call
rivals    every other method of the laboratory that somebody published, as published and with the
          tail of 512 rows that models have here; TriangleMix, which differs by layer, among them
corrected StreamingLLM with the delta correction, as published, and AnchorAttention with the mean
          and with the delta correction, without a tail

Dense attention comes first: a task that it answers in less than half of the cases says nothing
about any other, and no other is run. A prompt is one group or less up to 2048 tokens, and dense
whatever is asked for; at 2560 a tail of 512 is all that lies beyond the group. 16 384 tokens are
read by YaRN, twice as many as the model was trained for; so is every other length beyond 8192, of
which 32 640 leave room for an answer in 32 768 positions.

Expected on an H200, from the times of layers and prefills in results/, not measured as a whole:
ours 15 to 25 minutes; rivals, which run with masks, about ten minutes each over all lengths, six
of them at 16 384 tokens, and so do corrected ways. Dense attention at 32 640 tokens: 5 minutes, of
which prefills, eight prompts at once, take 100 s. Every cell and way is kept as soon as it is
there.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product

import torch

from anchor_lab.experiments.answers.ask import DENSE, NEW_TOKENS, Way, answers
from anchor_lab.experiments.answers.counts import ENOUGH
from anchor_lab.experiments.answers.prompts import PLACEMENTS, TASKS, make_prompt
from anchor_lab.experiments.environment import cuda_facts, environment, kernels_version
from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.smollm2.measure import weights_hash
from anchor_lab.experiments.store import Store
from anchor_lab.methods import METHODS, TriangleMix
from anchor_lab.methods.corrections import DeltaCorrection, MeanCorrection
from anchor_models.backend import TAIL
from anchor_models.models import load_pretrained
from anchor_models.smollm2 import NAME, stretch
from anchor_ref import AnchorConfig

KEY = ("length", "task", "placement", "way")
LENGTHS = (2560, 4096, 8064, 16_384)  # 8064 leaves room for an answer in 8192 positions
PROMPTS = 50
QUICK_LENGTHS, QUICK_PROMPTS = (2560,), 2
QUICK_TASKS, QUICK_NEW_TOKENS = ("single", "variable"), 8
TAILS = (0, 128, TAIL, 1024)
RIVALS = (
    "StreamingLLM",
    "VerticalSlash",
    "FlexPrefill",
    "XAttention",
    "SpargeAttention",
    "FlashPrefill",
    *("FlashPrefillV2", "SkipSoftmax", "SALE"),
    "PBSAttention",
    "MoBA",
    "BFLA",
    "TriangleMix",
)
SECOND_CALL = "second dense call"
GPU_TOKENS = 2**18  # read at once
MEAN, DELTA = MeanCorrection(), DeltaCorrection()
PARTS = ("ours", "rivals", "corrected")


def ways_of(part: str, methods: tuple[str, ...] = RIVALS) -> dict[str, Way]:
    """The ways of a part, by what the page calls them; dense attention is in each."""
    if part == "ours":
        theta = AnchorConfig().theta
        return {
            "dense": DENSE,
            **{f"tail {tail}": Way(theta, tail) for tail in TAILS},
            SECOND_CALL: Way(theta, second_call=True),
        }
    if part == "corrected":
        ours = METHODS["AnchorAttention"]()
        return {
            "dense": DENSE,
            "StreamingLLM, delta": Way(method=METHODS["StreamingLLM"](), correction=DELTA),
            "AnchorAttention, delta": Way(method=ours, correction=DELTA),
            "AnchorAttention, mean": Way(method=ours, correction=MEAN),
        }
    made = {name: (METHODS | {"TriangleMix": TriangleMix})[name]() for name in methods}
    return {
        "dense": DENSE,
        **{name: Way(method=method) for name, method in made.items()},
        **{f"{name}, tail {TAIL}": Way(method=x, tail=TAIL) for name, x in made.items()},
    }


def options(parser: argparse.ArgumentParser) -> None:
    """--model, --parts, --lengths, --tasks, --placements, --methods, --time-s"""
    add = parser.add_argument
    add("--model", default=NAME, help=f"another causal model; default {NAME}")
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--lengths", nargs="+", type=int, help=f"default {' '.join(map(str, LENGTHS))}")
    add("--tasks", nargs="+", choices=tuple(TASKS), help="default all")
    add("--placements", nargs="+", choices=PLACEMENTS, default=PLACEMENTS, help="default all")
    add("--methods", nargs="+", choices=RIVALS, default=RIVALS, help="of the rivals; default all")
    add("--time-s", type=float, default=float("inf"), help="begin nothing later")


def measure(chosen: argparse.Namespace) -> int:
    """Ask what was not asked; 1 when the time was over before all was there."""
    quick, cuda = chosen.quick, torch.device(chosen.device).type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    model, tokenizer = load_pretrained(chosen.model, dtype, chosen.device)
    new_tokens, count = (QUICK_NEW_TOKENS, QUICK_PROMPTS) if quick else (NEW_TOKENS, PROMPTS)
    settings = {
        "model": chosen.model,
        "weights": weights_hash(model),
        "dtype": str(dtype).removeprefix("torch."),
        "prompts": count,
        "new_tokens": new_tokens,
        **environment(chosen.device, ("torch", "transformers")),
        **(cuda_facts() if cuda else {}),
    }
    run = {"date": settings.pop("date"), "command": chosen.command}
    if cuda:  # every version of them passes the same tests, and rivals are read without any
        run["kernels"] = kernels_version()
    store = Store(chosen.out, KEY, settings, run)
    lengths = chosen.lengths or (QUICK_LENGTHS if quick else LENGTHS)
    tasks = chosen.tasks or (QUICK_TASKS if quick else TASKS)
    cells = list(product(lengths, tasks, chosen.placements))
    ways = {}
    for part in chosen.parts:
        ways |= ways_of(part, tuple(chosen.methods))

    def ask(cell: tuple[int, str, str], way: Way) -> dict:
        length, task, placement = cell
        prompts = [make_prompt(tokenizer, task, length, at, placement) for at in range(count)]
        batch = max(1, GPU_TOKENS // length) if cuda else 1
        started = time.perf_counter()
        with stretch(model, length + new_tokens):
            words = answers(model, tokenizer, prompts, way, batch=batch, new_tokens=new_tokens)
        return {
            "found": [int(one.found(said)) for one, said in zip(prompts, words, strict=True)],
            "written": words[0],
            "seconds": round(time.perf_counter() - started, 1),
        }

    if fill(store, cells, ways, ask, chosen.time_s):
        return 0
    print("not all cells are there: call again to go on", file=sys.stderr)
    return 1


def fill(
    store: Store,
    cells: list[tuple[int, str, str]],
    ways: dict[str, Way],
    ask: Callable[[tuple[int, str, str], Way], dict],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Ask what is missing; whether all is there at the end.

    Args:
        store: gets a row for each cell and way.
        cells: (length, task, placement).
        ways: by name; "dense" is asked first in each cell.
        ask: "found", for each prompt 1 or 0, and what else is to be kept.
        seconds: nothing is begun later.
        clock: in seconds.
    """
    started = clock()
    for cell, name in progress(list(_missing(store, cells, ways))):
        if name != "dense" and not answerable(store.rows, cell):
            continue
        if clock() - started > seconds:
            return False
        row = dict(zip(KEY, (*cell, name), strict=True))
        store.add([{**row, **ask(cell, ways[name])}])
    return True


def _missing(store: Store, cells, ways) -> Iterator[tuple[tuple[int, str, str], str]]:
    for cell in cells:
        for name in sorted(ways, key=lambda name: name != "dense"):
            if not store.holds(**dict(zip(KEY, (*cell, name), strict=True))):
                yield cell, name


def answerable(rows: list[dict], cell: tuple[int, str, str]) -> bool:
    """Whether dense attention was asked in a cell, and found at least half."""
    for row in rows:
        if (row["length"], row["task"], row["placement"], row["way"]) == (*cell, "dense"):
            return sum(row["found"]) >= ENOUGH * len(row["found"])
    return False
