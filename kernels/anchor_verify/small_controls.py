"""Kernels with a fault, and two without: what does a tool see?

store       writes beyond the end of a tensor
unwritten   reads a tensor that nobody wrote
copy        reads shared memory that a copy on its way has not yet filled
race        some warps read what others write, and do not wait for it
handover    the same with the wait, so without a fault
cudnn       NVIDIA's attention, and its output read: without a fault, too
"""

from functools import partial

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

N = 128  # elements that one program handles


@triton.jit
def store_kernel(x, at):
    tl.store(x + at, 1.0)


@triton.jit
def read_kernel(x, y):
    tl.store(y, tl.load(x))


@gluon.jit
def copy_kernel(x, n: gl.constexpr):
    shared = gl.allocate_shared_memory(gl.float32, [n], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    at = gl.arange(0, n, gl.BlockedLayout([1], [32], [4], [0]))
    async_copy.async_copy_global_to_shared(shared, x + at)
    async_copy.commit_group()
    # The fault: no `wait_group(0)`. Each thread reads what another one copies.
    other: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
    gl.store(x + n + gl.arange(0, n, other), shared.load(other))


@gluon.jit
def write(x, shared, written, n: gl.constexpr):
    """The warps that write what the others read."""
    shared.store(gl.load(x + gl.arange(0, n, gl.BlockedLayout([1], [32], [4], [0]))))
    mbarrier.arrive(written, count=1)


@gluon.jit
def read(x, shared, written, n: gl.constexpr, PART: gl.constexpr, WAIT: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    if WAIT:
        mbarrier.wait(written, 0)
    gl.store(x + PART * n + gl.arange(0, n, layout), shared.load(layout))


@gluon.jit
def parts_kernel(x, n: gl.constexpr, WAIT: gl.constexpr):
    """Warps with a task each, as in `sparse_hopper`."""
    shared = gl.allocate_shared_memory(gl.float32, [n], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    written = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(written, count=1)
    gl.warp_specialize(
        [
            (write, (x, shared, written, n)),
            (read, (x, shared, written, n, 1, WAIT)),
            (read, (x, shared, written, n, 2, WAIT)),
        ],
        [4, 4],
        [48, 48],
    )


def store() -> None:
    x = torch.zeros(N, device="cuda")
    store_kernel[(1,)](x, N)


def unwritten() -> None:
    x, y = (torch.empty(N, device="cuda") for _ in range(2))
    read_kernel[(1,)](x, y)


def copy() -> None:
    copy_kernel[(8,)](torch.zeros(2 * N, device="cuda"), N, num_warps=4)


def parts(wait: bool) -> None:
    parts_kernel[(8,)](torch.zeros(3 * N, device="cuda"), N, wait, num_warps=4)


def cudnn() -> None:
    x = torch.randn(1, 1, N, N, device="cuda", dtype=torch.bfloat16)
    out, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(x, x, x, None, True)
    read_kernel[(1,)](out, torch.zeros_like(x))


CONTROLS = {
    "cudnn": cudnn,
    "store": store,
    "unwritten": unwritten,
    "copy": copy,
    "race": partial(parts, wait=False),
    "handover": partial(parts, wait=True),
}
