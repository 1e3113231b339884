"""Every way through the kernels on small inputs, for a tool that watches each memory access.

    compute-sanitizer --tool memcheck python -m anchor_verify.small_calls
    compute-sanitizer --tool memcheck python -m anchor_verify.small_calls --control store
    TRITON_INSTRUMENTATION_MODE=consan python -m anchor_verify.small_calls --calls ragged

`anchor_verify.gpu_report` runs all. With PYTORCH_NO_CUDA_MEMORY_CACHING=1 each tensor is an
allocation of its own, so that an access beyond its end is one beyond an allocation's.

The last is Triton's Concurrency Sanitizer, which compiles a ledger of buffers and barriers into
each kernel. It knows copies by their group, not by the barrier that they arrive at, so under it
stage 3's Hopper kernel waits for a group and then arrives. Stage 1's is too large for it: there
the kernel of all other GPUs takes its place. All else is as it is shipped.
"""

import argparse
import math
import sys
from dataclasses import replace
from functools import partial
from types import ModuleType

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from anchor_kernels import anchor, anchor_attention, launch, sparse_hopper
from anchor_kernels.support import target_of
from anchor_kernels.tail import merge
from anchor_lab.experiments.environment import lacks_cuda
from anchor_ref.config import AnchorConfig
from anchor_verify.small_controls import CONTROLS

CONFIG = AnchorConfig(block_size=64, step=4, theta=2.5)
BOUNDS = (0, 1, 300, 300, 700)
USUAL = (700, 700, 4, 1, 128, torch.bfloat16)
# Name: queries, keys, query heads, kv heads, D, dtype, θ.
PLAIN = {
    "ragged": (*USUAL, 2.5),
    "every key": (700, 700, 4, 1, 64, torch.bfloat16, math.inf),
    "no stripe": (700, 700, 2, 2, 64, torch.float16, -math.inf),
    "padded head": (531, 531, 7, 1, 96, torch.bfloat16, 2.5),
    "wide head": (531, 531, 2, 1, 256, torch.bfloat16, 2.5),
    "chunk": (130, 700, 4, 2, 128, torch.float16, 2.5),
    "float32": (531, 531, 2, 1, 64, torch.float32, 2.5),
    "one token": (1, 1, 1, 1, 64, torch.bfloat16, 2.5),
}


def inputs(n_q: int, n_k: int, q_heads: int, kv_heads: int, dim: int, dtype: torch.dtype):
    """Normal queries, keys and values, their heads side by side, as projections leave them."""
    random = torch.Generator("cuda").manual_seed(0)
    sizes = ((n_q, q_heads), (n_k, kv_heads), (n_k, kv_heads))
    return [
        torch.randn(1, n, heads, dim, generator=random, device="cuda").to(dtype).transpose(1, 2)
        for n, heads in sizes
    ]


def plain(sizes: tuple, theta: float) -> Tensor:
    return anchor_attention(*inputs(*sizes), AnchorConfig(CONFIG.block_size, CONFIG.step, theta))


def packed() -> Tensor:
    return anchor_attention(*inputs(*USUAL), CONFIG, None, torch.tensor(BOUNDS))


def with_tail(sizes: tuple, tail: int, bounds: tuple[int, ...] | None = None) -> Tensor:
    """The last rows see every key: by stage 3's kernel, or by cuDNN where there are many."""
    config = replace(CONFIG, tail=tail)
    return anchor_attention(
        *inputs(*sizes), config, None, None if bounds is None else torch.tensor(bounds)
    )


def merged() -> Tensor:
    """What cuDNN's share of a long tail is merged with, without cuDNN."""
    a, b = (x.contiguous() for x in inputs(*USUAL[:3], 4, *USUAL[4:])[:2])
    a_lse, b_lse = (x.float().logsumexp(-1) for x in (a, b))
    out = torch.empty_like(a)
    merge(a, a_lse, b[None], b_lse[None], out)
    return out


def rows_asked(count: int) -> Tensor:
    """Rows that stage 2 asks by themselves, and a threshold for each head."""
    config = replace(CONFIG, outliers=count, outlier_choice="even", tail=90)
    thetas = [2.5, 1.0, math.inf, -math.inf]
    return anchor_attention(*inputs(*USUAL), config, theta_by_head=thetas)


def contiguous() -> Tensor:
    return anchor_attention(*(x.contiguous() for x in inputs(*USUAL)), CONFIG)


def done_again() -> Tensor:
    """A stripe that outweighs all that stage 1 saw: its tiles are done again."""
    q, k, v = inputs(*USUAL)
    q[..., 0], k[:, :, 100, 0] = 30.0, 30.0
    return anchor_attention(q, k, v, CONFIG)


CALLS = {
    **{name: partial(plain, sizes, theta) for name, (*sizes, theta) in PLAIN.items()},
    "packed": packed,
    "contiguous": contiguous,
    "rows asked": partial(rows_asked, 3),
    "more rows asked": partial(rows_asked, 9),
    "tail": partial(with_tail, USUAL, 300),
    "tails of packs": partial(with_tail, USUAL, 90, BOUNDS),
    "long tail": partial(with_tail, (9000, 9000, *USUAL[2:]), 100),
    "merge": merged,
    "done again": done_again,
}


def show(name: str, out: Tensor) -> None:
    if not out.isfinite().all():
        raise SystemExit(f"{name}: the output is not finite")
    print(f"{name}: {tuple(out.shape)} {out.dtype}", flush=True)


@gluon.jit
def arrive_after_group(ready, increment_count):
    """`async_copy.mbarrier_arrive`, in steps that the Concurrency Sanitizer follows."""
    async_copy.commit_group()
    async_copy.wait_group(0)
    mbarrier.arrive(ready, count=32 * sparse_hopper.WARPS)


@gluon.jit
def go_on(barrier, phase):
    """`mbarrier.wait` that does not wait."""


def variant(module: ModuleType, **changes: object) -> ModuleType:
    """A module like `module` but for some of its functions."""
    other = ModuleType(module.__name__)
    other.__dict__.update({**vars(module), **changes})
    return other


def watched_by_consan() -> bool:
    return triton.knobs.compilation.instrumentation_mode == "consan"


def prepare_for_consan() -> None:
    # With the ledger compiled in, stage 1's Hopper kernel was not ready after six minutes: here
    # the kernel of all other GPUs takes its place.
    anchor.anchor_launch = lambda q, *_: launch.anchor_launch_for(
        q.dtype, q.shape[-1], target_of(q), whole_rows=False
    )
    # It keeps its ledger in global memory.
    triton.set_allocator(lambda size, *_: torch.empty(size, device="cuda", dtype=torch.int8))
    sparse_hopper.async_copy = variant(async_copy, mbarrier_arrive=arrive_after_group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--control", choices=[*CONTROLS, "unwaited"], help="a fault to find")
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=list(CALLS))
    parser.add_argument("--but", choices=CALLS, help="a call to leave out")
    options = parser.parse_args()
    if lacks_cuda("anchor_verify.small_calls"):
        sys.exit(2)
    control = options.control
    if watched_by_consan():
        prepare_for_consan()
    if control == "unwaited":  # the Hopper kernel itself, and nobody waits for anybody
        sparse_hopper.mbarrier = variant(mbarrier, wait=go_on)
    if control in CONTROLS:
        CONTROLS[control]()
    else:
        for name in options.calls:
            if name != options.but:
                show(name, CALLS[name]())
    torch.cuda.synchronize()
    print("all calls done")


if __name__ == "__main__":
    main()
