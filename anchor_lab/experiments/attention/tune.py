"""Time the stages under other tile sizes than the shipped ones; needs a CUDA device.

    python -m anchor_lab.experiments.attention.tune [STAGE:FIELD,FIELD,... ...]
    python -m anchor_lab.experiments.attention.tune sparse:256,64,8,2 select:64,64,4096,4,3

A launch is STAGE:FIELD,FIELD,... with the fields of its class in `anchor_kernels.launch`, in their
order. Stages are anchor, select and sparse; anchor_hopper and hopper are stages 1 and 3 with a
task for each warp. Without a launch only the shipped ones are timed. Prints medians in ms,
TFLOP/s on pairs that the method needs, and the error against the shipped launch.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anchor_lab.experiments.attention.instruments import CudaInstruments, quantiles
from anchor_lab.experiments.attention.jobs import Case, flop, kernels
from anchor_lab.experiments.environment import lacks_cuda
from anchor_models import planted_stripes
from anchor_ref.config import AnchorConfig

Launch = Any  # one of the classes below: Triton is imported where it is needed


def launch_kinds() -> dict[str, type]:
    """The class that holds the launch of each stage."""
    from anchor_kernels.launch import (
        AnchorHopperLaunch,
        AttentionLaunch,
        HopperLaunch,
        SelectLaunch,
    )

    return {
        "anchor": AttentionLaunch,
        "anchor_hopper": AnchorHopperLaunch,
        "select": SelectLaunch,
        "sparse": AttentionLaunch,
        "hopper": HopperLaunch,
    }


def read_launch(text: str) -> tuple[str, Launch]:
    """The stage and the launch that an argument names.

    Raises:
        argparse.ArgumentTypeError: it names none.
    """
    stage, _, numbers = text.partition(":")
    kinds = launch_kinds()
    # What does the rare overflowing tile again is not what is tuned.
    again = {"hopper": (64, 32, 4, 2), "anchor_hopper": (128, 32, 8, 3)}
    more = {"again": kinds["sparse"](*again[stage])} if stage in again else {}
    try:
        return stage, kinds[stage](*(int(x) for x in numbers.split(",")), **more)
    except (KeyError, TypeError, ValueError):
        known = " ".join(f"{x}:{','.join(kind.__dataclass_fields__)}" for x, kind in kinds.items())
        known = known.removesuffix(",again")
        raise argparse.ArgumentTypeError(f"a launch must be one of {known}; got {text}") from None


def stages(case: Case) -> dict[str, tuple[Callable, int]]:
    """Each stage as a function of its launch, None for the shipped one; and its FLOP.

    Args:
        case: inputs, and `jobs.kernels` as the backend.
    """
    q, k, v, config, scale = case.inputs
    run, head_dim = case.backend, q.shape[3]
    state = run.compute_anchor(*case.inputs)

    def stage_3(launch: Launch) -> Tensor:
        return run.attend_stripes(q, k, v, state, case.stripes, config, scale, launch)

    first = (
        lambda launch: run.compute_anchor(*case.inputs, launch=launch).out,
        flop(case.always_pairs, 0, head_dim),
    )
    third = stage_3, flop(case.stripe_pairs, 0, head_dim)
    return {
        "anchor": first,
        "anchor_hopper": first,
        "select": (
            lambda launch: run.identify_stripes(q, k, state.max, config, launch=launch).indices,
            flop(0, case.pooled_pairs, head_dim),
        ),
        "sparse": third,
        "hopper": third,
    }


def measure(run: Callable, work: int, launch: Launch, instruments) -> str:
    """Time, rate and error of one stage under one launch, in words."""
    shipped, found = run(None).float(), run(launch).float()
    error = float((found - shipped).norm() / shipped.norm())
    ms = quantiles(instruments.times(lambda: run(launch)))["median"]
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
    if lacks_cuda("anchor_lab.experiments.attention.tune"):
        return 2
    sizes = {"q_heads": 32, "kv_heads": 8, "head_dim": options.head_dim}
    where = {"dtype": torch.bfloat16, "device": "cuda"}
    x = planted_stripes(options.n, **sizes, density=options.density, **where)
    known = stages(Case(x.q, x.k, x.v, None, AnchorConfig(), kernels()))
    instruments = CudaInstruments(budget_s=0.15)
    shipped = [(stage, None) for stage in ("anchor", "select", "sparse")]
    for stage, launch in [*shipped, *options.launches]:
        try:
            found = measure(*known[stage], launch, instruments)
        except Exception as problem:  # a launch that does not fit the device is an answer too
            found = f"{type(problem).__name__} {str(problem)[:150]}"
        print(f"{stage:7} {found}  {launch or 'as shipped'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
