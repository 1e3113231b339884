"""What the two kernels for Hopper GPUs share, `anchor_hopper` and `sparse_hopper`."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from anchor_kernels.launch import HOPPER_ROWS

ROWS = gl.constexpr(HOPPER_ROWS)  # of a consumer
WARPS = gl.constexpr(4)  # of a consumer
LOG2E = gl.constexpr(1.4426950408889634)


@gluon.constexpr_function
def rows_of(head_dim):
    """A row of `[N, D]` by neighbouring threads, 16 bytes each."""
    threads = head_dim // 8
    return gl.BlockedLayout([1, 8], [32 // threads, threads], [WARPS.value, 1], [1, 0])
