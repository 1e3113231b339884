"""A real language model: which pairs its heads need, how long that takes, and does it answer?

    python -m anchor_lab smollm2               writes smollm2.json, .md and .png
    python -m anchor_lab smollm2 --table       .md and .png from smollm2.json

Three parts:

heads      density and recall of the heads of SmolLM2-135M-Instruct on a stretch of this repository
           (course, docs/, then sources, from a random place on): every layer at 8192 tokens, every
           third beyond. Recall is over the rows beyond the first group, since those of the first
           group keep everything. Beyond the 8192 tokens that the model was trained for its
           positions are stretched by YaRN
times      a call on each such layer's queries, keys and values in bfloat16, without a tail and
           with that of models, beside dense attention; needs a CUDA device
answers    a number of five digits hidden in made-up prose and asked for at the end, with the chat
           template, written by greedy decoding: dense prefill, without a tail, and with the tail
           of models

Three minutes on an H200. A processor can do the answers, at a minute a prompt.
"""

import argparse
import hashlib
import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F

from anchor_lab.analysis.curves import theta_curve
from anchor_lab.experiments.environment import cuda_facts, environment, kernels_version
from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.smollm2.prompts import needle, repository_text
from anchor_lab.experiments.store import Store
from anchor_models import Captured, capture_qkv
from anchor_models.backend import TAIL
from anchor_models.documents import filler
from anchor_models.models import load_pretrained
from anchor_models.smollm2 import NAME, stretch
from anchor_ref import AnchorConfig

KEY = ("part", "length", "layer", "head", "theta", "way", "prompt")
THETAS = (9.0, 12.0)
LENGTHS, QUICK_LENGTHS = (8192, 32_768, 65_536), (2304,)
LAYERS = {8192: 1, 32_768: 3, 65_536: 3}  # every how many
ASKED, QUICK_ASKED = (4096, 8064), (2304,)
STORY = 120_000  # letters of made-up prose, from which each prompt takes a part
PROMPTS = 30
NEW_TOKENS = 32  # the model may say a sentence around the number
WAYS = {"dense": None, "tail 0": 0, f"tail {TAIL}": TAIL}
CELL_S = 0.3  # of repeats of one time


def options(parser: argparse.ArgumentParser) -> None:
    """--model, --parts"""
    parts = ("heads", "times", "answers")
    parser.add_argument("--model", default=NAME, help=f"another causal model; default {NAME}")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)


def measure(options: argparse.Namespace) -> int:
    """Measure what is missing; returns the exit status, 0."""
    device, cuda = options.device, torch.device(options.device).type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    model, tokenizer = load_pretrained(options.model, dtype, device)
    body, story = (
        tokenizer(text, verbose=False).input_ids
        for text in (repository_text(Path()), filler(STORY, random.Random(0)))
    )
    settings = {
        "model": options.model,
        "weights": weights_hash(model),
        "texts": [
            hashlib.sha256(" ".join(map(str, text)).encode()).hexdigest() for text in (body, story)
        ],
        "dtype": str(dtype).removeprefix("torch."),
        **environment(device, ("torch", "transformers")),
        **({"kernels": kernels_version(), **cuda_facts()} if cuda else {}),
    }
    run = {"date": settings.pop("date"), "command": options.command}
    store = Store(options.out, KEY, settings, run)
    if "answers" in options.parts:
        answers(store, model, tokenizer, story, options.quick)
    if {"heads", "times"} & set(options.parts):
        lengths = QUICK_LENGTHS if options.quick else LENGTHS
        for length in lengths:
            heads_and_times(store, model, tokenizer, body, length, options)
    return 0


def weights_hash(model) -> str:
    """The first digits of a SHA-256 of the weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:12]


def heads_and_times(store: Store, model, tokenizer, body, length: int, options) -> None:
    """Rows of every head and layer at one length."""
    count = model.config.num_hidden_layers
    layers = range(0, count, 1 if options.quick else LAYERS.get(length, 1))
    parts = {part for part in ("heads", "times") if part in options.parts}
    if torch.device(options.device).type != "cuda":
        parts -= {"times"}
    left = [
        layer
        for layer in layers
        for part in sorted(parts)
        if not any(
            row["part"] == part and (row["length"], row["layer"]) == (length, layer)
            for row in store.rows
        )
    ]
    if not left:
        return
    prompt = needle(tokenizer, body, length, seed=0, depth=0.35)
    with stretch(model, length):
        captured = capture_qkv(model, prompt.tokens.to(model.device), sorted(set(left)))
    for layer in progress(sorted(captured)):
        x = captured[layer].to(options.device)
        if "heads" in parts:
            store.add(of_heads(x, length))
        if "times" in parts:
            store.add(of_times(x, length))


def of_heads(x: Captured, length: int) -> Iterator[dict]:
    """Density and recall of each head at each threshold, computed in float32."""
    config = AnchorConfig()
    curve = theta_curve(x.q.float(), x.k.float(), config, THETAS, x.scaling)
    beyond = curve.recall[:, 0, :, config.group_size :].double()  # [T, Hq, rows]
    for place, theta in enumerate(THETAS):
        for head in range(x.q.shape[1]):
            recall = beyond[place, head]
            yield {
                "part": "heads",
                "length": length,
                "layer": x.layer,
                "head": head,
                "theta": theta,
                "density": round(curve.density[place, 0, head].item(), 4),
                "recall": round(recall.mean().item(), 4),
                "recall_p10": round(recall.quantile(0.1).item(), 4),
            }


def of_times(x: Captured, length: int) -> Iterator[dict]:
    """Milliseconds of a call on one layer, by what computes it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from anchor_kernels import anchor_attention
    from anchor_lab.experiments.attention.instruments import CudaInstruments, quantiles

    instruments = CudaInstruments(CELL_S)
    inputs = [tensor.to(torch.bfloat16) for tensor in (x.q, x.k, x.v)]

    def dense():
        return F.scaled_dot_product_attention(
            *inputs, is_causal=True, scale=x.scaling, enable_gqa=True
        )

    def forced(backend: SDPBackend):
        with sdpa_kernel(backend):
            return dense()

    calls = {
        "cudnn": lambda: forced(SDPBackend.CUDNN_ATTENTION),
        "sdpa": dense,
        **{
            f"tail {tail}": lambda tail=tail: anchor_attention(
                *inputs, AnchorConfig(tail=tail), x.scaling
            )
            for tail in (0, TAIL)
        },
    }
    for way, call in calls.items():
        yield {
            "part": "times",
            "length": length,
            "layer": x.layer,
            "way": way,
            "ms": quantiles(instruments.times(call)),
        }


@torch.no_grad()
def answers(store: Store, model, tokenizer, body, quick: bool) -> None:
    """Whether each prompt's number is written, by how the prefill was computed."""
    import anchor_models.transformers as anchor

    original = model.config._attn_implementation
    asked = [
        (length, seed)
        for length in (QUICK_ASKED if quick else ASKED)
        for seed in range(2 if quick else PROMPTS)
    ]
    for length, seed in progress(asked):
        prompt = needle(tokenizer, body, length, seed)
        tokens = prompt.tokens.to(model.device)
        for way, tail in WAYS.items():
            if store.holds(part="answers", length=length, way=way, prompt=seed):
                continue
            model.set_attn_implementation("sdpa" if tail is None else "anchor_attention")
            # Also where dense attention would be as fast: what the method answers is the question.
            always = nullcontext() if tail is None else anchor.options(tail=tail, when="always")
            with always:
                written = model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                )
            words = tokenizer.decode(written[0, length:], skip_special_tokens=True)
            store.add(
                [
                    {
                        "part": "answers",
                        "length": length,
                        "way": way,
                        "prompt": seed,
                        "depth": round(prompt.place.start / length, 3),
                        "found": prompt.answer in words,
                        "written": words,
                    }
                ]
            )
    model.set_attn_implementation(original)
