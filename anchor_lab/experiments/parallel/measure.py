"""One prompt on all GPUs of a host: is it the same, how long does it take, what does it need?

    python -m anchor_lab parallel             one process for each GPU, nccl
    python -m anchor_lab parallel --quick     two processes on the CPU, gloo, seconds

Three parts. The bundled model, whole and on all ranks, in float32: how far are the logits apart?
AnchorAttention on planted stripes, whole on one GPU and with its tokens on all: attention and
exchange. A Llama with the layers of an 8B model and random weights: the prefill on one GPU,
sequence parallel and tensor parallel, time and peak memory beside those that
`anchor_models.parallel.cost` computes on paper. Random weights have no heavy keys, so θ = −∞
there: AnchorAttention keeps initial region and window alone, the least it can do. Times are
medians, ranks wait for each other.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from anchor_lab.experiments.environment import environment, lacks_cuda
from anchor_lab.experiments.store import write_json
from anchor_models import anchor_attention, choose_backend, load_bundled, planted_stripes
from anchor_models.documents import make_prompt
from anchor_models.parallel import (
    load_tensor_parallel,
    sequence_parallel_prefill,
    shard_rows,
    ulysses,
    ulysses_attention,
)
from anchor_models.parallel.cost import ModelShape, memory
from anchor_ref.config import AnchorConfig


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        check: tokens of the prompt on the bundled model.
        lengths: tokens of the prompts on planted stripes, and of the prefills.
        shape: of the model with random weights; its heads are those of the planted stripes too.
        config: of AnchorAttention in both.
    """

    check: int
    lengths: tuple[int, ...]
    shape: ModelShape
    config: AnchorConfig


# Four of the layers of an 8B model.
FULL = Sizes(
    4096,
    (32_768, 131_072),
    ModelShape(4, 4096, 14_336, 32, 8, 128, 32_000),
    AnchorConfig(),
)
QUICK = Sizes(700, (512,), ModelShape(2, 64, 96, 8, 2, 8, 99), AnchorConfig(block_size=32, step=4))


def measure(options: argparse.Namespace) -> int:
    """Start a process for each rank, of which one writes the rows; returns the exit status."""
    if not options.quick and lacks_cuda("anchor_lab parallel"):
        return 2
    ranks = 2 if options.quick else torch.cuda.device_count()
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.quick else {}
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    rank = ["-m", __name__, str(options.out), *(["--quick"] if options.quick else [])]
    return subprocess.run([sys.executable, *start, *rank], env=os.environ | hidden).returncode


def main() -> None:
    """One rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rows = collect(QUICK if options.quick else FULL, device)
    if dist.get_rank() == 0:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {"ranks": dist.get_world_size(), "differences": "all ranks"}
        run = environment(device, ("torch", "transformers"))
        write_json(options.out, settings, rows, [run])
    dist.destroy_process_group()


def collect(sizes: Sizes, device: torch.device) -> list[dict]:
    """All three parts; every rank runs it."""
    return [
        *check(sizes.check, device),
        *(attention(n, sizes, device) for n in sizes.lengths),
        *(row for n in sizes.lengths for row in prefill(n, sizes, device)),
    ]


def check(n: int, device: torch.device) -> list[dict]:
    """The bundled model's logits on all ranks against those of one process."""
    from anchor_models.transformers import options

    model, tokenizer = load_bundled(device=device)
    split = load_tensor_parallel("bundled")[0]
    tokens = torch.tensor([make_prompt(tokenizer, n, depths=(0.4,))[0]], device=device)
    found = []
    with torch.no_grad(), options(theta=9.0, block_size=32, step=8, when="always"):
        for implementation in ("sdpa", "anchor_attention"):
            model.set_attn_implementation(implementation)
            split.set_attn_implementation(implementation)
            whole = model(tokens).logits
            rows, output = sequence_parallel_prefill(model, tokens)
            pairs = {
                "sequence": (output.logits, whole[:, rows.start : rows.stop]),
                "tensor": (split(tokens).logits, whole),
            }
            found += [
                {
                    "part": "check",
                    "attention": implementation,
                    "mode": mode,
                    "tokens": tokens.shape[1],
                    "difference": largest_difference(one, other),
                    "same token": share_of_same_token(one, other),
                }
                for mode, (one, other) in pairs.items()
            ]
    return found


def attention(n: int, sizes: Sizes, device: torch.device) -> dict:
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
    whole = anchor_attention(x.q, x.k, x.v, config)[:, :, rows.start : rows.stop]
    return {
        "part": "attention",
        "tokens": n,
        "backend": choose_backend(x.q).name,
        "difference": largest_difference(ulysses_attention(*mine, config), whole),
        "one": timed(lambda: anchor_attention(x.q, x.k, x.v, config), device)[0],
        "all": timed(lambda: ulysses_attention(*mine, config), device)[0],
        "exchange": timed(lambda: ulysses(lambda q, k, v: q, *mine), device)[0],
    }


def prefill(n: int, sizes: Sizes, device: torch.device) -> list[dict]:
    """Time and memory of a whole prefill, by attention and by how it is shared."""
    from anchor_models.transformers import options

    shape, config = sizes.shape, sizes.config
    model = _random_llama(shape, n, device)
    tokens = torch.arange(n, device=device)[None] % shape.vocabulary

    def alone():
        model(tokens, use_cache=False, logits_to_keep=1)

    def sequence():
        sequence_parallel_prefill(model, tokens, logits_to_keep=1)

    found = []
    sizes = {"block_size": config.block_size, "step": config.step, "tail": 0}
    # No stripes: random weights have no heavy keys.
    with torch.no_grad(), options(theta=-torch.inf, when="always", **sizes):
        for mode, run in (("one", alone), ("sequence", sequence), ("tensor", alone)):
            if mode == "tensor":
                model = _split(model)
            ranks = 1 if mode == "one" else dist.get_world_size()
            paper = memory(shape, mode.replace("one", "sequence"), n, ranks, 0.0)
            for implementation in ("sdpa", "anchor_attention"):
                model.set_attn_implementation(implementation)
                seconds, peak = timed(run, device)
                found.append(
                    {
                        "part": "prefill",
                        "attention": implementation,
                        "mode": mode,
                        "tokens": n,
                        "seconds": seconds,
                        "peak": peak,
                        # No cache is kept.
                        "paper": paper["at once"] - paper["keys and values of all layers"],
                    }
                )
    return found


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


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Of what each rank compares, the largest over all ranks."""
    most = (one.float() - other.float()).abs().max()
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return float(most)


def share_of_same_token(one: Tensor, other: Tensor) -> float:
    """Over the logits of all ranks: how often the same token is the most likely one."""
    same = one.argmax(-1) == other.argmax(-1)
    counts = torch.tensor([same.sum(), same.numel()], device=same.device)
    dist.all_reduce(counts)
    return float(counts[0] / counts[1])


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


if __name__ == "__main__":
    main()
