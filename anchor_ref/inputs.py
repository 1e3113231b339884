"""The one place that refuses what attention cannot be computed from."""

import math
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor

INPUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    dtypes: tuple[torch.dtype, ...] = INPUT_DTYPES,
) -> float:
    """Refuse inputs that do not fit together; nothing is cast, moved or cut to make them fit.

    Args:
        q: queries, `[B, Hq, Nq, D]`.
        k: keys, `[B, Hkv, Nk, D]`, Nk >= Nq >= 1, Hq a multiple of Hkv; q's dtype and device.
        v: values, k's shape, dtype and device; None for a stage that reads no values.
        scale: factor of q·k, a finite number; None means 1/sqrt(D).
        cu_seqlens: `[n_sequences + 1]` int32 or int64, on q's device or the CPU; see `regions`.
        dtypes: the dtypes that the caller can work with.

    Returns:
        The scale to use.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or value does not fit.
    """
    tensors = {"q": q, "k": k} | ({} if v is None else {"v": v})
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} must have 4 dimensions (batch, heads, tokens, head_dim), "
                f"got shape {tuple(tensor.shape)}"
            )
        if tensor.dtype not in dtypes:
            allowed = ", ".join(str(dtype) for dtype in dtypes)
            raise TypeError(f"{name} must have one of the dtypes {allowed}, got {tensor.dtype}")
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} must have q's dtype {q.dtype}, got {tensor.dtype}")
        if tensor.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, got {tensor.device}")
        if 0 in tensor.shape:
            raise ValueError(
                f"{name} must have at least one element in each dimension, "
                f"got shape {tuple(tensor.shape)}"
            )
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} must not require a gradient: only the forward pass exists; "
                "call it under torch.no_grad()"
            )
    _check_shapes(q, k, v)
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, q, k)
    if scale is None:
        return q.shape[-1] ** -0.5
    if not isinstance(scale, Real) or isinstance(scale, bool):
        raise TypeError(f"scale must be a number or None, got {type(scale).__name__}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    return float(scale)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor | None) -> None:
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"k must have q's batch size {q.shape[0]}, got {k.shape[0]}")
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"k must have q's head_dim {q.shape[3]}, got {k.shape[3]}")
    if v is not None and v.shape != k.shape:
        raise ValueError(f"v must have k's shape {tuple(k.shape)}, got {tuple(v.shape)}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q must have a multiple of k's {k.shape[1]} heads, got {q.shape[1]} query heads"
        )
    if q.shape[2] > k.shape[2]:
        raise ValueError(
            f"q must have at most as many tokens as k ({k.shape[2]}), since the queries are the "
            f"last tokens; got {q.shape[2]}"
        )


def _check_cu_seqlens(cu_seqlens: Tensor, q: Tensor, k: Tensor) -> None:
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        got = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise TypeError(f"cu_seqlens must be an int32 or int64 tensor, got {got}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            "cu_seqlens must have one dimension and at least 2 entries, "
            f"got shape {tuple(cu_seqlens.shape)}"
        )
    if cu_seqlens.device not in (q.device, torch.device("cpu")):
        raise ValueError(
            f"cu_seqlens must be on q's device {q.device} or the CPU, got {cu_seqlens.device}"
        )
    if q.shape[0] != 1 or q.shape[2] != k.shape[2]:
        raise ValueError(
            "cu_seqlens needs a batch of 1 and as many queries as keys, "
            f"got q {tuple(q.shape)} and k {tuple(k.shape)}"
        )
    bounds = cu_seqlens.tolist()
    rising = all(a <= b for a, b in pairwise(bounds))
    if bounds[0] != 0 or bounds[-1] != q.shape[2] or not rising:
        raise ValueError(
            f"cu_seqlens must rise from 0 to the number of tokens {q.shape[2]}, got {bounds}"
        )
