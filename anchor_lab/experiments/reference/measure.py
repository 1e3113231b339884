"""The reference on a CPU: time against dense attention, and peak memory.

    python -m anchor_lab reference

Planted stripes (3 %), 8 query and 2 kv heads of 64, float32. Dense attention is
`scaled_dot_product_attention` on the same tensors in the same process, the two taking turns. Peak
memory is the growth of the resident set of a process that runs AnchorAttention once, its inputs
and output included. Writes `reference.json` and `reference.md` beside this file.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from anchor_models import planted_stripes
from anchor_ref import AnchorConfig, anchor_attention
from anchor_ref.measure import density

HERE = Path("results") / "reference"


def seconds(run, repeats: int) -> list[float]:
    """Wall times, ascending."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return sorted(taken)


def measure_time(n: int, repeats: int) -> dict:
    """Times of one length; the two methods take turns, so that both see the same machine."""
    inputs, config = planted_stripes(n), AnchorConfig()
    q, k, v = inputs.q, inputs.k, inputs.v
    _, trace = anchor_attention(q, k, v, config, return_trace=True)  # also warms up
    dense, anchor = [], []
    for _ in range(repeats):
        dense += seconds(
            lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), 1
        )
        anchor += seconds(lambda: anchor_attention(q, k, v, config), 1)
    ratio = statistics.median(anchor) / statistics.median(dense)
    return {
        "n": n,
        "density": round(float(density(trace.stripes, config, n, n).mean()), 4),
        "dense_s": [round(x, 3) for x in sorted(dense)],
        "anchor_s": [round(x, 3) for x in sorted(anchor)],
        "ratio": round(ratio, 3),
    }


def measure_memory(n: int) -> float:
    """MiB by which one call raises the peak resident set, measured in a process of its own."""
    code = f"from anchor_lab.experiments.reference.measure import peak; print(peak({n}))"
    return float(subprocess.check_output([sys.executable, "-c", code], text=True))


def peak(n: int) -> float:
    """Growth of this process's peak resident set by inputs and one call, MiB."""
    small = planted_stripes(256)
    anchor_attention(small.q, small.k, small.v)  # libraries are loaded before the count begins
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inputs = planted_stripes(n)
    anchor_attention(inputs.q, inputs.k, inputs.v)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def table(results: dict) -> str:
    """The results as Markdown."""
    lines = [
        "# The reference on a CPU",
        "",
        f"Made by `python -m anchor_lab reference` on {results['date']}: "
        f"{results['cpu']}, {results['threads']} threads, torch {results['torch']}, float32, "
        "8 query / 2 kv heads, D = 64, 3 % planted stripes, θ = 12. Medians of "
        f"{results['repeats']}; SDPA and AnchorAttention took turns.",
        "",
        "| N | density | SDPA, s | AnchorAttention, s | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in results["time"]:
        dense, anchor = statistics.median(row["dense_s"]), statistics.median(row["anchor_s"])
        lines.append(
            f"| {row['n']} | {row['density']:.3f} | {dense:.2f} | {anchor:.2f} | "
            f"{row['ratio']:.2f} |"
        )
    lines += ["", "| N | peak memory, MiB | per token, KiB |", "| --- | --- | --- |"]
    for row in results["memory"]:
        lines.append(f"| {row['n']} | {row['mib']:.0f} | {row['mib'] * 1024 / row['n']:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    results = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "repeats": options.repeats,
        "memory": [{"n": n, "mib": round(measure_memory(n), 1)} for n in options.lengths],
        "time": [measure_time(n, options.repeats) for n in options.lengths],
    }
    (HERE / "reference.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "reference.md").write_text(table(results))
    print(table(results))


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
