"""An input to be found: one row asks for a key, and the mean of its block does not."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from anchor_lab.drawing.pooling import data_asked, draw_asked
from anchor_lab.exercises.exercise import Judgement, attempt
from anchor_ref.anchor import compute_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import causal_scores
from anchor_ref.regions import groups
from anchor_ref.stripes import identify_stripes

CONFIG = AnchorConfig(block_size=8, step=2, theta=4.0)
N, DIM, MASS = 48, 2, 0.5


@dataclass(frozen=True)
class Needle:
    """`drop_needle()` returns queries and keys `[48, 2]`, for blocks of 8, groups of 16, θ = 4.

    A row of the last group must give at least half of its softmax mass, scores q·k / sqrt(2), to
    one candidate, and the method must drop that candidate.
    """

    name: str = "drop_needle"

    def judge(self, function: Callable) -> Judgement:
        """See what the method makes of the answer's input."""
        result, stopped = attempt(function)
        if stopped:
            return stopped
        if words := _unfit(result):
            return Judgement(False, words)
        q, k = (x[None, None].float() for x in result)
        anchor = compute_anchor(q, k, k, CONFIG).max
        kept = identify_stripes(q, k, anchor, CONFIG).to_mask(N)[0, 0, 2]
        row, key, mass = _heaviest(q, k, kept)
        if mass < MASS:
            words = (
                f"not yet. The most that a row of the last group gives to one candidate is "
                f"{mass:.0%} (row {row}, key {key}); half is asked for. Make that score larger, "
                "compared with the row's other scores."
            )
        elif kept[key]:
            words = (
                f"not yet. Row {row} gives {mass:.0%} to key {key}, but a block keeps it: its "
                f"mean lies at most θ = {CONFIG.theta:g} below. Let the other queries of the "
                "block look elsewhere, at a key of the initial region, and strongly: that raises "
                "the mean anchor."
            )
        else:
            words = (
                f"right. Row {row} gives {mass:.0%} of its mass to key {key}, which is dropped."
            )
        draw = partial(_draw, q[0, 0], k[0, 0], anchor[0, 0], key)
        return Judgement(words.startswith("right"), words, draw)


def _unfit(result: object) -> str | None:
    """What is wrong with the form of an answer."""
    if not (isinstance(result, tuple | list) and len(result) == 2):
        return "two tensors are asked for, q and k."
    for name, x in zip("qk", result, strict=True):
        if not isinstance(x, Tensor) or x.shape != (N, DIM):
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            return f"{name} must be of shape ({N}, {DIM}), got {shape}."
        if not x.isfinite().all():
            return f"{name} must be finite, but holds NaN or inf."
    return None


def _heaviest(q: Tensor, k: Tensor, kept: Tensor) -> tuple[int, int, float]:
    """The row of the last group and the candidate that has most of its mass.

    Of those that have enough, a dropped one goes before those kept.
    """
    group = groups(CONFIG, N, N)[-1]
    weights = causal_scores(q, k, DIM**-0.5)[0, 0].softmax(-1)
    rows, keys = group.rows, group.candidates
    part = weights[rows.start : rows.stop, keys.start : keys.stop]
    lost = (part >= MASS) & ~kept[keys.start : keys.stop]
    row, key = divmod(int((part + lost).argmax()), len(keys))
    return rows.start + row, keys.start + key, part[row, key].item()


def _draw(q: Tensor, k: Tensor, anchor: Tensor, key: int) -> None:
    """Who asks for the key, and does the mean?"""
    from matplotlib import pyplot as plt

    _, ax = plt.subplots(figsize=(6, 2.8))
    draw_asked(data_asked(q, k, anchor, key, CONFIG, DIM**-0.5), CONFIG.theta, ax)
    ax.margins(y=0.3)  # room for the labels at the top
    ax.set_title(draw_asked.__doc__)
