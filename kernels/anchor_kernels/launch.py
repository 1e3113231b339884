"""Tile sizes of each kernel: for a dtype, a head size and a target.

Chosen by measurement where a device was at hand (`kernels/LOG.md`), elsewhere by what the
compiler says: no spills, and shared memory within the target's limit
(`results/verify/compile_report.md`). Plain functions, not an autotuner: the same call always runs
the same code, also in the interpreter.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from anchor_kernels.support import interpreted, target_of

HOPPER_ROWS = 64  # of a consumer: what one matrix instruction multiplies
HOPPER_CONSUMERS = 3


@dataclass(frozen=True)
class AttentionLaunch:
    """Stages 1 and 3: tiles of `block_m` queries times `block_n` keys.

    `max_registers` a thread, where it lets two programs share a multiprocessor: while one waits
    for its products, the other does its exponentials. `again_stages` for tiles that are done once
    more with a running maximum, where the compiler can do without `num_stages`.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None
    again_stages: int | None = None

    def options(self, online: bool) -> dict:
        """What Triton is told beside a kernel's arguments."""
        stages = self.again_stages if online and self.again_stages else self.num_stages
        registers = None if online else self.max_registers
        return {"num_warps": self.num_warps, "num_stages": stages, "maxnreg": registers}


@dataclass(frozen=True)
class AnchorHopperLaunch:
    """Stage 1 on Hopper: two consumers of 64 queries each and a producer (`anchor_hopper`).

    `num_stages` buffers of `block_n` keys. Registers a thread: of the whole program as it starts,
    then of each kind of warp. `again` is how tiles of the same 128 queries are done once more.
    """

    block_n: int
    num_stages: int
    max_registers: int
    consumer_registers: int
    producer_registers: int
    again: AttentionLaunch

    def __post_init__(self):
        if self.again.block_m != self.block_m:
            raise ValueError(f"again must have block_m = {self.block_m}, got {self.again}")

    @property
    def block_m(self) -> int:
        return 2 * HOPPER_ROWS


@dataclass(frozen=True)
class HopperLaunch:
    """Stage 3 on Hopper: consumers of 64 queries each and a producer (`sparse_hopper`).

    Registers a thread: of the whole program as it starts, then of each kind of warp. `again` is
    how tiles of the same 64 queries are done once more.
    """

    block_n: int
    num_stages: int
    max_registers: int
    consumer_registers: int
    producer_registers: int
    again: AttentionLaunch

    def __post_init__(self):
        if self.again.block_m != HOPPER_ROWS:
            raise ValueError(f"again must have block_m = {HOPPER_ROWS}, got {self.again}")

    @property
    def block_m(self) -> int:
        return HOPPER_ROWS


@dataclass(frozen=True)
class SelectLaunch:
    """Stage 2: `rows` pooled queries times `block_n` keys, over `chunk` keys by one program.

    `rows`, a power of two and at least 16: groups, times query heads that share keys, times
    blocks. The candidates of short prompts are cut into shorter chunks (`tables.chunks_of`).
    `held`: the most rows asked of a block that stay in shared memory.
    """

    rows: int
    block_n: int
    chunk: int
    num_warps: int
    num_stages: int
    held: int = 0

    def __post_init__(self):
        if self.rows < 16 or self.rows & (self.rows - 1):  # what matrix instructions take
            raise ValueError(f"rows must be a power of two, at least 16, got {self.rows}")
        # A chunk is whole tiles, a tile whole words of 32 decisions.
        if self.block_n % 32 or self.chunk % self.block_n:
            raise ValueError(
                "block_n must be a multiple of 32 and chunk one of block_n, "
                f"got block_n = {self.block_n} and chunk = {self.chunk}"
            )


def padded_head_dim(head_dim: int) -> int:
    """The power of two, at least 16, in which a head of any size finds room."""
    return max(16, triton.next_power_of_2(head_dim))


def anchor_launch(*tensors: Tensor) -> AttentionLaunch | AnchorHopperLaunch:
    """Tiles of stage 1 for the dtype, head size, memory and device of q, k, v and the output."""
    q = tensors[0]
    # The copy engine takes rows in one piece, and no two at one address.
    rows = not interpreted() and all(has_whole_rows(x) and 0 not in x.stride() for x in tensors)
    return anchor_launch_for(q.dtype, q.shape[-1], target_of(q), rows)


def sparse_launch(*tensors: Tensor) -> AttentionLaunch | HopperLaunch:
    """Tiles of stage 3 for the dtype, head size, memory and device of what it reads and writes."""
    q = tensors[0]
    rows = not interpreted() and all(has_whole_rows(x) for x in tensors)
    return sparse_launch_for(q.dtype, q.shape[-1], target_of(q), rows)


def select_launch(q: Tensor, asked: bool = False) -> SelectLaunch:
    """Tiles of stage 2 for q's dtype, head size and device; other ones where rows are asked."""
    return select_launch_for(q.dtype, q.shape[-1], target_of(q), asked)


def anchor_launch_for(
    dtype: torch.dtype, head_dim: int, target: GPUTarget, whole_rows: bool = True
) -> AttentionLaunch | AnchorHopperLaunch:
    """Tiles of stage 1."""
    again = _attention_launch(dtype, head_dim, target)
    if whole_rows and _has_hopper_kernels(dtype, head_dim, target):
        return AnchorHopperLaunch(128, 2 if head_dim == 128 else 4, 168, 224, 56, again)
    return again


def _has_hopper_kernels(dtype: torch.dtype, head_dim: int, target: GPUTarget) -> bool:
    hopper = target.backend == "cuda" and target.arch == 90
    return hopper and dtype != torch.float32 and head_dim in (64, 128)


def sparse_launch_for(
    dtype: torch.dtype, head_dim: int, target: GPUTarget, whole_rows: bool = True
) -> AttentionLaunch | HopperLaunch:
    """Tiles of stage 3; apart from Hopper those of stage 1, on every target that was looked at."""
    if whole_rows and _has_hopper_kernels(dtype, head_dim, target):
        return HopperLaunch(64, 4, 128, 152, 56, AttentionLaunch(64, 32, 4, 2))
    return _attention_launch(dtype, head_dim, target)


def chosen_launch(launch, shipped):
    """`launch`, or without one what is shipped for these tensors.

    Raises:
        ValueError: it is for a Hopper GPU and rows that lie in one piece, and these do not.
    """
    hoppers = AnchorHopperLaunch, HopperLaunch
    if isinstance(launch, hoppers) and not isinstance(shipped, hoppers):
        raise ValueError(
            "launch must be an AttentionLaunch but on a Hopper GPU with half-precision heads of "
            f"64 or 128 whose rows lie in one piece, got {launch}"
        )
    return launch or shipped


def has_whole_rows(x: Tensor) -> bool:
    """Does each row lie in one piece, on a boundary of 16 bytes? Then it can be copied so."""
    # Strides are in elements: multiples of 16 of them are multiples of 16 bytes in every dtype.
    return x.stride(-1) == 1 and all(n % 16 == 0 for n in (x.data_ptr(), *x.stride()[:-1]))


def select_launch_for(
    dtype: torch.dtype, head_dim: int, target: GPUTarget, asked: bool = False
) -> SelectLaunch:
    """Tiles of stage 2, of `asked` rows or of means alone."""
    width = padded_head_dim(head_dim)
    nvidia = target.backend == "cuda"
    if dtype == torch.float32:
        small = asked and nvidia and target.arch < 90
        return SelectLaunch(16, 32, 4096, 2, 1) if small else SelectLaunch(32, 32, 4096, 4, 1)
    if nvidia and target.arch >= 90:
        if not asked:
            return SelectLaunch(64, 128 if width <= 128 else 64, 4096, 4, 2)
        if width <= 128:
            held = 8 if width <= 64 and target.arch == 90 else 4
            return SelectLaunch(64, 64, 4096, 4, 2, held)
        return SelectLaunch(64, 64, 4096, 8, 2)
    if nvidia and asked:
        return SelectLaunch(32, 64, 4096, 4, 2, 4)
    if width <= 128:
        return SelectLaunch(64, 64, 4096, 4, 2)
    return SelectLaunch(32, 32, 4096, 4, 2)


def _attention_launch(dtype: torch.dtype, head_dim: int, target: GPUTarget) -> AttentionLaunch:
    width = padded_head_dim(head_dim)
    if dtype == torch.float32:
        # For verification: products on plain arithmetic units, all operands in reach.
        return AttentionLaunch(16, 32, 4 if width <= 64 or target.backend == "hip" else 8, 1)
    if target.backend == "hip":  # 64 KiB to share
        return AttentionLaunch(128, 64, 4, 1) if width <= 128 else AttentionLaunch(64, 32, 4, 1)
    if width > 128:
        return (
            AttentionLaunch(64, 64, 8, 2, again_stages=1)
            if target.arch >= 90
            else AttentionLaunch(64, 32, 8, 2)
        )
    padded = head_dim < width  # masks of the loads take registers
    if target.arch < 90:
        return AttentionLaunch(128, 32 if padded else 64, 8, 2)
    return AttentionLaunch(128, 32, 8, 3, None if padded or target.arch != 90 else 128)
