"""The reference on a CPU: time against dense attention, and peak memory.

    python -m anchor_lab reference

Planted stripes (3 %), 8 query and 2 kv heads of 64, float32. Dense attention is
`scaled_dot_product_attention` on the same tensors in the same process, the two taking turns. Peak
memory is the growth of the resident set of a process that runs AnchorAttention once, its inputs
and output included. A minute on two cores.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F

from anchor_lab.experiments.environment import environment, peak_memory
from anchor_lab.experiments.store import Store
from anchor_models import planted_stripes
from anchor_ref import AnchorConfig, anchor_attention
from anchor_ref.measure import density

LENGTHS, QUICK_LENGTHS = (8192, 16_384, 32_768), (512, 1024)


def options(parser: argparse.ArgumentParser) -> None:
    """--lengths, --repeats"""
    parser.add_argument("--lengths", type=int, nargs="+", help=f"tokens; default {LENGTHS}")
    parser.add_argument("--repeats", type=int, default=3, help="of each time; default 3")


def measure(options: argparse.Namespace) -> int:
    """A row for each length; returns the exit status, 0."""
    run = environment("cpu") | {"threads": torch.get_num_threads()}
    store = Store(options.out, ["n"], {"repeats": options.repeats}, run)
    for n in options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS):
        if not store.holds(n=n):
            times = measure_time(n, options.repeats)
            store.add([{"n": n, **times, "mib": round(measure_memory(n), 1)}])
    return 0


def measure_time(n: int, repeats: int) -> dict:
    """Seconds of each method, ascending; they take turns, so that both see the same machine."""
    inputs, config = planted_stripes(n), AnchorConfig()
    q, k, v = inputs.q, inputs.k, inputs.v
    _, trace = anchor_attention(q, k, v, config, return_trace=True)  # also warms up
    dense, anchor = [], []
    for _ in range(repeats):
        dense.append(
            seconds(
                lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            )
        )
        anchor.append(seconds(lambda: anchor_attention(q, k, v, config)))
    return {
        "density": round(float(density(trace.stripes, config, n, n).mean()), 4),
        "dense_s": [round(x, 3) for x in sorted(dense)],
        "anchor_s": [round(x, 3) for x in sorted(anchor)],
        "ratio": round(median(anchor) / median(dense), 3),
    }


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure_memory(n: int) -> float:
    """MiB by which one call raises the peak resident set, measured in a process of its own."""
    code = f"from {__name__} import peak; print(peak({n}))"
    return float(subprocess.check_output([sys.executable, "-c", code], text=True))


def peak(n: int) -> float:
    """Growth of this process's peak resident set by inputs and one call, MiB; on Linux."""
    small = planted_stripes(256)
    anchor_attention(small.q, small.k, small.v)  # libraries are loaded before the count begins
    before = peak_memory()
    inputs = planted_stripes(n)
    anchor_attention(inputs.q, inputs.k, inputs.v)
    return (peak_memory() - before) / 2**20
