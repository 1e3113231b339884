"""The one place that refuses what attention cannot be computed from."""

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor

from anchor_ref.plan import StripePlan

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
        cu_seqlens: `[n_sequences + 1]` int32 or int64, on q's device or the CPU, with B = 1 and
            Nq = Nk; see `regions`.
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
        check_cu_seqlens(cu_seqlens, q.shape[2], k.shape[2])
        if q.shape[0] != 1:
            raise ValueError(f"cu_seqlens needs a batch of 1, got q of shape {tuple(q.shape)}")
        if cu_seqlens.device not in (q.device, torch.device("cpu")):
            raise ValueError(
                f"cu_seqlens must be on q's device {q.device} or the CPU, got {cu_seqlens.device}"
            )
    if scale is None:
        return q.shape[-1] ** -0.5
    if not isinstance(scale, Real) or isinstance(scale, bool):
        raise TypeError(f"scale must be a number or None, got {type(scale).__name__}")
    try:
        number = float(scale)
    except OverflowError:  # an int of 309 digits
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"scale must be finite, got {scale}")
    return number


def check_cu_seqlens(cu_seqlens: Tensor, n_queries: int, n_keys: int) -> list[int]:
    """Refuse what does not bound packed sequences: 0 = c_0 <= c_1 <= ... = Nq = Nk.

    Returns:
        The boundaries.

    Raises:
        TypeError: not an int32 or int64 tensor.
        ValueError: not one dimension of at least 2 entries, not rising from 0 to the number of
            tokens, or queries and keys differ in number.
    """
    check_type("cu_seqlens", cu_seqlens, Tensor)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            "cu_seqlens must have one dimension and at least 2 entries, "
            f"got shape {tuple(cu_seqlens.shape)}"
        )
    if n_queries != n_keys:
        raise ValueError(
            f"cu_seqlens needs as many queries as keys, got {n_queries} queries and {n_keys} keys"
        )
    bounds = cu_seqlens.tolist()
    rising = all(a <= b for a, b in pairwise(bounds))
    if bounds[0] != 0 or bounds[-1] != n_keys or not rising:
        raise ValueError(
            f"cu_seqlens must rise from 0 to the number of tokens {n_keys}, got {bounds}"
        )
    return bounds


def check_compute_dtype(asked: torch.dtype | None, given: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float32 or float64, never narrower than the inputs' `given`.

    Raises:
        ValueError: `asked` is another dtype or narrower.
    """
    least = torch.promote_types(given, torch.float32)
    if asked is None:
        return least
    if asked not in (torch.float32, torch.float64) or torch.promote_types(asked, least) != asked:
        raise ValueError(
            f"compute_dtype must be torch.float32 or torch.float64 and at least as wide as the "
            f"inputs' {given}, got {asked}"
        )
    return asked


def check_type(name: str, value: object, expected: type) -> None:
    """Refuse a value of another type with a TypeError that names the argument."""
    if not isinstance(value, expected):
        raise TypeError(f"{name} must be of type {expected.__name__}, got {type(value).__name__}")


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    """Refuse a tensor that one stage hands to the next and that does not fit the queries.

    Args:
        name: what the message calls it.
        tensor: the tensor in question.
        shape: the only shape allowed.
        dtypes: the dtypes allowed.
        device: the only device allowed.

    Raises:
        TypeError: it is no tensor or has another dtype.
        ValueError: it has another shape or device.
    """
    check_type(name, tensor, Tensor)
    if tensor.dtype not in dtypes:
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be {allowed}, got {tensor.dtype}")
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on device {device}, got {tensor.device}")


def check_plan(stripes: StripePlan, candidates: Sequence[range], q: Tensor | None = None) -> None:
    """Refuse a plan that does not list candidates of each group, each once, in ascending order.

    Any other key would count twice or look ahead. The work is a few passes over the indices and
    no loop over keys or groups.

    Args:
        stripes: the plan in question.
        candidates: those of each group, as `regions.groups` has them.
        q: queries that the plan has to fit, `[B, Hq, Nq, D]`; None when there are none.

    Raises:
        TypeError: the plan, or a tensor of it, has the wrong type or dtype.
        ValueError: shapes or devices do not fit, offsets are not the sums of the counts before
            them, or a list is not made of ascending candidates: the first such is named.
    """
    check_type("stripes", stripes, StripePlan)
    counts, offsets, indices = stripes.counts, stripes.offsets, stripes.indices
    check_type("stripes.counts", counts, Tensor)
    heads = counts.shape[:2] if q is None else q.shape[:2]
    if counts.ndim != 3 or counts.shape != (*heads, len(candidates)):
        raise ValueError(
            "stripes must have one list for each (batch, head, group) "
            f"{(*heads, len(candidates))}, got counts of shape {tuple(counts.shape)}"
        )
    device = counts.device if q is None else q.device
    check_tensor("stripes.counts", counts, counts.shape, (torch.int32,), device)
    check_tensor("stripes.offsets", offsets, counts.shape, (torch.int64,), device)
    starts, sizes = offsets.flatten(), counts.flatten().long()
    ends = sizes.cumsum(0)
    bad_lists = (sizes < 0) | (starts != ends - sizes)
    if bool(bad_lists.any()):
        at = int(bad_lists.int().argmax())
        raise ValueError(
            f"stripes of {_place(at, counts)} must have a count of at least 0 and start where the "
            f"list before ends, got count {int(sizes[at])} and offset {int(starts[at])}"
        )
    check_tensor("stripes.indices", indices, (int(sizes.sum()),), (torch.int32,), device)
    bad = _first_bad_index(indices, starts, ends, candidates)
    if bad is not None:
        at = int((ends <= bad).sum())
        allowed = candidates[at % len(candidates)]
        raise ValueError(
            f"stripes of {_place(at, counts)} must be candidates of the group, keys in "
            f"[{allowed.start}, {allowed.stop}), ascending, each once; "
            f"got key {int(indices[bad])} at indices[{bad}]"
        )


def _place(at: int, counts: Tensor) -> str:
    """Which list is the one of this number."""
    heads, groups = counts.shape[1:]
    return f"batch {at // groups // heads}, head {at // groups % heads}, group {at % groups}"


def _first_bad_index(
    indices: Tensor, starts: Tensor, ends: Tensor, candidates: Sequence[range]
) -> int | None:
    """Where a key is not above the one before it in its list, or not a candidate."""
    full = ends > starts
    bounds = torch.tensor([(c.start, c.stop) for c in candidates], device=indices.device)
    bounds = bounds.repeat(len(starts) // len(candidates), 1)[full]  # [lists, 2]
    first, last = starts[full], ends[full] - 1
    bad = torch.zeros_like(indices, dtype=torch.bool)
    bad[1:] = indices[1:] <= indices[:-1]
    # In an ascending list the first and the last key answer for all others.
    bad[first] = indices[first] < bounds[:, 0]
    bad[last] |= indices[last] >= bounds[:, 1]
    return int(bad.int().argmax()) if bool(bad.any()) else None


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
