"""How long a layer's attention takes: measured where there is a kernel, elsewhere modelled.

All in units of dense attention by cuDNN at the same length, so that 1 is "as long as dense":

ours          a call as a model makes it, choice included, over the dense call of the same table
              (`crossover`), read off between the shares of the candidates that were measured
others        attention + choice
  attention   milliseconds of a block-sparse kernel (`side_by_side`) over cuDNN's. Of a method
              whose own blocks were run, between two such runs. Of others the straight line
              start + rate · share of pairs, least squares of the relative error over all runs;
              and of the first beyond its runs, where the line is scaled to meet the nearest
  choice      scored pairs, a half each, at the rate of dense attention. SALE's 4-bit products are
              counted as a quarter of one of 16 bits, which the GPU of these times has no unit for:
              with 8 bits, the fewest that it multiplies, they take twice as long

What others need to choose is never measured here: launches, sorting and lists cost nothing in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from statistics import median

from anchor_lab.experiments.compare.figure import ORACLES, OURS, VARIANTS
from anchor_lab.experiments.crossover.figure import data_calls
from anchor_lab.experiments.side_by_side.blocks import BLOCK
from anchor_ref.config import AnchorConfig
from anchor_ref.regions import causal_pairs, groups

HEADS = (9, 3, 64)  # of SmolLM2: query heads, kv heads, head size
KERNEL, DENSE_KERNEL = "FlashAttention-4", "cuDNN"
DENSE, SAME_BLOCKS, BLOCKS_OF_OURS = "dense", "the same blocks", "AnchorBlocks"
CHOICE = {"SALE": 2.0}  # times as long here as the count of pairs says


class Kind(IntEnum):
    """How a time is known, from the best to the worst."""

    MEASURED = 0
    CHOICE_MODELLED = 1
    MODELLED = 2
    DRAWN_OUT = 3


WORDS = {
    Kind.MEASURED: "measured",
    Kind.CHOICE_MODELLED: "attention measured, choice modelled",
    Kind.MODELLED: "modelled",
    Kind.DRAWN_OUT: "modelled beyond the runs",
}


@dataclass(frozen=True)
class Time:
    """A layer's attention, choice included.

    Attributes:
        share: of the time of dense attention.
        kind: how it is known.
    """

    share: float
    kind: Kind


@dataclass(frozen=True)
class Line:
    """Time of the block-sparse kernel by the share of pairs that it multiplies.

    Attributes:
        start, rate: time = start + rate · share, in units of dense attention.
        lowest, highest: shares of the runs that it was drawn through.
        runs: how many.
        error, worst: relative errors at the runs: the median and the largest.
        worst_at: place of the run with the largest.
    """

    start: float
    rate: float
    lowest: float
    highest: float
    runs: int
    error: float
    worst: float
    worst_at: int

    def at(self, share: float) -> Time:
        """Marked where the share lies outside the runs."""
        inside = self.lowest <= share <= self.highest
        kind = Kind.MODELLED if inside else Kind.DRAWN_OUT
        return Time(self.start + self.rate * share, kind)


@dataclass(frozen=True)
class Clock:
    """Times at one length.

    Attributes:
        n: N.
        dense_ms: of dense attention by cuDNN, a layer.
        dense: time by who computes dense attention, in units of `dense_ms`.
        runs: by method, (share of pairs multiplied, time) of the block-sparse kernel, ascending.
        line: through all runs; None with fewer than two shares.
        missed: whose run the line misses most; empty without a line.
        ours: by tail, (share of the candidates kept, time), ascending.
        checked: calls of ours on the model's own layers: (density, time), no tail.
    """

    n: int
    dense_ms: float
    dense: dict[str, float]
    runs: dict[str, list[tuple[float, float]]]
    line: Line | None
    missed: str
    ours: dict[int, list[tuple[float, float]]]
    checked: list[tuple[float, float]]

    def of(
        self, method: str, density: float, executed: float, scored: float, tail: int = 0
    ) -> Time | None:
        """A method's time; None where nothing here can tell.

        Args:
            method: name; oracles save nothing, and stripes of a variant have no kernel: None.
            density: pairs kept without the tail, of ours alone.
            executed: pairs multiplied, whole tiles.
            scored: pairs scored to choose, a half each.
            tail: last rows that see every key.
        """
        if method == OURS:
            return self.of_ours(density, tail)
        stripes = method in VARIANTS and method != BLOCKS_OF_OURS
        if method in ORACLES or stripes or self.line is None:
            return None
        attention = self._of_blocks(self.runs.get(method, []), executed)
        scored *= CHOICE.get(method, 1.0)
        if not tail:
            return Time(attention.share + scored, attention.kind)
        kind = max(attention.kind, Kind.MODELLED)  # nobody ran its blocks with a tail
        return Time(attention.share + scored + tail_cost(tail, self.n), kind)

    def _of_blocks(self, runs: list[tuple[float, float]], executed: float) -> Time:
        own, line = between(runs, executed), self.line.at(executed)
        if own is not None:
            return Time(own, Kind.CHOICE_MODELLED)
        if not runs:
            return line
        share, time = runs[0] if executed < runs[0][0] else runs[-1]
        return Time(line.share * time / self.line.at(share).share, line.kind)

    def of_ours(self, density: float, tail: int = 0) -> Time | None:
        """Of our kernels; None beyond what was measured."""
        floor = always_kept(self.n)
        share = between(self.ours.get(tail, []), (density - floor) / (1 - floor))
        return None if share is None else Time(share, Kind.MEASURED)


def clock_of(side_by_side: dict | None, crossover: dict | None, n: int) -> Clock | None:
    """What is known about times at one length; None where cuDNN was not timed there.

    Args:
        side_by_side, crossover: results of these experiments; None where there are none.
        n: N.
    """
    rows = timed_rows(side_by_side, n)
    by_way: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] == DENSE:
            by_way.setdefault(row["way"], []).append(row["ms"]["median"])
    if DENSE_KERNEL not in by_way:
        return None
    dense_ms = median(by_way[DENSE_KERNEL])
    runs: dict[str, list[tuple[float, float]]] = {}
    checked = []
    for row in rows:
        time = row["ms"]["median"] / dense_ms
        if row["method"] == OURS and row["part"] != "planted" and row["way"] == "tail 0":
            checked.append((row["density"], time))
        elif row["method"] not in (OURS, DENSE) and row["way"] == KERNEL:
            runs.setdefault(row["method"], []).append((whole_tiles(row["density"], n), time))
    every = [(name, run) for name, found in runs.items() for run in found]
    line = line_through([run for _, run in every])
    return Clock(
        n,
        dense_ms,
        {way: median(found) / dense_ms for way, found in by_way.items()},
        {name: sorted(found) for name, found in runs.items() if name != SAME_BLOCKS},
        line,
        "" if line is None else every[line.worst_at][0],
        ours_of(crossover, n),
        sorted(checked),
    )


def ours_of(crossover: dict | None, n: int) -> dict[int, list[tuple[float, float]]]:
    """By tail, our calls over the dense one of the same table, by the share of candidates."""
    if crossover is None:
        return {}
    rows = crossover["rows"]
    tails = {row["tail"] for row in rows if row["part"] == "calls" and row["way"] == "anchor"}
    found: dict[int, list[tuple[float, float]]] = {}
    for tail in sorted(tails):
        dense, ours = data_calls(rows, HEADS, tail)
        there = [(kept, times[n] / dense[n]) for kept, times in ours.items() if n in times]
        if there and n in dense:
            found[tail] = sorted(there)
    return found


def equal_recall(
    side_by_side: dict | None, clock: Clock | None, n: int
) -> dict[str, dict[str, float]]:
    """By recall the milliseconds of each method on the model's own activations, fastest first.

    Ours are those of the whole call. To a block method's measured attention its choice is added,
    modelled as in `Clock`. Oracles are left out.
    """
    if side_by_side is None or clock is None:
        return {}
    found: dict[str, dict[str, float]] = {}
    for row in timed_rows(side_by_side, n):
        if row["part"] != "recall" or row["method"] == DENSE or row["method"] in ORACLES:
            continue
        times = found.setdefault(row["goal"].removeprefix("recall "), {})
        if row["method"] == OURS and row["way"] == "tail 0":
            times[OURS] = row["ms"]["median"]
        elif row["way"] == KERNEL:
            times[row["method"]] = row["ms"]["median"] + row["scored"] * clock.dense_ms
    return {recall: dict(sorted(x.items(), key=lambda one: one[1])) for recall, x in found.items()}


def timed_rows(side_by_side: dict | None, n: int) -> list[dict]:
    """Those of one length and of SmolLM2's heads that have a time."""
    return [
        row
        for row in (side_by_side or {"rows": []})["rows"]
        if row["part"] != "loss"  # of whole models, not timed
        and row["n"] == n
        and (row["q_heads"], row["kv_heads"], row["head_dim"]) == HEADS
        and row["status"] == "ok"
    ]


def line_through(runs: Sequence[tuple[float, float]]) -> Line | None:
    """The line with the least squares of the relative error; None with fewer than two shares."""
    import numpy as np

    shares, times = np.array(runs, dtype=float).reshape(-1, 2).T
    if len(set(shares)) < 2:
        return None
    relative = np.stack([np.ones_like(shares), shares], 1) / times[:, None]
    start, rate = np.linalg.lstsq(relative, np.ones_like(times), rcond=None)[0]
    wrong = abs((start + rate * shares) / times - 1)
    return Line(
        float(start),
        float(rate),
        float(shares.min()),
        float(shares.max()),
        len(times),
        float(np.median(wrong)),
        float(wrong.max()),
        int(wrong.argmax()),
    )


def between(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """The straight line between neighbours, of ascending points; None beyond the ends."""
    import numpy as np

    if not points or not points[0][0] <= x <= points[-1][0]:
        return None
    places, values = zip(*points, strict=True)
    return float(np.interp(x, places, values))


def always_kept(n: int) -> float:
    """Share of the causal pairs that the method as published keeps without a stripe."""
    kept = sum(group.always_pairs for group in groups(AnchorConfig(), n, n))
    return kept / causal_pairs(n)


def whole_tiles(density: float, n: int) -> float:
    """Pairs multiplied for a share of causal pairs in blocks: the diagonal's are whole, too."""
    return density + n * (BLOCK - 1) / 2 / causal_pairs(n)


def tail_cost(tail: int, n: int) -> float:
    """Pairs of the last rows with every key, of all causal pairs: about 2 · tail / N."""
    rows = min(tail, n)
    return causal_pairs(rows, n) / causal_pairs(n)
