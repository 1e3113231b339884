"""The few numbers that define AnchorAttention (arXiv 2505.23520)."""

import math
from dataclasses import dataclass
from numbers import Real


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

    Raises:
        ValueError: a field is outside the range given above.
    """

    block_size: int = 128
    step: int = 16
    theta: float = 12.0
    init_blocks: int = 1
    window_blocks: int = 0

    def __post_init__(self):
        for field, least in (
            ("block_size", 1),
            ("step", 1),
            ("init_blocks", 0),
            ("window_blocks", 0),
        ):
            value = getattr(self, field)
            # bool is an int to Python; block_size=True is a mistake all the same.
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{field} must be an integer of at least {least}, got {value!r}")
        theta = self.theta
        if not isinstance(theta, Real) or isinstance(theta, bool) or math.isnan(theta):
            raise ValueError(f"theta must be a real number (±inf allowed, not NaN), got {theta!r}")

    @property
    def group_size(self) -> int:
        """S = block_size · step, queries per group."""
        return self.block_size * self.step
