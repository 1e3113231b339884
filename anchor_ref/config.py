"""The few numbers that define AnchorAttention (arXiv 2505.23520)."""

import math
from dataclasses import dataclass
from numbers import Integral, Real


@dataclass(frozen=True)
class AnchorConfig:
    """What to keep: sizes of the regions and the threshold of the difference test.

    Args:
        block_size: b, queries per block, at least 1. Queries of a block are pooled in stage 2.
        step: s, query blocks per group, at least 1. The queries of a group share their stripes.
        theta: θ, difference threshold in natural-log units of the scaled score; any float but NaN.
            A key is kept when it lies at most θ below the anchor: +inf keeps every key, -inf none.
        init_blocks: key blocks at the start of the sequence that every query sees, at least 0.
        window_blocks: key blocks before its own group that a query sees as well, at least 0.
        tail: queries at the end of each sequence that see every key up to their own, whatever
            stage 2 selected, at least 0. They ask the prompt's question; see `anchor_ref.tail`.

    Integers and reals of any type, NumPy's too, are taken and kept as Python's `int` and `float`.

    Raises:
        ValueError: a field is outside the range given above, or of another type.
    """

    block_size: int = 128
    step: int = 16
    theta: float = 12.0
    init_blocks: int = 1
    window_blocks: int = 0
    tail: int = 0

    def __post_init__(self):
        for field, least in (
            ("block_size", 1),
            ("step", 1),
            ("init_blocks", 0),
            ("window_blocks", 0),
            ("tail", 0),
        ):
            value = getattr(self, field)
            # bool is an int to Python; block_size=True is a mistake all the same.
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ValueError(f"{field} must be an integer of at least {least}, got {value!r}")
            object.__setattr__(self, field, int(value))
        theta = _as_float(self.theta)
        if math.isnan(theta):
            raise ValueError(
                "theta must be a real number that a float can hold (±inf allowed, not NaN), "
                f"got {self.theta!r}"
            )
        object.__setattr__(self, "theta", theta)

    @property
    def group_size(self) -> int:
        """S = block_size · step, queries per group."""
        return self.block_size * self.step


def _as_float(value: object) -> float:
    """A real number as a float; NaN for anything else."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an int of 309 digits
        return math.nan
