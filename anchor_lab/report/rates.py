"""Coefficients of the cost model measured on the spot, in seconds: for a CPU, or another GPU.

The model is that of `anchor_models.integration.cost`, fitted as `crossover` fits it to a few calls
of each side on planted stripes; one length is held out and says how far the fit is off. Layers are
taken to do nothing else: what the host needs for the rest of a layer is 0.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from anchor_lab.experiments.crossover.fit import coefficients, digits, predicted
from anchor_models import anchor_attention, planted_stripes
from anchor_models.backend import TAIL
from anchor_models.integration import cost
from anchor_models.models import device_name
from anchor_ref.config import AnchorConfig

HEADS = 2  # of a call on a CPU, at most: work grows with them
LEAST_MARGIN = 0.1  # other programs run beside
# What a few calls can tell. On a CPU a call's fixed costs are small beside what it multiplies.
ANCHOR_WORK = ("rows", "products", "pooled", "tail")
DENSE_WORK = ("rows", "products")
ON_GPU_ALONE = ("call",)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        dense: lengths.
        anchor: (length, share of the candidates that is planted, tail).
        held_out: the length that judges the fit.
        repeats: rounds through all calls, after one to warm up; a call's fastest counts, since
            other programs come and go.
    """

    dense: tuple[int, ...]
    anchor: tuple[tuple[int, float, int], ...]
    held_out: int
    repeats: int


def _plan(*lengths: int, held_out: int, repeats: int) -> Plan:
    shares = (0.3, 0.02)
    cells = [(n, kept, 0) for n in lengths for kept in shares] + [(lengths[-1], 0.3, TAIL)]
    return Plan((*lengths, held_out), (*cells, (held_out, 0.3, TAIL)), held_out, repeats)


ON_CPU = _plan(2304, 4096, 6144, held_out=5120, repeats=3)
ON_GPU = _plan(4096, 8192, 32_768, held_out=16_384, repeats=5)


@torch.no_grad()
def measured_here(
    device: str | torch.device,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    plan: Plan | None = None,
) -> dict:
    """Coefficients for such heads on a device, see `anchor_models.integration.cost.Coefficients`.

    Args:
        device: a CPU, in float32; or a GPU, in bfloat16.
        q_heads, kv_heads, head_dim: Hq, Hkv, D of a layer. On a CPU fewer heads are measured.
        plan: None means that of the kind of device.

    Returns:
        `device`, `anchor`, `dense`, `margin`, `error`, `matrix_tflops`; `layer_host_ms` is 0,
        `layer_device_ms` and `kept` are empty: attention alone is judged.
    """
    device = torch.device(device)
    plan = plan or (ON_GPU if device.type == "cuda" else ON_CPU)
    if device.type != "cuda":
        shared = min(HEADS, max(1, q_heads // kv_heads))
        q_heads, kv_heads = shared * max(1, HEADS // shared), max(1, HEADS // shared)
    sizes = {"q_heads": q_heads, "kv_heads": kv_heads, "head_dim": head_dim}
    cells = [("dense", n, 0.05, 0) for n in plan.dense]
    cells += [("anchor", *cell) for cell in plan.anchor]
    calls = [_call(*cell, sizes, device) for cell in cells]
    rows = [
        {"way": way, **sizes, "queries": n, "keys": n, "kept": kept, "tail": tail}
        | {"ms": {"median": fastest}}
        for (way, n, kept, tail), fastest in zip(
            cells, _fastest_ms(calls, device, plan.repeats), strict=True
        )
    ]
    found: dict = {"device": _name(device), "layer_host_ms": 0.0, "host_busy": 1.0, "kept": {}}
    found["layer_device_ms"] = {}
    judges = [row for row in rows if row["keys"] == plan.held_out]
    fixed = ON_GPU_ALONE if device.type == "cuda" else ()
    for way, names in (("anchor", fixed + ANCHOR_WORK), ("dense", fixed + DENSE_WORK)):
        fitted = [row for row in rows if row["way"] == way and row not in judges]
        found[way] = {"host_ms": 0.0, "device_ms": coefficients(fitted, names)}
    # Above 1: it took longer than was expected.
    wrong = {row["way"]: row["ms"]["median"] / predicted(row, found) for row in judges}
    found["error"] = digits(max(abs(1 / x - 1) for x in wrong.values()))
    found["margin"] = digits(max(LEAST_MARGIN, wrong["anchor"] / wrong["dense"] - 1))
    found["matrix_tflops"] = digits(_matrix_tflops(device, plan.repeats))
    return found


def _call(
    way: str, n: int, kept: float, tail: int, sizes: dict, device: torch.device
) -> Callable[[], Tensor]:
    """One layer's attention as a model calls it."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = planted_stripes(n, **sizes, density=kept, dtype=dtype, device=device)
    config = AnchorConfig(tail=tail)
    shared = sizes["q_heads"] // sizes["kv_heads"]

    def dense() -> Tensor:
        k, v = (part.repeat_interleave(shared, 1) for part in (x.k, x.v))
        return scaled_dot_product_attention(x.q, k, v, is_causal=True)

    return dense if way == "dense" else lambda: anchor_attention(x.q, x.k, x.v, config)


def _fastest_ms(
    calls: Sequence[Callable[[], object]], device: torch.device, repeats: int
) -> list[float]:
    rounds = [[_ms(call, device) for call in calls] for _ in range(1 + repeats)]
    return [min(taken) for taken in zip(*rounds[1:], strict=True)]


def _ms(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return (time.perf_counter() - started) * 1e3


def _matrix_tflops(device: torch.device, repeats: int) -> float:
    wide = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(wide, wide, dtype=dtype, device=device)
    (fastest,) = _fastest_ms([lambda: x @ x], device, repeats)
    return 2 * wide**3 / fastest / 1e9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    name = device_name(device)
    return name if device.type == "cuda" else f"{name}, {torch.get_num_threads()} threads"


def known_here(device: str | torch.device, **sizes: int) -> list[dict]:
    """Coefficients of this device, fitted before or now, and of the GPU that the project measured.

    Args:
        device: that the question is about; its coefficients come first.
        sizes: `q_heads`, `kv_heads`, `head_dim` of a layer.
    """
    device = torch.device(device)
    fitted = cost.fitted_for(device) if device.type == "cuda" else None
    if fitted is not None:
        return [fitted.values]
    here = measured_here(device, **sizes)
    return [here, cost.read_values()] if cost.FILE.exists() else [here]
