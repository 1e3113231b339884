"""Outlier rows, an extension beyond the paper: what do they save, and what else would?

    python -m anchor_lab outliers                         writes outliers.json, .md and .png
    python -m anchor_lab outliers --parts paper rows      some variants; the same file goes on
    python -m anchor_lab outliers --lengths 32768
    python -m anchor_lab outliers --time-s 300            begins nothing later; call again to go on
    python -m anchor_lab outliers --table                 .md and .png from outliers.json

SmolLM2-135M-Instruct reads four texts of different kinds (texts.py) densely and with stripes that
are chosen in different ways (variants.py), in float32 and without a tail. What is lost is the loss
of its predictions in the rows beyond the first group, which keeps everything.

paper       the method as published, at several θ: what all others are compared with
rows        outlier rows: how many, at which θ and θ₂, with the test of means and without
chosen      as many rows, chosen otherwise
even        rows at equal distances, which cost nothing to choose, in other numbers
near        the keys right before a group kept by all of its rows
bound       every row tested by itself: what no choice of rows can pass
means       two means of a block in place of one
budget      a share of the candidates in place of θ
shared      one list for the query heads that share a kv head
calibrated  a threshold for each head, from a text of another kind
answers     facts hidden in 8064 tokens and asked for, by the tasks of the experiment `answers`;
            no tail, which would hide what the choice does

8192 tokens, and 32 768 by YaRN for fewer variants; that is four times what the model was trained
for, so compare those with each other.

Expected on an H200, not measured: 8192 tokens two minutes, 32 768 four, answers two or three.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import mean

import torch

from anchor_lab.experiments.answers.ask import answers
from anchor_lab.experiments.answers.prompts import make_prompt
from anchor_lab.experiments.environment import cuda_facts, environment, sources_version
from anchor_lab.experiments.experiment import call_each
from anchor_lab.experiments.outliers import reading, variants
from anchor_lab.experiments.outliers.texts import CALIBRATION, KINDS, own_text, texts_of, tokens_of
from anchor_lab.experiments.outliers.variants import (
    CALIBRATED,
    CALIBRATIONS,
    FIXED,
    GRID,
    TARGETS,
    Variant,
)
from anchor_lab.experiments.smollm2.measure import weights_hash
from anchor_lab.experiments.store import Store
from anchor_lab.methods.outliers import Extension
from anchor_models import Captured, capture_qkv
from anchor_models.models import load_pretrained
from anchor_models.smollm2 import NAME, stretch
from anchor_ref import AnchorConfig
from anchor_ref.regions import causal_pairs

KEY = ("part", "length", "text", "variant")
DENSE, ANSWERS, THETAS = "dense", "answers", "thetas"
PARTS = (*FIXED, CALIBRATED, ANSWERS)
LENGTHS, QUICK_LENGTHS = (8192, 32_768), (2304,)
SHORT = 8192  # up to here every variant is read, beyond only those for long prompts
RUNS = 64  # of tokens, whose mean losses are kept: what the intervals are drawn from
ASKED, QUICK_ASKED = 8064, 2304  # tokens of a prompt that asks; leaves room for an answer
TASKS = ("single", "multi-key", "words")
PROMPTS, NEW_TOKENS, BATCH = 20, 24, 10
QUICK_PROMPTS, QUICK_NEW_TOKENS = 1, 2
ANSWERING = (  # the variants that are asked
    "paper, θ = 12",
    "paper, θ = 9",
    "R = 2, 7/5",
    "R = 4, 5/5",
    "R = 4, 7/7",
    "R = 8, 7/7",
    "R = 8, 5/5, evenly spaced",
    "near 256, θ = 9",
    "near 256, R = 8, 5/5, evenly spaced",
    "all rows, θ₂ = 3",
)

PACKAGES = Path(__file__).parents[3]
# What decides the numbers; texts and weights have hashes of their own.
MEASURING = (
    *("anchor_ref/*.py", "anchor_lab/methods/outliers.py"),
    *(f"anchor_lab/experiments/outliers/{name}.py" for name in ("measure", "reading", "variants")),
)


def options(parser: argparse.ArgumentParser) -> None:
    """--model, --text, --parts, --lengths, --time-s"""
    add = parser.add_argument
    add("--model", default=NAME, help=f"another causal model; default {NAME}")
    add("--text", type=own_text, help="a UTF-8 file to read in place of the four texts")
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--lengths", nargs="+", type=int, help=f"default {' '.join(map(str, LENGTHS))}")
    add("--time-s", type=float, default=float("inf"), help="begin nothing later")


def measure(chosen: argparse.Namespace) -> int:
    """Measure what is missing; 1 when the time was over before all was there."""
    quick, device = chosen.quick, chosen.device
    lengths = chosen.lengths or (QUICK_LENGTHS if quick else LENGTHS)
    size = AnchorConfig().group_size
    if min(lengths) < size + 2:  # one prediction beyond the first group
        print(f"--lengths must be at least {size + 2}, got {min(lengths)}", file=sys.stderr)
        return 2
    model, tokenizer = load_pretrained(chosen.model, torch.float32, device)
    kinds = KINDS[:1] if quick else KINDS
    found = {n: texts_of(kinds, tokenizer, n, chosen.text) for n in lengths}
    kinds = list(found[lengths[0]])
    texts = {
        (n, name): torch.tensor([ids], device=device)
        for n, by_name in found.items()
        for name, ids in (*by_name.items(), (CALIBRATION, tokens_of(CALIBRATION, tokenizer, n)))
    }
    settings = {
        "model": chosen.model,
        "weights": weights_hash(model),
        "dtype": "float32",
        "runs": RUNS,
        "code": sources_version(PACKAGES, MEASURING),
        **environment(device, ("torch", "transformers")),
        **(cuda_facts() if torch.device(device).type == "cuda" else {}),
    }
    run = {
        "date": settings.pop("date"),
        "command": chosen.command,
        "texts": {f"{kind}, {n}": hash_of(tokens) for (n, kind), tokens in texts.items()},
    }
    store, until = Store(chosen.out, KEY, settings, run), time.monotonic() + chosen.time_s
    jobs = [
        job
        for n in lengths
        for job in loss_jobs(store, model, texts, n, kinds, chosen.parts, quick)
    ]
    if ANSWERS in chosen.parts:
        jobs += answer_jobs(store, model, tokenizer, quick)
    return call_each(jobs, until)


def hash_of(tokens: torch.Tensor) -> str:
    """The first digits of a SHA-256 of a text's tokens."""
    return hashlib.sha256(" ".join(map(str, tokens[0].tolist())).encode()).hexdigest()[:12]


def loss_jobs(
    store: Store,
    model,
    texts: dict[tuple[int, str], torch.Tensor],
    n: int,
    kinds: Sequence[str],
    parts: Sequence[str],
    quick: bool,
) -> Iterator[Callable[[], None]]:
    """What is left to be read at one length: a job for each text and variant, the dense first."""

    def job(part: str, kind: str, name: str, made: Callable[[], Variant | None]):
        def read() -> None:
            with stretch(model, n):
                found = read_text(model, texts[n, kind], made())
            store.add([{"part": part, "length": n, "text": kind, "variant": name, **found}])

        return [] if store.holds(part=part, length=n, text=kind, variant=name) else [read]

    for kind in kinds:
        yield from job(DENSE, kind, DENSE, lambda: None)
    for part in (part for part in FIXED if part in parts):
        for one in FIXED[part]()[: 1 if quick else None]:
            for kind in kinds if n <= SHORT or one.long else ():
                yield from job(part, kind, one.name, lambda one=one: one)
    if CALIBRATED in parts:
        choices = list(CALIBRATIONS)
        for choice, target in product(choices[1:2] if quick else choices, TARGETS):
            make = _calibrated(store, model, texts[n, CALIBRATION], n, choice, target)
            for kind in kinds:
                yield from job(CALIBRATED, kind, variants.calibrated_name(choice, target), make)


def read_text(model, tokens: torch.Tensor, variant: Variant | None) -> dict:
    """Losses, density, recall and cost of one text read in one way; densely for None.

    Returns:
        "losses": mean loss of each of `RUNS` runs of tokens, nats, or of each token where they are
        fewer, over the predictions of the rows beyond the first group, which alone can change;
        "density", "recall" of those rows, and "cost" of choosing, means over layers and heads.
    """
    n = tokens.shape[1]
    with reading.reading(model, None if variant is None else variant.at) as kept:
        losses = reading.token_losses(model, tokens)
    beyond = losses[AnchorConfig().group_size :].double()
    runs = beyond.tensor_split(min(RUNS, len(beyond)))
    scored = 0.0 if variant is None else variant.at(0).scored_pairs(n)
    return {
        "losses": [round(part.mean().item(), 5) for part in runs],
        "density": round(mean(kept.density), 5),
        "recall": round(mean(kept.recall), 5),
        "cost": round(scored / causal_pairs(n), 5),
    }


def _calibrated(store, model, tokens, n, choice, target) -> Callable[[], Variant]:
    """Makes a variant with the thresholds of the store, found now where it has none."""
    key = {
        "part": THETAS,
        "length": n,
        "text": CALIBRATION,
        "variant": variants.calibrated_name(choice, target),
    }

    def make() -> Variant:
        if not store.holds(**key):
            with stretch(model, n):
                captured = capture_qkv(model, tokens)
            device = model.device
            found = [
                calibrate(x.to(device), CALIBRATIONS[choice], target) for x in captured.values()
            ]
            store.add([{**key, "thetas": found}])
        (row,) = (row for row in store.rows if store.key_of(row) == tuple(key.values()))
        return variants.calibrated(choice, target, row["thetas"])

    return make


def calibrate(
    x: Captured, make: Callable[[tuple[float, ...]], Extension], target: float
) -> list[float]:
    """The least threshold of `GRID` with which each head reaches a recall beyond, or the last."""
    heads, size = x.q.shape[1], AnchorConfig().group_size
    low, high = torch.zeros(heads, dtype=torch.long), torch.full((heads,), len(GRID) - 1)
    grid = torch.tensor(GRID)
    while bool((low < high).any()):
        middle = (low + high) // 2
        method = make(tuple(grid[middle].tolist()))
        most = reading.SCORES[x.q.device.type]
        kept = reading.choose(x.q, x.k, method, x.scaling, most)
        _, recall = reading.attend(x.q, x.k, x.v, kept, method.config, x.scaling, most)
        enough = recall[0, :, size:].mean(-1).cpu() >= target
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, torch.minimum(middle + 1, high))
    return grid[low].tolist()


def answer_jobs(store: Store, model, tokenizer, quick: bool) -> Iterator[Callable[[], None]]:
    """What is left to be asked: a job for each task and way, the dense first."""
    known = {one.name: one for make in FIXED.values() for one in make()}
    n = QUICK_ASKED if quick else ASKED
    count, new = (QUICK_PROMPTS, QUICK_NEW_TOKENS) if quick else (PROMPTS, NEW_TOKENS)
    ways = {DENSE: None} | {name: known[name] for name in ANSWERING[: 1 if quick else None]}
    for (name, way), task in product(ways.items(), TASKS[: 1 if quick else None]):
        key = {"part": ANSWERS, "length": n, "text": task, "variant": name}

        def ask(key=key, way=way, task=task) -> None:
            prompts = [make_prompt(tokenizer, task, n, seed) for seed in range(count)]
            batch = BATCH if model.device.type == "cuda" else 1
            with reading.reading(model, None if way is None else way.at) as kept:
                words = answers(model, tokenizer, prompts, batch=batch, new_tokens=new)
            found = [int(one.found(said)) for one, said in zip(prompts, words, strict=True)]
            density = round(mean(kept.density), 5)
            store.add([{**key, "found": found, "density": density, "written": words[0]}])

        if not store.holds(**key):
            yield ask
