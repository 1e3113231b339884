"""Does the gain grow with the length of the prompt, and does the model still read?

    python -m anchor_lab lengths                     writes lengths.json, .md and .png
    python -m anchor_lab lengths --parts heads       one part; the same file takes the others
    python -m anchor_lab lengths --time-s 400        begins nothing later; the same call goes on
    python -m anchor_lab lengths --table             .md and .png from lengths.json

SmolLM2-135M-Instruct reads prose, code and a chat full of lists, up to the 8192 tokens that it was
trained for as it is, longer ones by YaRN:

reads      dense loss by eighths of a text read whole, and of the same text read in pieces of 8192
           tokens: a model that stretched positions confuse would read better in pieces
heads      every head of every layer, without a tail: pairs kept, recall of the rows beyond the
           first group, output error, at θ = 6 ... 14 and with no stripe at all
times      prefills with a mark before and after each layer's attention: dense by PyTorch's choice
           and by cuDNN, and AnchorAttention with the tail of models

Recall and pairs are those of all rows. The output error is of 32 blocks of 128 rows, spread over
the prompt and others in every layer: those of them that lie beyond the first group.

Expected on an H200, from counting and not measured. heads: at 65 536 tokens a layer has 2·10¹⁰
scores, 9 heads of N²/2, and for all θ together each passes memory some eight times in float32:
0.4 s; 32 blocks of rows for ten settings take as long again. 30 layers: 24 s; half the length a
third of that, until below 16 384 tokens launches are the bound, 3 s a length. Three texts, of
which prose ends at 32 768: 100 s, and 15 s to capture. reads: 15 s. times: 50 s, of which 20 s to
compile.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from anchor_lab.analysis.curves import theta_curve
from anchor_lab.experiments.environment import (
    cuda_facts,
    environment,
    kernels_version,
    sources_version,
)
from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.lengths.prefills import prefill_jobs
from anchor_lab.experiments.outliers.measure import hash_of
from anchor_lab.experiments.outliers.reading import token_losses
from anchor_lab.experiments.outliers.texts import tokens_of
from anchor_lab.experiments.sampled_rows import evaluate_rows, spread_blocks
from anchor_lab.experiments.smollm2.measure import weights_hash
from anchor_lab.experiments.store import Store
from anchor_lab.methods.stripes import row_anchor, stripe_selection
from anchor_models import Captured, capture_qkv
from anchor_models.models import load_pretrained
from anchor_models.smollm2 import NAME, stretch
from anchor_ref import AnchorConfig
from anchor_ref.measure import density_floor
from anchor_ref.stripes import identify_stripes

KEY = ("part", "length", "text", "layer", "way")
PARTS = ("reads", "heads", "times")
THETAS = (-math.inf, *(float(theta) for theta in range(6, 15)))  # the first: no stripes
BLOCKS = 32  # of 128 rows, of the output error
EIGHTHS = 8

PACKAGES = Path(__file__).parents[3]
# What decides the numbers; texts, weights and kernels have hashes of their own.
MEASURING = (
    *(
        "anchor_ref/*.py",
        "anchor_lab/analysis/curves.py",
        "anchor_lab/experiments/sampled_rows.py",
    ),
    *(f"anchor_lab/experiments/lengths/{name}.py" for name in ("measure", "prefills")),
)


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        texts: the longest prompt of each.
        lengths: of heads and reads; the shortest is longer than a group.
        layers: every how many; 1 for all.
        prefills: lengths of the times.
        rounds: repeats of a prefill.
    """

    texts: dict[str, int]
    lengths: tuple[int, ...]
    layers: int
    prefills: tuple[int, ...]
    rounds: int


FULL = Sizes(
    texts={"prose": 32_768, "code": 65_536, "chat": 65_536},
    lengths=(2560, 4096, 8192, 16_384, 32_768, 65_536),
    layers=1,
    prefills=(4096, 8192, 16_384, 32_768, 65_536),
    rounds=7,
)
QUICK = Sizes({"prose": 2560, "code": 2304}, (2304, 2560), 4, (2304,), 2)


def options(parser: argparse.ArgumentParser) -> None:
    """--model, --parts, --lengths, --time-s"""
    add = parser.add_argument
    add("--model", default=NAME, help=f"another causal model; default {NAME}")
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--lengths", nargs="+", type=int, help="of those measured by default; default all")
    add("--time-s", type=float, default=float("inf"), help="begin nothing later")


def measure(chosen: argparse.Namespace) -> int:
    """Measure what is missing.

    Returns:
        0; 1 when the time was over before all was there; 2 with a line on stderr for a length that
        is not of this experiment.

    Raises:
        OtherResults: the file was made with something else.
    """
    sizes = QUICK if chosen.quick else FULL
    there = sorted({*sizes.lengths, *sizes.prefills})
    lengths = chosen.lengths or there
    if wrong := sorted(set(lengths) - set(there)):
        print(
            f"--lengths must be of {', '.join(map(str, there))}, got {wrong[0]}", file=sys.stderr
        )
        return 2
    device, cuda = chosen.device, torch.device(chosen.device).type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    model, tokenizer = load_pretrained(chosen.model, dtype, device)
    texts = {
        kind: torch.tensor([tokens_of(kind, tokenizer, most)], device=device)
        for kind, most in sizes.texts.items()
    }
    settings = {
        "model": chosen.model,
        "weights": weights_hash(model),
        "texts": {kind: hash_of(tokens) for kind, tokens in texts.items()},
        "dtype": str(dtype).removeprefix("torch."),
        "thetas": [None if math.isinf(theta) else theta for theta in THETAS],
        "code": sources_version(PACKAGES, MEASURING),
        **environment(device, ("torch", "transformers")),
        **({"kernels": kernels_version(), **cuda_facts()} if cuda else {}),
    }
    run = {"date": settings.pop("date"), "command": chosen.command}
    store = Store(chosen.out, KEY, settings, run)
    until = time.monotonic() + chosen.time_s
    some = replace(
        sizes,
        lengths=tuple(n for n in sizes.lengths if n in lengths),
        prefills=tuple(n for n in sizes.prefills if n in lengths),
    )
    jobs = [
        job
        for part in PARTS
        if part in chosen.parts
        for job in JOBS[part](store, model, texts, some)
    ]
    for job in progress(jobs):
        if not job(until):
            print("not all is there: call again to go on", file=sys.stderr)
            return 1
    return 0


Job = Callable[[float], bool]  # given when to stop (`time.monotonic`), whether it came to its end


def texts_read(sizes: Sizes) -> Iterator[tuple[int, str]]:
    """(length, text) of each prompt that reads and heads look at."""
    for n in sizes.lengths:
        for text, most in sizes.texts.items():
            if n <= most:
                yield n, text


# -- reads


def read_jobs(store: Store, model, texts: dict[str, Tensor], sizes: Sizes) -> Iterator[Job]:
    """What is left to be read densely: a job for each length and text."""
    for n, text in texts_read(sizes):

        def job(until: float, n=n, text=text) -> bool:
            if time.monotonic() > until:
                return False
            row = {"part": "reads", "length": n, "text": text}
            store.add([row | reads(model, texts[text][:, :n])])
            return True

        if not store.holds(part="reads", length=n, text=text):
            yield job


def reads(model, tokens: Tensor) -> dict[str, list[float] | None]:
    """Dense loss by eighths of a text, nats a token.

    Returns:
        "whole": of the text read at once; "pieces": of the same tokens, read in pieces as long as
        the model was trained for, each from nothing; None where one piece is the whole. A piece's
        first token, which nothing predicts, counts in neither.
    """
    n, trained = tokens.shape[1], model.config.max_position_embeddings
    with stretch(model, n):
        whole = token_losses(model, tokens)  # [N - 1]: of token 1, 2, ...
    if n <= trained:
        return {"whole": eighths(whole), "pieces": None}
    begun = range(0, n, trained)
    parts = [
        token_losses(model, tokens[:, start : start + trained]) for start in begun if start < n - 1
    ]
    own = torch.ones(n, dtype=torch.bool)
    own[list(begun)] = False
    return {"whole": eighths(whole[own[1:]]), "pieces": eighths(torch.cat(parts))}


def eighths(losses: Tensor) -> list[float]:
    """Mean of each eighth."""
    return [round(part.double().mean().item(), 4) for part in losses.tensor_split(EIGHTHS)]


# -- heads


def head_jobs(store: Store, model, texts: dict[str, Tensor], sizes: Sizes) -> Iterator[Job]:
    """What is left to be looked at: a job for each length and text, all layers of it."""
    layers = range(0, model.config.num_hidden_layers, sizes.layers)
    for n, text in texts_read(sizes):
        key = {"part": "heads", "length": n, "text": text}
        left = [layer for layer in layers if not store.holds(**key, layer=layer)]

        def job(until: float, n=n, text=text, key=key, left=left) -> bool:
            if time.monotonic() > until:
                return False
            with stretch(model, n):
                captured = capture_qkv(model, texts[text][:, :n], left)
            for layer, x in captured.items():
                if time.monotonic() > until:
                    return False
                phase = layer / model.config.num_hidden_layers
                store.add([{**key, "layer": layer, **heads(x.to(model.device), phase=phase)}])
            return True

        if left:
            yield job


def heads(
    x: Captured, config: AnchorConfig | None = None, blocks: int = BLOCKS, phase: float = 0.0
) -> dict:
    """What the heads of a layer keep and lose at each of `THETAS`, in float32, without a tail.

    Args:
        x: of a layer that read one prompt, longer than a group.
        config: sizes; its θ plays no part. None: as published.
        blocks, phase: of 128 rows, of which the output error is; see `spread_blocks`.

    Returns:
        "floor", the density without stripes, and for each θ: "density", "recall", "recall_p10",
        "error", means over heads, and of the heads "density_most", "recall_least", "error_most".
        Recall is the mean over the rows beyond the first group, "recall_p10" their 10th
        percentile.
    """
    config = config or AnchorConfig()
    x = x.causal()
    q, k, v = (tensor.float() for tensor in (x.q, x.k, x.v))
    n, scale = q.shape[2], x.scaling
    curve = theta_curve(q, k, config, THETAS, scale)
    beyond = curve.recall[:, 0, :, config.group_size :]  # [T, Hq, rows]
    recall = beyond.double().mean(-1)
    # quantile takes at most 2^24 numbers at once.
    p10 = torch.stack([rows.quantile(0.1, -1) for rows in beyond])
    anchor = row_anchor(q, k, config, scale)
    selections = []
    for theta in THETAS:
        at = replace(config, theta=theta)
        plan = identify_stripes(q, k, anchor, at, scale)
        selections.append(stripe_selection(plan, at, n, 0.0, 64))
    looked = evaluate_rows(
        q, k, v, selections, scale, spread_blocks(n, blocks, phase), config.group_size
    )
    error = torch.stack([one.output_error[0] for one in looked])
    density = curve.density[:, 0]
    found = {
        "density": density.mean(-1),
        "density_most": density.amax(-1),
        "recall": recall.mean(-1),
        "recall_p10": p10.mean(-1),
        "recall_least": recall.amin(-1),
        "error": error.mean(-1),
        "error_most": error.amax(-1),
    }
    shown = {name: [float(f"{x:.4g}") for x in values.tolist()] for name, values in found.items()}
    return {"floor": round(density_floor(config, n, n).item(), 5), **shown}


JOBS = {"reads": read_jobs, "heads": head_jobs, "times": prefill_jobs}
