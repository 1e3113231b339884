"""Which answers each way finds, at what cost, on prompts that all ways beside it were asked.

A cell is a length, a task and a placement of the question, from the results of `answers`. Those
count that dense attention answers half of.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from anchor_lab.experiments.answers.counts import Counts
from anchor_lab.experiments.answers.page import (
    Cell,
    data_cells,
    data_compared,
    data_telling,
    in_cells,
    stands_for,
)
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.compare.measure import label_configurations, sweeps
from anchor_lab.experiments.losses.measure import MIX, SHARES, theta_label
from anchor_lab.experiments.verdict.ahead import time_of
from anchor_lab.experiments.verdict.times import Clock, Time, tail_cost
from anchor_lab.methods import METHODS, TriangleMix
from anchor_ref.config import AnchorConfig


@dataclass(frozen=True)
class Way:
    """A way to read prompts, and what it costs.

    Attributes:
        name: as in the results of `answers`.
        counts: answers, over the cells of a comparison.
        density, total_cost: None where the configuration was not looked at, or what is added to it
            is not counted here.
        time: likewise.
    """

    name: str
    counts: Counts
    density: float | None = None
    total_cost: float | None = None
    time: Time | None = None

    @property
    def method(self) -> str:
        """Who reads the prompt; with a correction or a second call that, too."""
        return method_and_tail(self.name)[0] or self.name

    @property
    def label(self) -> str:
        """The name for readers: of AnchorAttention by its tail, too."""
        method, tail = method_and_tail(self.name)
        return self.name if method is None else f"{method}, tail {tail}" if tail else method


@dataclass(frozen=True)
class Comparison:
    """Ways that were all asked the same prompts.

    Attributes:
        cells: whose prompts these are.
        ways: those that find most first.
    """

    cells: list[Cell]
    ways: list[Way]

    @property
    def asked(self) -> str:
        """The cells in words."""
        return in_cells(self.cells)

    @property
    def dense(self) -> Counts:
        """What dense attention finds there: "dense" of any way's counts."""
        return self.ways[0].counts

    def of(self, name: str) -> Counts | None:
        """What one way finds; None where it is not here."""
        return next((way.counts for way in self.ways if way.name == name), None)


def asked_at(rows: Sequence[dict], n: int) -> int | None:
    """The length of the prompts that stand for N: the longest that leave room for an answer."""
    found = [row["length"] for row in rows if stands_for(row["length"], n)]
    return max(found, default=None)


def cells_at(rows: Sequence[dict], n: int) -> dict[Cell, dict[str, Counts]]:
    """Counts by cell and by way, of the prompts that stand for N."""
    length = asked_at(rows, n)
    return data_cells([row for row in rows if row["length"] == length])


def comparisons(
    rows: Sequence[dict], n: int, lines: Sequence[dict], clock: Clock | None
) -> list[Comparison]:
    """Every way at one length, beside those that were asked the same; most ways first.

    Args:
        rows: of `answers`.
        n: N.
        lines: of whole-model losses, then of recall, not timed: the first that has a way's
            configuration says what it costs.
        clock: of N.
    """
    cells = data_telling(cells_at(rows, n))
    names = list(dict.fromkeys(way for found in cells.values() for way in found if way != "dense"))
    found = []
    for shared, totals in data_compared(cells, names):
        ways = [_with_cost(Way(name, x), n, lines, clock) for name, x in totals.items()]
        found.append(Comparison(shared, sorted(ways, key=lambda way: -way.counts.ours)))
    return found


def widest(found: Sequence[Comparison], names: Sequence[str]) -> Comparison | None:
    """That with most cells among those with all of these ways; None without one."""
    there = [one for one in found if all(one.of(name) for name in names)]
    return max(there, key=lambda one: len(one.cells), default=None)


def _with_cost(way: Way, n: int, lines: Sequence[dict], clock: Clock | None) -> Way:
    method, tail = method_and_tail(way.name)
    label = None if method is None else published_label(method, n)
    line = next(
        (x for x in lines if (x["method"], x["configuration"]) == (method, label)),
        None,
    )
    if line is None:
        return way
    more = tail_cost(tail, n) if tail else 0.0
    return replace(
        way,
        density=line["density"],
        total_cost=line["total_cost"] + more,
        time=time_of(line, clock, tail),
    )


def method_and_tail(way: str) -> tuple[str | None, int]:
    """What reads the prompt; None for a way with a correction or a second call.

    "tail 512" is AnchorAttention, "XAttention, tail 512" another method with it.
    """
    name, _, added = way.rpartition(", ")
    kind, _, rows = added.partition(" ")
    if kind == "tail" and rows.isdigit():
        return name or OURS, int(rows)
    known = way in METHODS or way == MIX
    return (way if known else None), 0


def published_label(method: str, n: int) -> str | None:
    """What a sweep calls the configuration as published; None where it is in no sweep.

    A length up to which all is dense plays no part beyond it.
    """
    if method == OURS:
        return theta_label(AnchorConfig().theta)
    if method == MIX:
        share = TriangleMix().share
        return f"share={share:g}" if share in SHARES else None
    (sweep,) = sweeps([method]).values()
    made = METHODS[method]()
    if n > getattr(made, "dense_up_to", n):
        made = replace(made, dense_up_to=sweep[0].dense_up_to)
    labels = dict(zip(label_configurations(sweep), sweep, strict=True))
    return next((label for label, one in labels.items() if one == made), None)
