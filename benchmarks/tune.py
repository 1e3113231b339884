"""Time the stages under other tile sizes than the shipped ones; needs a CUDA device.

    python -m benchmarks.tune --n 131072 --density 0.05 --stage sparse 256,64,8,2 128,128,8,3

Each launch is named by its fields in the order of `anchor_kernels.launch`. Prints medians in ms,
TFLOP/s on pairs that the method needs, and the error against the shipped launch.
"""

import argparse

import torch
import triton

from anchor_kernels import attend_stripes, compute_anchor, identify_stripes
from anchor_kernels.launch import AttentionLaunch, SelectLaunch
from anchor_ref.activations import planted_stripes
from anchor_ref.config import AnchorConfig
from anchor_ref.regions import groups


def pairs(config: AnchorConfig, n: int, stripes) -> dict[str, int]:
    """Query-key pairs of each stage over all heads; pooled ones for stage 2."""
    found = groups(config, n, n)
    heads = stripes.counts.shape[0] * stripes.counts.shape[1]
    rows = torch.tensor([len(g.rows) for g in found], device=stripes.counts.device)
    anchor = sum(len(g.init) + row + g.shift + 1 - g.window_start for g in found for row in g.rows)
    return {
        "anchor": heads * anchor,
        "select": heads * sum(len(g.candidates) * len(g.blocks) for g in found),
        "sparse": int((stripes.counts.long() * rows).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=131_072)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--stage", choices=["anchor", "select", "sparse"], action="append")
    parser.add_argument("launches", nargs="*", help="STAGE:FIELD,FIELD,...")
    args = parser.parse_args()
    config = AnchorConfig()
    x = planted_stripes(
        args.n,
        q_heads=32,
        kv_heads=8,
        head_dim=args.head_dim,
        density=args.density,
        dtype=torch.bfloat16,
        device="cuda",
    )
    q, k, v = x.q, x.k, x.v
    state = compute_anchor(q, k, v, config)
    stripes = identify_stripes(q, k, state.max, config)
    out = attend_stripes(q, k, v, state, stripes, config)
    needed = pairs(config, args.n, stripes)
    flop = {"anchor": 4, "select": 2, "sparse": 4}
    shipped = {"anchor": state.out, "select": stripes.indices, "sparse": out}
    runs = {
        "anchor": lambda launch: compute_anchor(q, k, v, config, launch=launch).out,
        "select": lambda launch: identify_stripes(q, k, state.max, config, launch=launch).indices,
        "sparse": lambda launch: attend_stripes(q, k, v, state, stripes, config, launch=launch),
    }
    todo = [(stage, None) for stage in runs]
    for text in args.launches:
        stage, fields = text.split(":")
        kind = SelectLaunch if stage == "select" else AttentionLaunch
        todo.append((stage, kind(*(int(x) for x in fields.split(",")))))
    for stage, launch in todo:
        try:
            found = runs[stage](launch)
            same = shipped[stage]
            error = float((found.float() - same.float()).norm() / same.float().norm())
            ms = triton.testing.do_bench(
                lambda s=stage, at=launch: runs[s](at), warmup=20, rep=150, return_mode="median"
            )
            rate = needed[stage] * flop[stage] * args.head_dim / ms / 1e9
            print(
                f"{stage:7} {ms:8.3f} ms {rate:6.0f} TFLOP/s  error {error:.1e}  {launch}",
                flush=True,
            )
        except Exception as problem:
            print(f"{stage:7} {launch}: {type(problem).__name__} {str(problem)[:150]}")


if __name__ == "__main__":
    main()
