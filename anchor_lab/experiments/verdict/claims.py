"""What the paper claims, decided by the results: held, not held, or not testable here.

pairs    fewer pairs for the same recall, at every recall of `rivals` that both sides were swept
         to, means over heads, layers and texts; beside a method that was not swept to any of them,
         at the end of the shorter sweep
losses   less loss for as many pairs, beyond the 95 % interval of the difference, at every θ whose
         pairs `losses` compares at
time     less time for the same recall, at every recall of `side_by_side`: measured, and with the
         choice of others by the model of `times`

A claim is held where all its comparisons are won, not held where one is lost or not told apart,
and not testable where there is nothing to compare. A recall beyond the end of a sweep decides
nothing: nobody looked there.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

from anchor_lab.analysis.intervals import bootstrap
from anchor_lab.experiments.compare.equal import budget_for
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.losses.figure import data_at, data_level
from anchor_lab.experiments.losses.measure import GOALS
from anchor_lab.experiments.page import digits, listed, number, percent, spaced
from anchor_lab.experiments.rivals.figure import RECALLS, data_curves
from anchor_lab.experiments.rivals.page import kind_of, published
from anchor_lab.experiments.verdict import ahead
from anchor_lab.experiments.verdict.times import BLOCKS_OF_OURS, Clock, clock_of, equal_recall
from anchor_lab.methods import METHODS

HELD, NOT_HELD, NOT_TESTABLE = "held", "not held", "not testable here"
PAPER = "2505.23520"  # on arXiv: others with a smaller number were there before
CLAIMED, CLAIMED_AT = 1.44, 131_072  # times as fast, at so many tokens: the abstract's numbers
OTHER_BUDGETS = ("PooledTopK", "PooledTopCdf")  # in place of the difference test, same scores


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what became of it.

    Attributes:
        words: what is claimed.
        where: length, and what it is looked at by.
        mark: `HELD`, `NOT_HELD` or `NOT_TESTABLE`.
        numbers: what decided it.
    """

    words: str
    where: str
    mark: str
    numbers: str


def decide(won: Sequence[bool]) -> str:
    """The mark for comparisons that were won or not."""
    if not won:
        return NOT_TESTABLE
    return HELD if all(won) else NOT_HELD


def arxiv_of(method: str) -> str | None:
    """The number of a method's paper, from the first lines of its module; None for no paper."""
    about = sys.modules[METHODS[method].__module__].__doc__ or ""
    found = re.search(r"arXiv (\d{4}\.\d{5})", about)
    return None if found is None else found[1]


def is_earlier(method: str) -> bool:
    """Whether somebody published it before AnchorAttention."""
    if method == OURS or method not in METHODS or kind_of(method) != "published":
        return False
    found = arxiv_of(method)
    return found is not None and found < PAPER


# -- pairs for a recall


@dataclass(frozen=True)
class Sweep:
    """What a method's configurations keep and find, at one length.

    Attributes:
        end: the largest mean recall.
        curve: as `rivals` reads it, of this method alone.
    """

    end: float
    curve: object  # a pandas frame; the room imports pandas where it is used

    def needs(self, recall: float) -> float:
        """Pairs for a recall; NaN beyond the end."""
        return float(budget_for(self.curve, "density", recall).iloc[0])


def fewer_pairs(
    words: str,
    rows: Sequence[dict],
    n: int,
    ours: str,
    others: Sequence[str],
    later: Sequence[str] = (),
) -> Claim:
    """Whether one method needs fewer pairs than each of others.

    Args:
        words: of the claim.
        rows: of `rivals`.
        n: N.
        ours: the one.
        others: those that are there count.
        later: decide nothing; those that need fewer somewhere are named.
    """
    curves = curves_at(rows, n)
    others = [name for name in others if name in curves]
    where = f"{spaced(n)} tokens, pairs for a recall"
    if ours not in curves or not others:
        return Claim(words, where, NOT_TESTABLE, "not measured yet")
    found = at_recalls(curves, ours, others) + at_ends(curves, ours, others)
    mark = decide([won for won, _ in found])
    told = [said for _, said in found]
    if mark == HELD:
        told += lost_in_texts(rows, n, ours, others)
    told += notes(curves, ours, others, later)
    return Claim(words, where, mark, "; ".join(told))


def at_recalls(
    curves: dict[str, Sweep], ours: str, others: Sequence[str]
) -> list[tuple[bool, str]]:
    """At each recall that both sides reach: whether the best of others needs more, in words."""
    found = []
    for recall in RECALLS:
        needed = {name: curves[name].needs(recall) for name in others}
        reach = [name for name in others if not isnan(needed[name])]
        mine = curves[ours].needs(recall)
        if isnan(mine) or not reach:
            continue
        best = min(reach, key=needed.__getitem__)
        said = f"{recall:g}: {ours} {digits(mine, 3)}, {best} {digits(needed[best], 3)}"
        found.append((mine < needed[best], said))
    return found


def at_ends(curves: dict[str, Sweep], ours: str, others: Sequence[str]) -> list[tuple[bool, str]]:
    """The same where the shorter of two sweeps ends, if it ends before every recall."""
    found = []
    for name in others:
        end = min(curves[ours].end, curves[name].end)
        if end < RECALLS[0]:
            mine, theirs = curves[ours].needs(end), curves[name].needs(end)
            said = f"{end:.3f}: {ours} {digits(mine, 3)}, {name} {digits(theirs, 3)}"
            found.append((mine < theirs, said))
    return found


def notes(
    curves: dict[str, Sweep], ours: str, others: Sequence[str], later: Sequence[str]
) -> list[str]:
    """What decides nothing: sweeps that end early, and later methods that need fewer pairs."""
    told = []
    short = [
        f"{name} ({curves[name].end:.3f})"
        for name in (ours, *others)
        if curves[name].end < RECALLS[-1]
    ]
    if short:
        told.append(f"sweep ends before {RECALLS[-1]:g}: {listed(short)}")
    fewer = [name for name in later if name in curves and fewer_at(curves, name, ours)]
    if fewer:
        told.append(f"published after it and with fewer: {listed(fewer)}")
    return told


def curves_at(rows: Sequence[dict], n: int, text: str | None = None) -> dict[str, Sweep]:
    """By method its sweep; nothing where the length was not measured."""
    if not any(row["length"] == n for row in rows):
        return {}
    curves = data_curves(rows, n, text).groupby("method", sort=False)
    return {name: Sweep(float(x["recall_mean"].max()), x) for name, x in curves}


def fewer_at(curves: dict[str, Sweep], name: str, ours: str) -> list[float]:
    """The recalls for which a method needs fewer pairs than ours, of those that both reach."""
    return [r for r in RECALLS if curves[name].needs(r) < curves[ours].needs(r)]


def lost_in_texts(rows: Sequence[dict], n: int, ours: str, others: Sequence[str]) -> list[str]:
    """Where a claim that holds in the mean does not in one text alone, in words."""
    told = []
    for text in dict.fromkeys(row["text"] for row in rows if row["length"] == n):
        curves = curves_at(rows, n, text)
        if ours not in curves:
            continue
        less = {name: fewer_at(curves, name, ours) for name in others if name in curves}
        for recall in RECALLS:
            if who := [name for name, recalls in less.items() if recall in recalls]:
                told.append(f"but in {text}, {recall:g}: fewer by {listed(who)}")
    return told


# -- loss for as many pairs


def less_lost(words: str, losses: dict | None, ours: str, other: str) -> Claim:
    """Whether one method loses less than another with as many pairs as AnchorAttention keeps.

    The same tokens were read with both: the interval is that of the difference, run by run.
    """
    if losses is None:
        return Claim(words, "loss for as many pairs", NOT_TESTABLE, "not measured yet")
    where = f"{spaced(losses['settings']['tokens'])} tokens, loss for as many pairs"
    won, told = [], []
    for theta in GOALS:
        level = data_level(losses["rows"], "density", theta)
        found = {} if level is None else data_at(losses["rows"], "density", level)
        mine, theirs = found.get(ours), found.get(other)
        if mine is None or theirs is None:
            continue
        low, high = bootstrap(
            [
                [a - b for a, b in zip(mine.runs[text], theirs.runs[text], strict=True)]
                for text in mine.runs
            ]
        )
        won.append(high < 0)
        told.append(
            f"{percent(level)} of the pairs: {ours} {mine.mean:.4f}, {other} {theirs.mean:.4f}, "
            f"difference {low:.4f} to {high:.4f}".replace("-", "−")
        )
    return Claim(words, where, decide(won), "; ".join(told) or "not measured yet")


# -- time for a recall


def less_time(
    words: str,
    side_by_side: dict | None,
    clock: Clock | None,
    n: int,
    others: Sequence[str],
    times: float = 1.0,
) -> Claim:
    """Whether our kernels are so many times as fast as the blocks of each of others.

    Both attend to the same activations, with equal recall, see `equal_recall`. As fast is not
    faster: with `times` at 1 a tie is lost.
    """
    where = f"{spaced(n)} tokens, time for a recall"
    won, told = [], []
    for recall, taken in equal_recall(side_by_side, clock, n).items():
        theirs = {name: ms for name, ms in taken.items() if name in others}
        if OURS not in taken or not theirs:
            continue
        best = min(theirs, key=theirs.__getitem__)
        gain = theirs[best] / taken[OURS]
        won.append(gain > 1 and gain >= times)
        told.append(f"{recall}: {OURS} {number(taken[OURS])} ms, {best} {number(theirs[best])} ms")
    return Claim(words, where, decide(won), "; ".join(told) or "not measured there")


def all_claims(results: dict, clocks: dict[int, Clock | None]) -> list[Claim]:
    """Every claim at every length.

    Args:
        results: by the name of the experiment, those that are there.
        clocks: by length.
    """
    rows = results.get("rivals", {"rows": []})["rows"]
    side_by_side = results.get("side_by_side")
    earlier = [name for name in METHODS if is_earlier(name)]
    later = [name for name in published(METHODS) if name != OURS and name not in earlier]
    recall, faster = "Higher recall at equal sparsity", "Less time at equal recall"
    tests, stripes = "Difference test over top-k and top-cdf", "Stripes over blocks"
    exact_tests, exact_stripes = f"{tests}, with exact scores", f"{stripes}, with exact scores"
    pairs = [
        (recall, OURS, earlier, later),
        (tests, OURS, OTHER_BUDGETS, ()),
        (exact_tests, "DifferenceOracle", ("TokenTopK", "TokenTopCdf"), ()),
        (stripes, OURS, (BLOCKS_OF_OURS,), ()),
        (exact_stripes, "StripeOracle", ("BlockTopK", "BlockTopCdf"), ()),
    ]
    found = [fewer_pairs(words, rows, n, *who) for words, *who in pairs for n in clocks]
    found += [
        less_lost(stripes, losses, OURS, BLOCKS_OF_OURS)
        for losses in ahead.losses_of(results) or [None]
    ]
    for words, others in ((stripes, (BLOCKS_OF_OURS,)), (faster, earlier)):
        found += [less_time(words, side_by_side, x, n, others) for n, x in clocks.items()]
    words = f"{CLAIMED:g} times as fast as the best before it"
    clock = clock_of(side_by_side, results.get("crossover"), CLAIMED_AT)
    found.append(less_time(words, side_by_side, clock, CLAIMED_AT, earlier, CLAIMED))
    return found
