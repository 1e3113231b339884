"""The few numbers that define AnchorAttention (arXiv 2505.23520), and those of an extension."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

OUTLIER_CHOICES = ("cosine", "even")


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
        outliers: R, queries of each block that stage 2 asks one by one, besides the block's mean,
            at least 0; a block with fewer has all of them asked. 0 is the method as published,
            more is an extension; see `anchor_ref.outliers`.
        outlier_theta: θ₂, threshold of these queries, as `theta`; None means θ itself, and is all
            that is allowed where `outliers` is 0.
        outlier_choice: which queries of a block are asked: "cosine", those that point least where
            the block's mean points; or "even", one in the middle of each of R equal parts, which
            costs nothing to choose and loses less.

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
    outliers: int = 0
    outlier_theta: float | None = None
    outlier_choice: str = "cosine"

    def __post_init__(self):
        for field, least in (
            ("block_size", 1),
            ("step", 1),
            ("init_blocks", 0),
            ("window_blocks", 0),
            ("tail", 0),
            ("outliers", 0),
        ):
            value = getattr(self, field)
            # bool is an int to Python; block_size=True is a mistake all the same.
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ValueError(f"{field} must be an integer of at least {least}, got {value!r}")
            object.__setattr__(self, field, int(value))
        self._check_threshold("theta")
        if self.outlier_choice not in OUTLIER_CHOICES:
            allowed = " or ".join(repr(choice) for choice in OUTLIER_CHOICES)
            raise ValueError(f"outlier_choice must be {allowed}, got {self.outlier_choice!r}")
        if self.outlier_theta is None:
            return
        if not self.outliers:
            raise ValueError(
                "outlier_theta must be None where outliers is 0 and nothing reads it, "
                f"got {self.outlier_theta!r}"
            )
        self._check_threshold("outlier_theta")

    def _check_threshold(self, field: str) -> None:
        value = getattr(self, field)
        threshold = _as_float(value)
        if math.isnan(threshold):
            raise ValueError(
                f"{field} must be a real number that a float can hold (±inf allowed, not NaN), "
                f"got {value!r}"
            )
        object.__setattr__(self, field, threshold)

    @property
    def group_size(self) -> int:
        """S = block_size · step, queries per group."""
        return self.block_size * self.step

    @property
    def row_theta(self) -> float:
        """θ₂ in force: `outlier_theta`, or θ where that is None."""
        return self.theta if self.outlier_theta is None else self.outlier_theta


def _as_float(value: object) -> float:
    """A real number as a float; NaN for anything else."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an int of 309 digits
        return math.nan
