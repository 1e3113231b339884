"""How much faster would prefill be? An estimate from measured rates and counted operations.

    attention, one layer  =  overhead + F1 / r1 + F2 / r2 + F3 / r3 + FT / r      dense: F / r
    linear layers         =  2 P N / r_matrix

F counts the floating-point operations of a stage, 4 D for a pair that is attended to and 2 D for a
pooled pair; FT are those of the tail's rows with all candidates, a rectangle that goes at the rate
of dense attention; r is the rate that the stage reached in `python -m anchor_lab attention`; P are
the weights of all linear layers but the last. It is an estimate: other head sizes, other GPUs and
what happens between the kernels will differ.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from jaxtyping import Float
from torch import Tensor

from anchor_lab.experiments.attention.cells import (
    REFERENCE_DENSITY,
    STAGES,
    by_inputs,
    by_length,
    is_ok,
    median_ms,
)
from anchor_lab.experiments.attention.jobs import flop
from anchor_lab.experiments.store import read
from anchor_ref.config import AnchorConfig
from anchor_ref.regions import causal_pairs, groups

NEEDED = ("anchor", "sdpa-cudnn", *STAGES)


@dataclass(frozen=True)
class Rates:
    """What one device reached.

    Attributes:
        device, date: what was measured, and when.
        dense: TFLOP/s of the fastest dense attention.
        stage1, stage2, stage3: TFLOP/s of the stages on long prompts.
        matrix: TFLOP/s of a large matrix product.
        overhead_ms: time of a call that the rates do not explain.
    """

    device: str
    date: str
    dense: float
    stage1: float
    stage2: float
    stage3: float
    matrix: float
    overhead_ms: float


# `read_rates` of the committed results/attention/attention_h100.json, as a test makes sure.
H100 = Rates("NVIDIA H100 80GB HBM3", "2026-11-26", 577.0, 405.0, 168.8, 496.0, 736.9, 0.91)


def read_rates(path: str | Path) -> Rates:
    """Rates from what `python -m anchor_lab attention` wrote, on any device.

    The rates are those of the longest planted prompt with both dense attention and all stages;
    the overhead is the median of what they leave unexplained on prompts of at most 16384 tokens.

    Raises:
        OSError: there is no such file.
        ValueError: it holds no such measurements, or those of several runs.
    """
    try:
        measured = read(Path(path))
        at = by_length(by_inputs(measured), REFERENCE_DENSITY)
        complete = {n: row for n, row in at.items() if is_ok(row, *NEEDED)}
        longest = complete[max(complete)]
        used = {row[name]["run"] for row in complete.values() for name in NEEDED}
        if len(used) > 1:
            raise ValueError(f"its cells are of several runs, {sorted(used)}")
        run = measured["runs"][used.pop()]
        rate = {name: longest[name]["tflops"] for name in (*STAGES, "sdpa-cudnn")}
        unexplained = [
            median_ms(row["anchor"]) - sum(row[s]["flop"] / rate[s] / 1e9 for s in STAGES)
            for n, row in complete.items()
            if n <= 16384
        ]
        return Rates(
            measured["settings"]["device"],
            run["date"],
            rate["sdpa-cudnn"],
            *(rate[name] for name in STAGES),
            run["matrix_tflops"],
            max(0.0, median(unexplained)),
        )
    except (KeyError, TypeError, IndexError, ValueError) as problem:
        raise ValueError(
            f"rates must come from a file of `python -m anchor_lab attention`, got {path}: "
            f"{problem!r}"
        ) from None


@dataclass(frozen=True)
class Estimate:
    """Times in ms of one prefill, by `Rates`.

    Attributes:
        dense, sparse: attention of all layers.
        linear: all linear layers, the same for both.
    """

    dense: float
    sparse: float
    linear: float

    @property
    def attention_speedup(self) -> float:
        """Of attention alone."""
        return self.dense / self.sparse

    @property
    def prefill_speedup(self) -> float:
        """Of attention and linear layers."""
        return (self.dense + self.linear) / (self.sparse + self.linear)


def estimate(
    density: Float[Tensor, "L H"],
    n: int,
    head_dim: int,
    parameters: int,
    rates: Rates = H100,
    config: AnchorConfig | None = None,
) -> Estimate:
    """What prefill would take where each head keeps the density given.

    Args:
        density: share of the causal pairs kept by each head of each layer, without a tail.
        n: prompt length N.
        head_dim: D.
        parameters: P, weights of the linear layers.
        rates: of a device.
        config: sizes of the regions and of the tail, whose pairs are counted on top of the
            density; None means `AnchorConfig()`.
    """
    found = groups(AnchorConfig() if config is None else config, n, n)
    causal = causal_pairs(n)
    tail = sum(len(group.tail) * len(group.candidates) for group in found)
    always = sum(group.always_pairs for group in found) - tail
    pooled = sum(group.pooled_pairs for group in found)
    heads = density.numel()
    stripes = float(density.double().sum()) * causal - heads * always
    tera = 1e9  # operations of a rate of 1 TFLOP/s in 1 ms
    sparse = (
        density.shape[0] * rates.overhead_ms
        + flop(heads * always, 0, head_dim) / rates.stage1 / tera
        + flop(0, heads * pooled, head_dim) / rates.stage2 / tera
        + flop(max(0.0, stripes), 0, head_dim) / rates.stage3 / tera
        + flop(heads * tail, 0, head_dim) / rates.dense / tera
    )
    dense = flop(heads * causal, 0, head_dim) / rates.dense / tera
    return Estimate(dense, sparse, 2 * parameters * n / rates.matrix / tera)
