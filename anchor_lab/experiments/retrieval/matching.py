"""One density for all methods: where on its sweep a method keeps as much as the others.

Accuracies of two methods say nothing about their choice of keys while one keeps more of them. A
method's `sweep` is a path from its sparsest to its densest configuration; here it becomes a
continuous one, and the place on it that has the asked density is found by bisection.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace

from anchor_lab.methods.method import Method
from anchor_lab.methods.selection import ROWS, Selection
from anchor_models import Captured
from anchor_ref.regions import causal_pairs

SAMPLED_BLOCKS = 16  # blocks of query rows that a density is estimated from
HALVINGS = 5  # between two configurations of a sweep


def estimate_density(method: Method, layers: Sequence[Captured]) -> float:
    """Mean density over layers and heads; exact up to 2048 tokens, sampled rows beyond.

    A sampled block stands for as many as lie before it as after it, or for one more before it: of
    rows that keep an ever smaller share the estimate is a few percent of itself too low.

    Args:
        method: of `METHODS`.
        layers: what `capture_qkv` found in one prompt, at least one.
    """
    shares = [_sampled_density(method.select(x.q, x.k, x.scaling)) for x in layers]
    return sum(shares) / len(shares)


def between(sparser: Method, denser: Method, share: float) -> Method:
    """A configuration on the way from one to another of the same method.

    Numbers that differ are mixed, (1 − share) · sparser + share · denser, integers rounded; so are
    those of a configuration inside. What is equal stays.

    Args:
        sparser, denser: neighbours of a sweep.
        share: in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    return _mix(sparser, denser, share)


def match_density(
    sweep: Sequence[Method], layers: Sequence[Captured], target: float
) -> tuple[Method, float]:
    """The configuration on a method's sweep whose density is nearest to the target.

    Args:
        sweep: configurations of one method by rising density, which is what bisection needs.
        layers: as in `estimate_density`.
        target: in (0, 1].

    Returns:
        (configuration, its estimated density). Where all of the sweep is denser, or all of it
        sparser, that is its first or last: look at the density.

    Raises:
        ValueError: `target` is outside its range, or `sweep` is empty.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target must be in (0, 1], got {target}")
    if not sweep:
        raise ValueError("sweep must hold at least one configuration, got none")
    found: dict[Method, float] = {}

    def density(method: Method) -> float:
        if method not in found:
            found[method] = estimate_density(method, layers)
        return found[method]

    # The first of the sweep that reaches the target, or the last of all.
    place = bisect_left(sweep, target, hi=len(sweep) - 1, key=density)
    if place == 0 or density(sweep[place]) < target:
        return sweep[place], density(sweep[place])
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        share = (low + high) / 2
        if density(between(sweep[place - 1], sweep[place], share)) < target:
            low = share
        else:
            high = share
    best = min(found, key=lambda method: abs(found[method] - target))
    return best, found[best]


def _mix(a, b, share: float):
    if a == b:
        return a
    if is_dataclass(a):
        mixed = {x.name: _mix(getattr(a, x.name), getattr(b, x.name), share) for x in fields(a)}
        return replace(a, **mixed)
    value = (1 - share) * a + share * b
    return round(value) if isinstance(a, int) and isinstance(b, int) else value


def _sampled_density(selection: Selection) -> float:
    """Strata of equally many blocks, the middle block of each for all of them."""
    batch, heads, n = selection.shape
    blocks = -(-n // ROWS)
    strata = min(blocks, SAMPLED_BLOCKS)
    kept = 0.0
    for stratum in range(strata):
        first, stop = stratum * blocks // strata, (stratum + 1) * blocks // strata
        block = (first + stop) // 2
        rows = range(block * ROWS, min((block + 1) * ROWS, n))
        pairs = causal_pairs(rows.stop) - causal_pairs(rows.start)
        share = selection.rows(rows).sum().item() / pairs
        kept += share * (causal_pairs(min(stop * ROWS, n)) - causal_pairs(first * ROWS))
    return kept / causal_pairs(n) / (batch * heads)
