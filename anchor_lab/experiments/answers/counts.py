"""Answers found in one way and in another: counts, intervals, and what they say."""

from collections.abc import Sequence
from dataclasses import dataclass

from anchor_lab.analysis.intervals import wilson

MARGIN = 0.02  # of the prompts, that may be lost
ENOUGH = 0.5  # of the prompts, that dense attention must find for a task to say something


@dataclass(frozen=True)
class Counts:
    """Of the same prompts, how many were answered.

    Attributes:
        prompts: all, at least 1.
        dense, ours: answered after each prefill.
        lost: answered after the dense one alone.
        won: answered after the other alone.
    """

    prompts: int
    dense: int
    ours: int
    lost: int
    won: int

    @property
    def says_something(self) -> bool:
        """Whether dense attention answers enough for a loss to show."""
        return self.dense >= ENOUGH * self.prompts

    def keeps(self, margin: float = MARGIN) -> bool:
        """Whether no more answers are lost than a share of the prompts."""
        return self.ours >= self.dense - margin * self.prompts - 1e-9

    @property
    def apart(self) -> bool:
        """Whether ours are fewer, by more than chance explains: the intervals do not overlap."""
        high = wilson(self.ours / self.prompts, self.prompts)[1]
        return high < wilson(self.dense / self.prompts, self.prompts)[0]

    @property
    def most_lost(self) -> float:
        """The largest share of such prompts that may be lost: the upper end of its interval."""
        return wilson(self.lost / self.prompts, self.prompts)[1]


def count(dense: Sequence[bool | int], ours: Sequence[bool | int]) -> Counts:
    """Counts of the same prompts, in the same order; true is answered.

    Raises:
        ValueError: there are none, or not equally many.
    """
    if not dense or len(dense) != len(ours):
        raise ValueError(
            f"ours must have an answer for each of the {len(dense)} prompts of dense, at least "
            f"one, got {len(ours)}"
        )
    pairs = list(zip(map(bool, dense), map(bool, ours), strict=True))
    return Counts(
        len(pairs),
        sum(a for a, _ in pairs),
        sum(b for _, b in pairs),
        pairs.count((True, False)),
        pairs.count((False, True)),
    )


def together(counts: Sequence[Counts]) -> Counts:
    """All prompts of several, at least one."""
    fields = ("prompts", "dense", "ours", "lost", "won")
    return Counts(*(sum(getattr(one, name) for one in counts) for name in fields))


def shown(found: int, prompts: int) -> str:
    """Answers found, with the 95 % Wilson interval of their share."""
    low, high = wilson(found / prompts, prompts)
    return f"{found} of {prompts} ({100 * low:.0f}–{100 * high:.0f} %)"


def in_words(counts: Counts, margin: float = MARGIN) -> str:
    """What the counts say, in a sentence or two."""
    n = counts.prompts
    if not counts.says_something:
        return (
            f"Dense attention itself finds {shown(counts.dense, n)}: too few for a loss to show."
        )
    both = f"Dense attention finds {shown(counts.dense, n)}, AnchorAttention {counts.ours}"
    changed = f"{counts.lost} are lost and {counts.won} won"
    if counts.keeps(margin):
        if counts.most_lost <= margin:
            return f"{both}: answers are kept ({changed})."
        return (
            f"{both}: of these prompts answers are kept ({changed}), but {n} cannot rule out that "
            f"{100 * counts.most_lost:.0f} % of such prompts are lost."
        )
    if not counts.apart:
        return (
            f"{both}: fewer ({changed}), but the intervals overlap, so that these prompts do not "
            "tell the two apart: ask more of them."
        )
    return f"{both}: answers are lost ({changed})."
