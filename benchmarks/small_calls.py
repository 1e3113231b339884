"""Every way through the kernels on small inputs, for a tool that watches each memory access.

    compute-sanitizer --tool memcheck python -m benchmarks.small_calls
    compute-sanitizer --tool memcheck python -m benchmarks.small_calls --plant    must find it

`benchmarks.gpu_report` runs both. With PYTORCH_NO_CUDA_MEMORY_CACHING=1 each tensor is an
allocation of its own, so that an access beyond its end is one beyond an allocation's.
"""

import argparse
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from anchor_kernels import anchor_attention
from anchor_ref.config import AnchorConfig

CONFIG = AnchorConfig(block_size=64, step=4, theta=2.5)
BOUNDS = (0, 1, 300, 300, 700)
# Name: queries, keys, query heads, kv heads, D, dtype, θ.
CALLS = {
    "ragged": (700, 700, 4, 1, 128, torch.bfloat16, 2.5),
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


def call_all() -> None:
    """All calls, each checked for being finite."""
    for name, (*sizes, theta) in CALLS.items():
        q, k, v = inputs(*sizes)
        config = AnchorConfig(CONFIG.block_size, CONFIG.step, theta)
        show(name, anchor_attention(q, k, v, config))
    q, k, v = inputs(700, 700, 4, 1, 128, torch.bfloat16)
    show("packed", anchor_attention(q, k, v, CONFIG, None, torch.tensor(BOUNDS)))
    show("contiguous", anchor_attention(*(x.contiguous() for x in (q, k, v)), CONFIG))
    # A stripe that outweighs all that stage 1 saw: its tiles are done again.
    q[..., 0], k[:, :, 100, 0] = 30.0, 30.0
    show("done again", anchor_attention(q, k, v, CONFIG))


def show(name: str, out: Tensor) -> None:
    if not out.isfinite().all():
        raise SystemExit(f"{name}: the output is not finite")
    print(f"{name}: {tuple(out.shape)} {out.dtype}", flush=True)


@triton.jit
def stray_kernel(x, at):
    """A store beyond the end of x, for the tool to find."""
    tl.store(x + at, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plant", action="store_true", help="only one store out of bounds")
    if parser.parse_args().plant:
        stray_kernel[(1,)](torch.zeros(64, device="cuda"), 64)
        torch.cuda.synchronize()
    else:
        call_all()
        print("all calls done")


if __name__ == "__main__":
    main()
