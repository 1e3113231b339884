"""Time the stages under other tile sizes than the shipped ones; needs a CUDA device.

    python -m anchor_lab.experiments.attention.tune                                        the shipped launches alone
    python -m anchor_lab.experiments.attention.tune sparse:256,64,8,2 anchor:128,64,8,2,128 select:64,64,4096,4,3

A launch is STAGE:FIELD,FIELD,...: anchor, select, sparse or hopper (stage 3 with a task for each
warp), then the fields of its class in `anchor_kernels.launch`, in their order. Prints medians in
ms, TFLOP/s on pairs that the method needs, and the error against the shipped launch.
"""

import argparse
import sys
from collections.abc import Callable

import torch
import triton
from torch import Tensor

from anchor_kernels import compute_anchor, identify_stripes
from anchor_kernels.launch import AttentionLaunch, HopperLaunch, SelectLaunch
from anchor_kernels.sparse import continue_softmax
from anchor_lab.experiments.attention.jobs import always_pairs, flop, pooled_pairs, stripe_pairs
from anchor_lab.experiments.command import lacks_cuda
from anchor_models import planted_stripes
from anchor_ref.config import AnchorConfig

Launch = AttentionLaunch | HopperLaunch | SelectLaunch
LAUNCHES = {
    "anchor": AttentionLaunch,
    "select": SelectLaunch,
    "sparse": AttentionLaunch,
    "hopper": HopperLaunch,
}


def read_launch(text: str) -> tuple[str, Launch]:
    """The stage and the launch that an argument names.

    Raises:
        argparse.ArgumentTypeError: it names none.
    """
    stage, _, fields = text.partition(":")
    # What does the rare overflowing tile again is not what is tuned.
    more = {"again": AttentionLaunch(64, 32, 4, 2)} if stage == "hopper" else {}
    try:
        return stage, LAUNCHES[stage](*(int(x) for x in fields.split(",")), **more)
    except (KeyError, TypeError, ValueError):
        kinds = " ".join(
            f"{name}:{','.join(kind.__dataclass_fields__)}" for name, kind in LAUNCHES.items()
        )
        kinds = kinds.removesuffix(",again")
        raise argparse.ArgumentTypeError(f"a launch must be one of {kinds}; got {text}") from None


def stages(q, k, v, config: AnchorConfig) -> dict[str, tuple[Callable, int]]:
    """Each stage as a function of its launch, None for the shipped one; and its FLOP."""
    state = compute_anchor(q, k, v, config)
    stripes = identify_stripes(q, k, state.max, config)
    heads, n, head_dim = q.shape[0] * q.shape[1], q.shape[2], q.shape[3]

    def stage_3(launch: Launch | None) -> Tensor:  # as the whole call runs it, plan unchecked
        out = torch.empty_like(q)
        scale = head_dim**-0.5
        return continue_softmax(
            q, k, v, state, stripes, config, scale, None, out=out, launch=launch
        )

    third = stage_3, flop(stripe_pairs(stripes, config, n), 0, head_dim)
    return {
        "anchor": (
            lambda launch: compute_anchor(q, k, v, config, launch=launch).out,
            flop(heads * always_pairs(config, n), 0, head_dim),
        ),
        "select": (
            lambda launch: identify_stripes(q, k, state.max, config, launch=launch).indices,
            flop(0, heads * pooled_pairs(config, n), head_dim),
        ),
        "sparse": third,
        "hopper": third,
    }


def measure(run: Callable, work: int, launch: Launch | None) -> str:
    """Time, rate and error of one stage under one launch, in words."""
    shipped, found = run(None).float(), run(launch).float()
    error = float((found - shipped).norm() / shipped.norm())
    ms = triton.testing.do_bench(lambda: run(launch), warmup=20, rep=150, return_mode="median")
    return f"{ms:8.3f} ms {work / ms / 1e9:6.0f} TFLOP/s  error {error:.1e}"


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, or 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=131_072)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("launches", nargs="*", type=read_launch, metavar="STAGE:FIELD,FIELD,...")
    options = parser.parse_args(arguments)
    if lacks_cuda("tune"):
        return 2
    x = planted_stripes(
        options.n,
        q_heads=32,
        kv_heads=8,
        head_dim=options.head_dim,
        density=options.density,
        dtype=torch.bfloat16,
        device="cuda",
    )
    known = stages(x.q, x.k, x.v, AnchorConfig())
    for stage, launch in [
        *((stage, None) for stage in ("anchor", "select", "sparse")),
        *options.launches,
    ]:
        try:
            found = measure(*known[stage], launch)
        except Exception as problem:  # a launch that does not fit the device is an answer too
            found = f"{type(problem).__name__} {str(problem)[:150]}"
        print(f"{stage:7} {found}  {launch or 'as shipped'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
