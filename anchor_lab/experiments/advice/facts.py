"""The two questions of a model's owner, answered by numbers of other experiments' results.

faster from    the shortest prompt from which on every measured one was read faster
kept           answers found, beside those that dense attention finds, over all tasks together
gaining        the lengths that were asked and read faster: a prompt that leaves room for an answer
               counts as long as prompt and answer together, 32 640 tokens as 32 768
"""

from collections.abc import Sequence
from dataclasses import dataclass

from anchor_lab.experiments.answers.counts import Counts
from anchor_lab.experiments.answers.page import data_cells, data_totals, stands_for
from anchor_lab.experiments.crossover.figure import data_prefills, over_sdpa
from anchor_lab.experiments.crossover.share import data_dense
from anchor_lab.experiments.lengths.figure import data_heads

MODEL = "smollm2"
THETA = 12.0


@dataclass(frozen=True)
class Prefill:
    """A prefill of one length, by what computed its attention.

    Attributes:
        sdpa, always, auto: milliseconds: dense; AnchorAttention; whichever a model expects to be
            faster, with the cost of deciding.
        sparse_layers: in which "auto" ran AnchorAttention.
        gain: how many times as fast AnchorAttention is as dense attention.
    """

    sdpa: float
    always: float
    auto: float
    sparse_layers: int
    gain: float


def prefills(rows: Sequence[dict], model: str = MODEL) -> dict[int, Prefill]:
    """By length what was measured in all three ways, from the rows of `crossover`."""
    found = {}
    for n, ways in data_prefills(rows).get(model, {}).items():
        if {"sdpa", "auto", "always"} <= ways.keys():
            ms = {way: row["ms"]["median"] for way, row in ways.items()}
            sparse = ways["auto"]["sparse_layers"]
            gain = 1 / over_sdpa(ways, "always")
            found[n] = Prefill(ms["sdpa"], ms["always"], ms["auto"], sparse, gain)
    return found


def faster_from(found: dict[int, Prefill]) -> int | None:
    """The shortest length from which on all were read faster; None where the longest was not."""
    faster = None
    for n in sorted(found, reverse=True):
        if found[n].gain <= 1:
            break
        faster = n
    return faster


def most_gain(rows: Sequence[dict], model: str = MODEL) -> dict[int, tuple[float, float]]:
    """By length attention's share of a dense prefill, and the gain if attention took no time.

    From the rows of `crossover`; the share is that of `data_dense`.
    """
    dense = data_dense(rows).get(model, {})
    return {n: (at["share"], 1 / (1 - at["share"])) for n, at in dense.items()}


def pairs_kept(results: dict) -> dict[int, dict[str, float]]:
    """By length "density" and "recall" at the published θ, from the results of `lengths`."""
    found = data_heads(results["rows"], results["settings"]["thetas"])
    names = ("density", "recall")
    return {n: {name: x["thetas"][THETA][name] for name in names} for n, x in found.items()}


def answers(rows: Sequence[dict], ways: Sequence[str]) -> dict[int, dict[str, Counts]]:
    """By length and way the answers to the same prompts, of all tasks together.

    These are tasks that dense attention itself finds enough of, and that were asked in each of the
    ways that were tried at their length.
    """
    asked = {
        cell: found
        for cell, found in data_cells(list(rows)).items()
        if found["dense"].says_something
    }
    tried: dict[int, set[str]] = {}
    for (n, *_), found in asked.items():
        tried.setdefault(n, set()).update(found.keys() & set(ways))
    cells = {cell: found for cell, found in asked.items() if tried[cell[0]] <= found.keys()}
    totals: dict[int, dict[str, Counts]] = {}
    for (n, way), one in data_totals(cells, list(ways)).items():
        totals.setdefault(n, {})[way] = one
    return totals


def gaining(lengths: Sequence[int], faster: int | None) -> list[int]:
    """Those lengths of prompts that ask from which on prefills gain.

    Args:
        lengths: tokens.
        faster: of `faster_from`.
    """
    return [n for n in lengths if faster is not None and reaches(n, faster)]


def reaches(prompt: int, n: int) -> bool:
    """Whether a prompt is as long as N, or leaves no more than room for an answer."""
    return prompt >= n or stands_for(prompt, n)


def lost_cells(rows: Sequence[dict], way: str) -> list[tuple[tuple[int, str, str], Counts]]:
    """The cells in which a way finds too few, beside dense attention."""
    return [
        (cell, found[way])
        for cell, found in data_cells(list(rows)).items()
        if way in found and found["dense"].says_something and not found[way].keeps()
    ]
