"""Configurations of a method from sparse to dense, in steps small enough to meet a target.

The sweeps of the methods have seven to ten steps, for curves. Here the sparsest that reaches a
recall or a loss is looked for, and a coarse step would be paid by the method that has it.
"""

from collections.abc import Callable
from dataclasses import replace

from anchor_lab.methods import (
    AnchorAttention,
    AnchorBlocks,
    BlockTopCdf,
    BlockTopK,
    FlashPrefill,
    FlexPrefill,
    Method,
    SpargeAttention,
    XAttention,
)
from anchor_ref.config import AnchorConfig

# Of a mass or of a maximum: 1 − 2^(−1/3), 1 − 2^(−2/3), ...; what is left out falls by a fifth.
SHARES = [round(1 - 2 ** (-i / 3), 5) for i in range(1, 37)]
ALPHAS = [1.0, 0.95, 0.9, 0.85, *(round(1 - share, 5) for share in SHARES)]
THETAS = [0.5 * i for i in range(-16, 49)]
COUNTS = sorted({round(2 ** (i / 5)) for i in range(46)})

PUBLISHED = ("FlexPrefill", "XAttention", "SpargeAttention", "FlashPrefill")
OURS = "AnchorAttention"


def ladders(config: AnchorConfig) -> dict[str, list[Method]]:
    """By the method's name its configurations; each keeps what the one before keeps.

    Whatever is not moved is as published, but for FlexPrefill's budget of 1024 tokens at least: a
    block, so that it may be sparse. SpargeAttention goes by mass alone, as its sweep does.

    Args:
        config: sizes of AnchorAttention; its θ plays no part.
    """
    return {
        "FlexPrefill": [FlexPrefill(share, min_budget=128) for share in SHARES],
        "XAttention": [XAttention(share) for share in SHARES],
        "SpargeAttention": [SpargeAttention(share, similarity=-0.1) for share in SHARES],
        "FlashPrefill": [FlashPrefill(alpha) for alpha in ALPHAS],
        "AnchorBlocks": _thetas(AnchorBlocks, config),
        "BlockTopK": [BlockTopK(count) for count in COUNTS],
        "BlockTopCdf": [BlockTopCdf(share) for share in SHARES],
        OURS: _thetas(AnchorAttention, config),
    }


def _thetas(method: Callable[[AnchorConfig], Method], config: AnchorConfig) -> list[Method]:
    return [method(replace(config, theta=theta)) for theta in THETAS]


KNOBS = {
    "FlexPrefill": "gamma",
    "XAttention": "threshold",
    "SpargeAttention": "mass",
    "FlashPrefill": "alpha",
    "AnchorBlocks": "theta",
    "BlockTopK": "blocks",
    "BlockTopCdf": "mass",
    OURS: "theta",
}


def knob_of(name: str, method: Method) -> float | int:
    """The value of the one number that a ladder moves."""
    return getattr(getattr(method, "config", method), KNOBS[name])
