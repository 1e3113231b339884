"""Every method at one length: what it loses or keeps for as much time, and for as much work.

losses    a line for each configuration read by the whole model, from the results of `losses`, a
          file for each length
recall    a line for each configuration on the layers looked at, from the results of `rivals`

A line has "density", "executed_density" and "total_cost", shares of all causal pairs, and where it
is known "time", a share of cuDNN's, with its "kind".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anchor_lab.experiments.compare.figure import ORACLES, OURS
from anchor_lab.experiments.losses.figure import Lost, data_at, data_lost, neighbours
from anchor_lab.experiments.losses.measure import DENSE
from anchor_lab.experiments.rivals.figure import data_curves
from anchor_lab.experiments.rivals.page import published
from anchor_lab.experiments.verdict.times import Clock, Kind, Time, clock_of

LENGTHS = (8192, 32_768)
LONG = "long losses"
LOSSES = ("losses", LONG)  # results of whole models, each of one length
BUDGETS = ("time", "total_cost")
LEVELS = (0.2, 0.4, 0.6, 0.8)  # of cuDNN's time for dense attention, or of its work


@dataclass(frozen=True)
class Value:
    """A loss or a recall.

    Attributes:
        value: nats a token above dense attention, or mean recall.
        low, high: 95 % interval; both the value where there is none.
        kind: the worse of the two times that it was read off between; None for another budget.
    """

    value: float
    low: float
    high: float
    kind: Kind | None


@dataclass(frozen=True)
class Ranking:
    """All methods at one level of a budget.

    Attributes:
        budget: of `BUDGETS`.
        level: of it.
        found: by method, the best first; last, as None, those that spend more.
        ranked: the published ones among those that have a value.
        level_with: of these the ones that the first one is not ahead of beyond both intervals.
    """

    budget: str
    level: float
    found: dict[str, Value | None]
    ranked: list[str]
    level_with: list[str]

    @property
    def place(self) -> int | None:
        """Of AnchorAttention, from 1; None where it spends more."""
        return self.ranked.index(OURS) + 1 if OURS in self.ranked else None

    @property
    def tells(self) -> bool:
        """Whether half of the published methods can spend so little: else nobody is ahead."""
        return 0 < len(published(self.found)) <= 2 * len(self.ranked)

    @property
    def first(self) -> list[str]:
        """The best published method, and those that it is not ahead of."""
        return [*self.ranked[:1], *self.level_with]


def clocks_of(results: dict) -> dict[int, Clock | None]:
    """What is known about times, by length, from the results that are there by name."""
    tables = results.get("side_by_side"), results.get("crossover")
    return {n: clock_of(*tables, n) for n in LENGTHS}


def lines_of(results: dict, n: int) -> tuple[list[dict], list[dict]]:
    """Configurations with a loss, and with a recall, at one length; empty where not measured."""
    read = [one for one in losses_of(results) if one["settings"]["tokens"] == n]
    losses = read[0]["rows"] if read else []
    return losses, recall_lines(results.get("rivals", {"rows": []})["rows"], n)


def losses_of(results: dict) -> list[dict]:
    """Results of `losses` that are there, the shorter texts first."""
    found = [results[name] for name in LOSSES if name in results]
    return sorted(found, key=lambda one: one["settings"]["tokens"])


def rankings(
    losses: Sequence[dict], recalls: Sequence[dict], clock: Clock | None
) -> tuple[list[Ranking], list[Ranking]]:
    """By loss and by recall, at every level of every budget; empty where ours is not measured."""
    lost, found = timed(losses, clock), timed(recalls, clock)
    places = [(budget, level) for budget in BUDGETS for level in LEVELS]
    return (
        [losses_ranking(lost, *place) for place in places] if _has_ours(lost) else [],
        [recall_ranking(found, *place) for place in places] if _has_ours(found) else [],
    )


def _has_ours(lines: Sequence[dict]) -> bool:
    return any(line["method"] == OURS for line in lines)


def timed(lines: Sequence[dict], clock: Clock | None) -> list[dict]:
    """The lines, with "time" and "kind" where they are known; oracles and dense are left out."""
    found = []
    for line in lines:
        if line["method"] == DENSE or line["method"] in ORACLES:
            continue
        time = time_of(line, clock)
        known = {} if time is None else {"time": time.share, "kind": time.kind}
        found.append({**line, **known})
    return found


def time_of(line: dict, clock: Clock | None, tail: int = 0) -> Time | None:
    """Of a line without a tail, or of the same choice with one."""
    if clock is None:
        return None
    scored = line["total_cost"] - line["executed_density"]
    return clock.of(line["method"], line["density"], line["executed_density"], scored, tail)


def recall_lines(rows: Sequence[dict], n: int) -> list[dict]:
    """Means over heads, layers and texts at one length, of the table of `rivals`."""
    if not any(row["length"] == n for row in rows):
        return []
    return data_curves(rows, n).to_dict("records")


def losses_ranking(lines: Sequence[dict], budget: str, level: float) -> Ranking:
    """Who loses least; between two configurations the line is read off, run by run."""
    there = [line for line in lines if budget in line]

    def value(name: str, lost: Lost) -> Value:
        return Value(lost.mean, *lost.interval, kind_at(there, name, budget, level))

    found = data_at(there, budget, level)
    values = {x: None if lost is None else value(x, lost) for x, lost in found.items()}
    return _ranking(budget, level, values, lambda a, b: a.high < b.low)


def recall_ranking(lines: Sequence[dict], budget: str, level: float) -> Ranking:
    """Who finds most; between two configurations the line is read off."""
    there = [line for line in lines if budget in line]
    values: dict[str, Value | None] = {}
    for name in dict.fromkeys(line["method"] for line in there):
        pair = neighbours(there, name, budget, level)
        if pair is None:
            values[name] = None
            continue
        low, high = pair
        wide = high[budget] - low[budget]
        share = (level - low[budget]) / wide if wide else 0.0
        mean = (1 - share) * low["recall_mean"] + share * high["recall_mean"]
        values[name] = Value(mean, mean, mean, kind_at(there, name, budget, level))
    order = sorted(values, key=lambda x: -1.0 if values[x] is None else values[x].value)[::-1]
    return _ranking(budget, level, {x: values[x] for x in order}, lambda a, b: a.low > b.high)


def _ranking(
    budget: str, level: float, found: dict[str, Value | None], beats: Callable
) -> Ranking:
    ranked = published(name for name, one in found.items() if one is not None)
    tied = [x for x in ranked[1:] if not beats(found[ranked[0]], found[x])]
    return Ranking(budget, level, found, ranked, tied)


def kind_at(lines: Sequence[dict], name: str, budget: str, level: float) -> Kind | None:
    """How the time is known that a value was read off at; None for another budget."""
    pair = neighbours(lines, name, budget, level)
    if budget != "time" or pair is None:
        return None
    return max(one["kind"] for one in pair)


def loss_of(line: dict) -> Value:
    """Of one configuration."""
    lost = data_lost(line)
    return Value(lost.mean, *lost.interval, line.get("kind"))
