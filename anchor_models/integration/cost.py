"""Is AnchorAttention expected to be faster than dense attention, by times that were measured?

A layer is expected to take as long as the host needs to issue it, or the device to compute it,
whichever is longer. Both have more to do than attention:

    t = max(host + the host's rest of the layer, Σ coefficient · work + the device's rest)

A host that is busy with something else takes longer, and AnchorAttention asks more of it than
dense attention does: a gain must be one with such a host, too.

Work is counted from the method's own definition (`anchor_ref.regions`), in 10⁹: elements of q; the
products and the scores of the pairs of stage 1, of stage 3 and of the tail; the products of stage
2. The rest of a layer goes over elements of q, Hq · D a token, and multiplies with matrices of
about (Hq · D)²: attention does not see how wide they are. How many candidates stage 3 gets is not
known before, so a real model's share is assumed: it falls with the length and with θ.

The coefficients lie in `cost.json`, which `python -m anchor_lab crossover` writes and nobody else.
They hold for GPUs of one generation and for half precision. For everything else, and where there
is no such file, nothing is expected. The report on a model (`anchor_lab.report.forecast`) asks the
same model, also with coefficients that were measured on the spot.
"""

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.regions import causal_pairs, groups

FILE = Path(__file__).with_name("cost.json")
GIGA = 1e9
DTYPES = (torch.float16, torch.bfloat16)
# What is counted of a call, and what its coefficients in the file are called: ms for each 10⁹.
ANCHOR_WORK = ("call", "rows", "products", "scores", "pooled", "tail")
DENSE_WORK = ("call", "rows", "products", "scores")
LAYER_WORK = ("rows", "squares")  # of the rest of a layer


class Shape(NamedTuple):
    """Sizes of one call: B, Hq, Hkv, Nq, Nk, D."""

    batch: int
    q_heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int


@dataclass(frozen=True)
class Expected:
    """What a whole layer is expected to take, ms.

    Attributes:
        anchor: with AnchorAttention.
        dense: with dense attention.
        gain: is AnchorAttention faster by more than the expectation may err?
        device: where the times were measured.
    """

    anchor: float
    dense: float
    gain: bool
    device: str

    @property
    def speedup(self) -> float:
        """How many times as fast as dense attention."""
        return self.dense / self.anchor

    def __str__(self) -> str:
        return (
            f"a layer is expected to take {self.anchor:.3g} ms with AnchorAttention and "
            f"{self.dense:.3g} ms dense, by times on {self.device}"
        )


def expected(
    q: Tensor, k: Tensor, config: AnchorConfig, thetas: tuple[float, ...]
) -> Expected | None:
    """What to expect of a call on such tensors; None where nothing was measured to tell.

    Takes microseconds, and never waits for the device: it is asked in every layer.

    Args:
        q, k: `[B, Hq, Nq, D]` and `[B, Hkv, Nk, D]`; sizes, dtype and device are looked at.
        config: sizes and tail; its own θ plays no part.
        thetas: one for all query heads, or one for each.
    """
    if not q.is_cuda or q.dtype not in DTYPES:
        return None
    coefficients = fitted_for(q.device)
    if coefficients is None:
        return None
    batch, q_heads, queries, head_dim = q.shape
    shape = Shape(batch, q_heads, k.shape[1], queries, k.shape[2], head_dim)
    return _expected(coefficients, shape, config, thetas)


@cache
def fitted_for(device: torch.device) -> "Coefficients | None":
    """The coefficients for a CUDA device; None where they are of another generation or missing."""
    if torch.version.hip is not None or not FILE.exists():
        return None
    found = Coefficients(json.loads(FILE.read_text(encoding="utf-8")))
    generation, _ = torch.cuda.get_device_capability(device)
    return found if generation == found.values["generation"] else None


def read_values(path: str | Path | None = None) -> dict:
    """The coefficients of a file, see `Coefficients`; None means the project's own, `FILE`.

    Raises:
        OSError: there is no such file.
        ValueError: it holds something else.
    """
    try:
        found = json.loads((FILE if path is None else Path(path)).read_text(encoding="utf-8"))
        expected_at(found, Shape(1, 1, 1, 4096, 4096, 64), AnchorConfig(), 0.5)
        found["dense"]["device_ms"]
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise ValueError(
            "rates must be a file of `python -m anchor_lab.experiments.crossover.fit`, "
            f"got {path}: {problem!r}"
        ) from None
    return found


class Coefficients:
    """What `cost.json` holds; equal to itself alone, so that a cache may ask quickly.

    Attributes:
        values: `device`, a name; `generation`, of its compute capability; `layer_host_ms` and
            `layer_device_ms`, by `LAYER_WORK`, of a layer beside its attention; `host_busy`, how
            many times as long as usual the host takes in one prefill of ten; `margin`, by how much
            an expectation may err; `kept`, by θ: the `share` of the candidates at `tokens` and the
            `exponent` of the length; and for `anchor`, `dense` and `masked`: `host_ms` and
            `device_ms`, by work.
            There may be `error`, the relative one of a side's time that nine of ten calls stay
            below, and `matrix_tflops`, the rate of a large matrix product.
    """

    def __init__(self, values: dict):
        self.values = values


@lru_cache(maxsize=4096)
def _expected(
    coefficients: Coefficients, shape: Shape, config: AnchorConfig, thetas: tuple[float, ...]
) -> Expected | None:
    values = coefficients.values
    share = sum(kept_share(values["kept"], theta, shape.keys) for theta in thetas) / len(thetas)
    return expected_at(values, shape, config, share)


def expected_at(values: dict, shape: Shape, config: AnchorConfig, share: float) -> Expected | None:
    """What to expect of a call that keeps this share of its candidates; None as in `expected`.

    Args:
        values: see `Coefficients`.
        shape: of the call.
        config: sizes and tail; its own θ plays no part.
        share: from 0 to 1.
    """
    # Queries that are not all keys, a chunk, need a mask: other kernels.
    way = "dense" if shape.queries == shape.keys else "masked"
    if way not in values:
        return None
    rest = device_ms(values["layer_device_ms"], layer_work(shape))
    work = {"anchor": anchor_work(shape, config, share), way: dense_work(shape)}

    def both(busy: float) -> list[float]:
        return [layer_ms(values, *side, rest, busy) for side in work.items()]

    gain = all(
        anchor * (1 + values["margin"]) < dense
        for anchor, dense in (both(1.0), both(values["host_busy"]))
    )
    return Expected(*both(1.0), gain, values["device"])


def layer_ms(
    values: dict, way: str, work: dict[str, float], rest: float, busy: float = 1.0
) -> float:
    """Expected milliseconds of a layer whose attention goes this way, see the head of the file.

    Args:
        values: see `Coefficients`.
        way: "anchor", "dense" or "masked".
        work: of attention.
        rest: the device's milliseconds beside attention.
        busy: how many times as long as usual the host takes.
    """
    found = values[way]
    device = device_ms(found["device_ms"], work) + rest
    return max(busy * (found["host_ms"] + values["layer_host_ms"]), device)


def device_ms(coefficients: dict[str, float], work: dict[str, float]) -> float:
    """Σ coefficient · work."""
    return sum((ms * work[name] for name, ms in coefficients.items()), 0.0)


def anchor_work(shape: Shape, config: AnchorConfig, share: float) -> dict[str, float]:
    """`ANCHOR_WORK` of a call that keeps this share of its candidates."""
    always, stripes, pooled, tail = method_pairs(config, shape.queries, shape.keys)
    kept, heads = always + share * stripes, shape.batch * shape.q_heads / GIGA
    wide = heads * shape.head_dim
    return {
        "call": 1.0,
        "rows": wide * shape.queries,
        "products": wide * kept,
        "scores": heads * kept,
        "pooled": wide * pooled,
        "tail": wide * tail,
    }


def dense_work(shape: Shape) -> dict[str, float]:
    """`DENSE_WORK` of a call. With a mask every pair is multiplied, also those it hides."""
    whole = shape.queries == shape.keys
    pairs = causal_pairs(shape.keys) if whole else shape.queries * shape.keys
    heads = shape.batch * shape.q_heads / GIGA
    return {
        "call": 1.0,
        "rows": heads * shape.head_dim * shape.queries,
        "products": heads * shape.head_dim * pairs,
        "scores": heads * pairs,
    }


def layer_work(shape: Shape) -> dict[str, float]:
    """`LAYER_WORK` of a layer with such queries."""
    tokens, wide = shape.batch * shape.queries / GIGA, shape.q_heads * shape.head_dim
    return {"rows": tokens * wide, "squares": tokens * wide**2}


@lru_cache(maxsize=4096)
def method_pairs(config: AnchorConfig, n_queries: int, n_keys: int) -> tuple[int, int, int, int]:
    """Pairs of stage 1, most of stage 3, those that stage 2 scores, and the tail's; of a head."""
    always = stripes = pooled = tail = 0
    for group in groups(config, n_queries, n_keys):
        of_tail = len(group.tail) * len(group.candidates)
        always += group.always_pairs - of_tail
        stripes += len(group.sparse_rows) * len(group.candidates)
        pooled += group.pooled_pairs
        tail += of_tail
    return always, stripes, pooled, tail


def kept_share(kept: dict[str, dict], theta: float, n_keys: int) -> float:
    """The share of the candidates that stage 3 is assumed to get, from 0 to 1.

    At a θ that was measured a power of the length; between two, and beyond, on a line.
    """
    known = sorted((float(name), law) for name, law in kept.items())
    shares = [law["share"] * (n_keys / law["tokens"]) ** law["exponent"] for _, law in known]
    if len(known) == 1 or abs(theta) == float("inf"):
        fixed = {float("inf"): 1.0, -float("inf"): 0.0}
        return min(1.0, fixed.get(theta, shares[0]))
    # The last pair below θ, else the first.
    n = max([0, *(i for i in range(len(known) - 1) if known[i][0] <= theta)])
    (low, _), (high, _) = known[n : n + 2]
    slope = (shares[n + 1] - shares[n]) / (high - low)
    return min(1.0, max(0.0, shares[n] + slope * (theta - low)))
