"""One prompt on all GPUs of a host: is it the same, how long does it take, what does it need?

    python -m anchor_lab parallel             one process for each GPU, nccl
    python -m anchor_lab parallel --quick     two processes on the CPU, gloo, seconds

Four parts, each on one rank and on all:

logits     of every rank's rows beside those of one process: the bundled model in float32; the
           models of the prefills in the precision that they run in, and beside them what other
           arithmetic does to the logits of one process
attention  on planted stripes: whole on one GPU, with its tokens on all, and the exchange alone
prefill    SmolLM2 on a stretch of this repository, its positions stretched by YaRN, and layers of
           an 8B model with random weights, whose queries are scaled until θ = 12 keeps the share
           that it keeps in SmolLM2: sequence parallel and tensor parallel, sdpa and
           AnchorAttention with the tail that models have: time, peak memory beside that of
           `anchor_models.parallel.cost`, bytes sent, what attention takes on each rank, and what
           the ranks wait for the slowest; without a tail too, which shows what a tail adds where
answers    the first tokens that SmolLM2 writes of a number hidden in its prompt; the prompt is the
           first that it answers with dense attention on one GPU, if there is one

Times are medians of five, ranks wait for each other. The same command goes on where a run was cut
off.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from anchor_lab.experiments.crossover.fit import kept_law
from anchor_lab.experiments.environment import (
    cuda_facts,
    environment,
    kernels_version,
    lacks_cuda,
)
from anchor_lab.experiments.parallel.ranks import compared, of_ranks, timed
from anchor_lab.experiments.parallel.whole_models import (
    Prompt,
    answer_is_written,
    logits,
    whole_model,
)
from anchor_lab.experiments.random_model import random_llama, scale_queries
from anchor_lab.experiments.smollm2.prompts import needle, repository_text
from anchor_lab.experiments.store import Store
from anchor_models import anchor_attention, choose_backend, load_bundled, planted_stripes
from anchor_models.backend import TAIL
from anchor_models.documents import make_prompt
from anchor_models.integration.cost import kept_share
from anchor_models.models import load_pretrained
from anchor_models.parallel import (
    load_tensor_parallel,
    shard_rows,
    ulysses,
    ulysses_attention,
)
from anchor_models.parallel.cost import ModelShape
from anchor_models.smollm2 import NAME
from anchor_ref.config import AnchorConfig

KEY = ("part", "model", "tokens", "mode", "attention", "tail")


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        check: tokens of the prompt on the bundled model in float32.
        lengths: tokens of the planted stripes.
        model: that reads text, and answers.
        text: tokens of its prompts; the reference computes the first one's logits, too.
        random: tokens of the prompts of the model with random weights.
        shape: of that model; its heads are those of the planted stripes too.
        config: of AnchorAttention in all but the check.
        written: tokens of an answer.
        tried: prompts of a length, until one is answered.
        repeats: of what is timed.
    """

    check: int
    lengths: tuple[int, ...]
    model: str
    text: tuple[int, ...]
    random: tuple[int, ...]
    shape: ModelShape
    config: AnchorConfig
    written: int
    tried: int
    repeats: int


# Four of the layers of an 8B model; an answer is a space and five digits.
FULL = Sizes(
    4096,
    (32_768, 131_072),
    NAME,
    (32_768, 65_536),
    (131_072,),
    ModelShape(4, 4096, 14_336, 32, 8, 128, 32_000),
    AnchorConfig(tail=TAIL),
    6,
    24,
    5,
)
# Heads that two ranks cannot share evenly, as those of SmolLM2.
QUICK = Sizes(
    300,
    (280,),
    "bundled",
    (301,),
    (280,),
    ModelShape(2, 72, 96, 9, 3, 8, 99),
    AnchorConfig(block_size=32, step=4, tail=40),
    2,
    2,
    1,
)


def measure(options: argparse.Namespace) -> int:
    """Start a process for each rank, of which one writes the rows; returns the exit status."""
    if not options.quick and lacks_cuda("anchor_lab parallel"):
        return 2
    ranks = 2 if options.quick else torch.cuda.device_count()
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.quick else {}
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    rank = ["-m", __name__, str(options.out), "--command", options.command]
    rank += ["--quick"] if options.quick else []
    return subprocess.run([sys.executable, *start, *rank], env=os.environ | hidden).returncode


def main() -> None:
    """One rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", default="")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    store, sizes = None, QUICK if options.quick else FULL
    if dist.get_rank() == 0:
        settings = environment(device, ("torch", "transformers"))
        settings |= {"ranks": dist.get_world_size(), "repeats": sizes.repeats}
        if device.type == "cuda":
            settings |= {**cuda_facts(), "kernels": kernels_version()}
        run = {"date": settings.pop("date"), "command": options.command}
        store = Store(options.out, KEY, settings, run)
    collect(store, sizes, device)
    dist.destroy_process_group()


def collect(store: Store | None, sizes: Sizes, device: torch.device) -> None:
    """All parts that are missing; every rank runs it, rank 0 with the store."""
    units = [
        ("logits", "bundled, float32", sizes.check, partial(check, sizes, device)),
        *(
            ("attention", "planted", n, partial(attention, n, sizes, device))
            for n in sizes.lengths
        ),
        *(
            ("prefill", name, n, partial(of_model, name, n, sizes, device))
            for name, lengths in ((sizes.model, sizes.text), ("random", sizes.random))
            for n in lengths
        ),
    ]
    rows = store.rows if store else []
    held = of_ranks({(row["part"], row["model"], row["tokens"]) for row in rows})[0]
    for *unit, run in units:
        if tuple(unit) in held:
            continue
        started = time.perf_counter()
        found = list(run())
        if store:
            store.add(found)  # at once: a unit is there as a whole or not at all
            print(f"{' '.join(map(str, unit))}: {time.perf_counter() - started:.0f} s", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def check(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    """The bundled model's logits on all ranks against those of one process, in float32."""
    model, tokenizer = load_bundled(device=device)
    tokens = torch.tensor([make_prompt(tokenizer, sizes.check, depths=(0.4,))[0]], device=device)
    small = {"theta": 9.0, "block_size": 32, "step": 8}
    prompt = Prompt("bundled, float32", model, tokens, small, sizes.config.tail, 0.0)
    yield from logits(prompt, model, "sequence")
    yield from logits(prompt, load_tensor_parallel("bundled")[0], "tensor")


def attention(n: int, sizes: Sizes, device: torch.device) -> Iterator[dict]:
    """Attention on planted stripes: whole on one rank, on all ranks, and the exchange alone."""
    config, shape = sizes.config, sizes.shape
    x = planted_stripes(
        n,
        q_heads=shape.q_heads,
        kv_heads=shape.kv_heads,
        head_dim=128,
        density=0.05,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        device=device,
    )
    rows = shard_rows(n, dist.get_rank(), dist.get_world_size())
    mine = [y[:, :, rows.start : rows.stop].contiguous() for y in (x.q, x.k, x.v)]
    found = ulysses_attention(*mine, config)
    whole = anchor_attention(x.q, x.k, x.v, config)[:, :, rows.start : rows.stop]
    # Rows of a head are what rows of the vocabulary are for logits; no token is the likeliest.
    apart = compared(*(y.transpose(1, 2).flatten(2) for y in (found, whole)))
    yield {
        "part": "attention",
        "model": "planted",
        "tokens": n,
        "mode": "sequence",
        "attention": "anchor_attention",
        "tail": config.tail,
        "backend": choose_backend(x.q).name,
        "difference": apart["difference"],
        **{
            name: timed(run, device, sizes.repeats)[0]
            for name, run in {
                "one": lambda: anchor_attention(x.q, x.k, x.v, config),
                "all": lambda: ulysses_attention(*mine, config),
                "exchange": lambda: ulysses(lambda q, k, v: q, *mine),
            }.items()
        },
    }


def of_model(name: str, n: int, sizes: Sizes, device: torch.device) -> list[dict]:
    """All about a model's prefill of n tokens."""
    make = random_prompt if name == "random" else text_prompt
    # The reference is slow, and the first length shows what there is to see.
    in_torch = name != "random" and n == sizes.text[0]
    return whole_model(make(n, sizes, device), sizes.written, in_torch)


def text_prompt(n: int, sizes: Sizes, device: torch.device) -> Prompt:
    """A chat that hides a number in this repository's text, and has begun to answer.

    Of several prompts the first whose number the model writes with dense attention on one rank;
    where it writes none, the first.
    """
    model, tokenizer = load_pretrained(sizes.model, _dtype(device), device)
    body = tokenizer(repository_text(Path()), verbose=False).input_ids

    def prompt(seed: int) -> Prompt:
        depth = random.Random(seed).uniform(0.1, 0.95)
        found = needle(tokenizer, body, n, seed, depth, begun=True)
        return Prompt(
            sizes.model,
            model,
            found.tokens.to(device),
            _options(sizes),
            sizes.config.tail,
            _kept(n, sizes),
            sizes.repeats,
            stretched=True,
            answer=found.answer,
            tokenizer=tokenizer,
        )

    prompts = map(prompt, range(sizes.tried))
    return next((x for x in prompts if answer_is_written(x, model, sizes.written)), prompt(0))


def random_prompt(n: int, sizes: Sizes, device: torch.device) -> Prompt:
    """Random weights whose queries are as sharp as a real model's, and the same on every rank."""
    model = random_llama(sizes.shape, n, _dtype(device), device)
    tokens = torch.arange(n, device=device)[None] % sizes.shape.vocabulary
    kept = _kept(n, sizes)
    prompt = Prompt(
        "random", model, tokens, _options(sizes), sizes.config.tail, kept, sizes.repeats
    )
    with torch.no_grad():
        scale_queries(model, tokens, kept, sizes.config.theta)
        for layer in model.model.layers:  # ranks may have found scales that differ in a rounding
            dist.broadcast(layer.self_attn.q_proj.weight, 0)
    return prompt


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _options(sizes: Sizes) -> dict:
    """Of AnchorAttention inside a model; the tail is the prompt's business."""
    config = sizes.config
    return {"theta": config.theta, "block_size": config.block_size, "step": config.step}


def _kept(n: int, sizes: Sizes) -> float:
    """The share of the candidates that SmolLM2 keeps at this length."""
    theta = sizes.config.theta
    return kept_share({str(theta): kept_law()[str(theta)]}, theta, n)


if __name__ == "__main__":
    main()
