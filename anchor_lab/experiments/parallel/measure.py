"""One prompt on all GPUs of a host: is it the same, how long does it take, what does it need?

    python -m anchor_lab parallel                         one process for each GPU, nccl
    python -m anchor_lab parallel --tiny                  two processes on the CPU, gloo, seconds
    python -m anchor_lab parallel --table                 parallel.md from parallel.json

Three parts. The bundled model, whole and on all ranks, in float32: how far are the logits apart?
AnchorAttention on planted stripes, whole on one GPU and with its tokens on all: attention and
exchange. A Llama with the layers of an 8B model and random weights: the prefill on one GPU,
sequence parallel and tensor parallel, time and peak memory beside what `anchor_models.parallel.cost`
says on paper. Random weights have no heavy keys, so θ = −∞ there: AnchorAttention keeps initial
region and window alone, the least it can do. Times are medians, ranks wait for each other.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from anchor_models import anchor_attention, choose_backend, load_bundled, planted_stripes
from anchor_models.documents import make_prompt
from anchor_models.parallel import (
    load_tensor_parallel,
    sequence_parallel_prefill,
    shard_rows,
    ulysses,
    ulysses_attention,
)
from anchor_models.parallel.cost import GIB, ModelShape, memory
from anchor_ref.config import AnchorConfig

HERE = Path("results") / "parallel"
# Lengths and sizes: of an 8B model with a few of its layers, and for a look at the program.
FULL = {"check": 4096, "attention": (32_768, 131_072), "prefill": (32_768, 131_072)}
TINY = {"check": 700, "attention": (1024,), "prefill": (512,)}
SHAPE = ModelShape(4, 4096, 14_336, 32, 8, 128, 32_000)
TINY_SHAPE = ModelShape(2, 64, 96, 8, 2, 8, 99)


def timed(run: Callable, device: torch.device, repeats: int = 3) -> tuple[float, float]:
    """Median seconds of a run on all ranks, and the most memory it held on this one, bytes."""
    taken = []
    for repeat in range(repeats + 1):
        _settle(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        run()
        _settle(device)
        if repeat:  # the first compiles
            taken.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return statistics.median(taken), float(peak)


def check(n: int, device: torch.device) -> list[dict]:
    """The bundled model's logits on this rank against those of one process."""
    from anchor_models.transformers import options

    model, tokenizer = load_bundled(device=device)
    split = load_tensor_parallel("bundled")[0]
    tokens = torch.tensor([make_prompt(tokenizer, n, depths=(0.4,))[0]], device=device)
    found = []
    with torch.no_grad(), options(theta=9.0, block_size=32, step=8):
        for implementation in ("sdpa", "anchor_attention"):
            model.set_attn_implementation(implementation)
            split.set_attn_implementation(implementation)
            whole = model(tokens).logits
            rows, output = sequence_parallel_prefill(model, tokens)
            pairs = {
                "sequence": (output.logits, whole[:, rows.start : rows.stop]),
                "tensor": (split(tokens).logits, whole),
            }
            for mode, (one, other) in pairs.items():
                same = (one.argmax(-1) == other.argmax(-1)).float().mean()
                found.append(
                    {
                        "attention": implementation,
                        "mode": mode,
                        "tokens": tokens.shape[1],
                        "difference": float((one - other).abs().max()),
                        "same token": float(same),
                    }
                )
    return found


def attention(n: int, tiny: bool, device: torch.device) -> dict:
    """Attention on planted stripes: whole on one rank, on all ranks, and the exchange alone."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sizes = {"q_heads": 8, "kv_heads": 2} if tiny else {"q_heads": 32, "kv_heads": 8}
    x = planted_stripes(n, head_dim=128, density=0.05, dtype=dtype, device=device, **sizes)
    rows = shard_rows(n, dist.get_rank(), dist.get_world_size())
    mine = [y[:, :, rows.start : rows.stop].contiguous() for y in (x.q, x.k, x.v)]
    config = AnchorConfig(block_size=32, step=4) if tiny else AnchorConfig()
    whole = anchor_attention(x.q, x.k, x.v, config)
    error = ulysses_attention(*mine, config) - whole[:, :, rows.start : rows.stop]
    return {
        "tokens": n,
        "backend": choose_backend(x.q).name,
        "difference": float(error.abs().max()),
        "one": timed(lambda: anchor_attention(x.q, x.k, x.v, config), device)[0],
        "all": timed(lambda: ulysses_attention(*mine, config), device)[0],
        "exchange": timed(lambda: ulysses(lambda q, k, v: q, *mine), device)[0],
    }


def prefill(n: int, tiny: bool, device: torch.device) -> list[dict]:
    """Time and memory of a whole prefill, by attention and by how it is shared."""
    from anchor_models.transformers import options

    shape = TINY_SHAPE if tiny else SHAPE
    model = _random_llama(shape, n, device)
    tokens = torch.arange(n, device=device)[None] % shape.vocabulary

    def alone():
        model(tokens, use_cache=False, logits_to_keep=1)

    def sequence():
        sequence_parallel_prefill(model, tokens, logits_to_keep=1)

    found = []
    sizes = {"block_size": 32, "step": 4} if tiny else {}
    with torch.no_grad(), options(theta=-torch.inf, **sizes):
        for mode, run in (("one", alone), ("sequence", sequence), ("tensor", alone)):
            if mode == "tensor":
                model = _split(model)
            for implementation in ("sdpa", "anchor_attention"):
                model.set_attn_implementation(implementation)
                seconds, peak = timed(run, device)
                ranks = 1 if mode == "one" else dist.get_world_size()
                paper = memory(shape, mode.replace("one", "sequence"), n, ranks, 0.0)
                paper = paper["at once"] - paper["keys and values of all layers"]  # none kept
                found.append(
                    {
                        "attention": implementation,
                        "mode": mode,
                        "tokens": n,
                        "seconds": seconds,
                        "peak": peak,
                        "paper": paper,
                    }
                )
    return found


def collect(tiny: bool, device: torch.device) -> dict:
    """All three parts; every rank runs it."""
    lengths = TINY if tiny else FULL
    return {
        "date": time.strftime("%Y-%m-%d"),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "ranks": dist.get_world_size(),
        "check": check(lengths["check"], device),
        "attention": [attention(n, tiny, device) for n in lengths["attention"]],
        "prefill": [row for n in lengths["prefill"] for row in prefill(n, tiny, device)],
    }


def table(results: dict) -> str:
    """The results as Markdown."""
    ranks = results["ranks"]
    lines = [
        "# One prompt on many GPUs",
        "",
        f"Made by `python -m anchor_lab parallel` on {results['date']}: {ranks} x "
        f"{results['device']}, torch {results['torch']}. The model of the last table has four of "
        "the 32 layers of an 8B model. Times are medians of three; differences are those of rank "
        "0, whose rows are the first of the prompt.",
        "",
        "The bundled model in float32, θ = 9, blocks of 32, groups of 256: logits on "
        f"{ranks} ranks against those of one process.",
        "",
        "| attention | parallel | tokens | largest difference | same most likely token |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in results["check"]:
        lines.append(
            f"| {row['attention']} | {row['mode']} | {row['tokens']} | {row['difference']:.1e} | "
            f"{row['same token']:.2%} |"
        )
    lines += [
        "",
        "AnchorAttention, 5 % planted stripes, tokens on all ranks (ms).",
        "",
        f"| tokens | backend | 1 rank | {ranks} ranks | exchange alone | largest difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["attention"]:
        one, every, exchange = (f"{1000 * row[name]:.2f}" for name in ("one", "all", "exchange"))
        lines.append(
            f"| {row['tokens']} | {row['backend']} | {one} | {every} | {exchange} | "
            f"{row['difference']:.1e} |"
        )
    lines += [
        "",
        "A prefill with random weights, θ = −∞; memory of rank 0, without a cache. On paper: what "
        "has to be there, not what a framework holds beside it.",
        "",
        "| attention | parallel | tokens | s | peak, GiB | on paper, GiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["prefill"]:
        peak = f"{row['peak'] / GIB:.2f}" if row["peak"] else "–"
        lines.append(
            f"| {row['attention']} | {row['mode']} | {row['tokens']} | {row['seconds']:.3f} | "
            f"{peak} | {row['paper'] / GIB:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _random_llama(shape: ModelShape, n: int, device: torch.device):
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.q_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        max_position_embeddings=n,
    )
    torch.manual_seed(0)  # the same weights on every rank
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config)
    return model.to(torch.bfloat16 if device.type == "cuda" else torch.float32).eval()


def _split(model):
    """The same model, of which each rank loads its share from a folder that rank 0 writes."""
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    if dist.get_rank() == 0:
        model.save_pretrained(folder[0])
        load_bundled()[1].save_pretrained(folder[0])  # any tokenizer will do
    dist.barrier()
    split = load_tensor_parallel(folder[0], model.dtype)[0]
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder[0])
    return split


def _settle(device: torch.device) -> None:
    """Wait for the device and for the other ranks."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--table", action="store_true", help="no measuring, only the table")
    parser.add_argument("--out", type=Path, default=HERE / "parallel.json")
    options = parser.parse_args()
    if not options.table:
        if not (options.tiny or torch.cuda.is_available()):
            sys.exit(
                "anchor_lab.experiments.parallel.measure needs CUDA devices, or --tiny; torch finds none."
            )
        if "WORLD_SIZE" not in os.environ:
            ranks = 2 if options.tiny else max(1, torch.cuda.device_count())
            start = [
                "--standalone",
                "--nproc-per-node",
                str(ranks),
                "-m",
                "anchor_lab.experiments.parallel.measure",
            ]
            command = [sys.executable, "-m", "torch.distributed.run", *start, *sys.argv[1:]]
            raise SystemExit(subprocess.run(command).returncode)
        device = torch.device("cpu")
        if torch.cuda.is_available() and not options.tiny:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        results, rank = collect(options.tiny, device), dist.get_rank()
        dist.destroy_process_group()
        if rank:
            return
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    results = json.loads(options.out.read_text())
    options.out.with_suffix(".md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
