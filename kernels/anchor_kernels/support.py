"""What the kernels can run on, and clear words where they cannot."""

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_inputs

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 256
# Kernels take maxima over q·k, a score divided by the scale: it must be a float32 all the same.
SMALLEST_SCALE = 2.0**-80


class UnsupportedError(RuntimeError):
    """The kernels cannot run on these inputs here; the reference in `anchor_ref` can."""


def why_unsupported(q: Tensor) -> str | None:
    """What keeps the kernels from running on inputs like q; None when nothing does."""
    if q.dtype not in DTYPES:
        return f"q must be float16, bfloat16 or float32, got {q.dtype}"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"head_dim must be at most {MAX_HEAD_DIM}, got {q.shape[-1]}"
    if interpreted():
        # The interpreter computes with NumPy, which knows no bfloat16: wrong numbers, no error.
        if q.dtype == torch.bfloat16:
            return "Triton's interpreter does not compute in bfloat16, use float16 or float32"
        return None
    if not q.is_cuda:
        return (
            f"q must be on a GPU, got {q.device}; "
            "TRITON_INTERPRET=1, set before Triton is imported, runs the kernels on a CPU, slowly"
        )
    if torch.version.hip is None and torch.cuda.get_device_capability(q.device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(q.device)
        return f"the GPU must have compute capability 8.0 or later, got {major}.{minor}"
    return None


def why_no_outliers(config: AnchorConfig) -> str | None:
    """What keeps stage 2's kernels from choosing with this config; None when nothing does."""
    if config.outliers and config.outlier_choice != "even":
        return (
            f"outlier_choice must be 'even', got {config.outlier_choice!r} with outliers = "
            f"{config.outliers}: only the reference looks for the rows to ask"
        )
    return None


def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    scale: float | None,
    cu_seqlens: Tensor | None,
    config: AnchorConfig | None = None,
) -> float:
    """Refuse what does not fit together or cannot run here.

    Args:
        config: of a call that chooses stripes; None for one that does not.

    Returns:
        The scale to use.

    Raises:
        TypeError, ValueError: see `anchor_ref.inputs.check_inputs`.
        UnsupportedError: the inputs are sound, but the kernels cannot take them here.
    """
    scale = check_inputs(q, k, v, scale, cu_seqlens)
    reason = why_unsupported(q)
    if reason is None and config is not None:
        reason = why_no_outliers(config)
    if reason is None and 0 < abs(scale) < SMALLEST_SCALE:
        reason = f"scale must be 0 or at least {SMALLEST_SCALE:.1e} in size, got {scale}"
    if reason is not None:
        raise UnsupportedError(f"anchor_kernels cannot run: {reason}")
    return scale


def interpreted() -> bool:
    """Does Triton interpret kernels, on the CPU, in place of compiling them?"""
    return triton.knobs.runtime.interpret


def target_of(q: Tensor) -> GPUTarget:
    """The GPU that q is on. The interpreter has none and takes what is shipped for sm_90."""
    if interpreted():
        return GPUTarget("cuda", 90, 32)
    with torch.cuda.device_of(q):
        return triton.runtime.driver.active.get_current_target()


def multiprocessors(q: Tensor) -> int:
    """How many programs can run beside each other on q's GPU, if each fills a multiprocessor."""
    return torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1


def again_programs(q: Tensor, tiles: int, hopper: bool) -> int:
    """How many programs look for tiles that are to be done again; most often there are none.

    To start a program for each of tens of thousands of tiles takes 0.1 ms. But a program that
    goes from tile to tile needs more registers, and there is room for them on Hopper GPUs alone,
    where the tiles of this rare way are small.
    """
    return min(tiles, 4 * multiprocessors(q)) if hopper else tiles
