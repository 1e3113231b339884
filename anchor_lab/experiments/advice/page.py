"""Should I use it? From which length on it is faster, and whether answers survive.

    python -m anchor_lab advice    writes advice.md from the results that lie beside it

Measures nothing: every number is of the experiments crossover, answers, lengths and losses, read
from their files. What is not there is said to be missing. `anchor-ref inspect` answers the same
for another model, on its owner's text.
"""

import argparse
import sys
from pathlib import Path

from anchor_lab.experiments import store
from anchor_lab.experiments.advice import facts
from anchor_lab.experiments.answers.counts import MARGIN, Counts, shown
from anchor_lab.experiments.answers.measure import SECOND_CALL
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.losses.figure import data_lost, in_words
from anchor_lab.experiments.losses.measure import DENSE, row_of
from anchor_lab.experiments.losses.tokens import CLASSES, NEW
from anchor_lab.experiments.page import digits, number, percent, render, signed, spaced
from anchor_models.backend import TAIL

SOURCES = ("crossover", "answers", "lengths", "losses")
BROUGHT = "brought"  # losses of texts that somebody brought, by the name of their file
DEFAULT, PAPER = f"tail {TAIL}", "tail 0"  # ways of answers: as in models, as published


def gather(out: Path) -> dict:
    """Results of each of `SOURCES` by name, those that are there, and those that are `BROUGHT`.

    Args:
        out: the page, in a folder beside theirs.
    """
    found = store.read_beside(out, {name: f"{name}/{name}.json" for name in SOURCES})
    others = sorted((out.parent.parent / "losses").glob("*.json"))
    files = {path.stem: f"losses/{path.name}" for path in others if path.stem != "losses"}
    return found | {BROUGHT: store.read_beside(out, files)}


def measure(options: argparse.Namespace) -> int:
    """Nothing is measured; 2 with a line on stderr where there is nothing to read."""
    if "crossover" not in gather(options.out):
        print(
            "python -m anchor_lab crossover must come first: there are no times", file=sys.stderr
        )
        return 2
    return 0


def page(results: dict, _path: Path) -> str:
    """The answers as Markdown."""
    return render("advice/page.md.j2", **values(results))


def values(results: dict) -> dict:
    """What the template is filled with."""
    times = facts.prefills(results["crossover"]["rows"])
    lengths, asked, lost = (results.get(name) for name in ("lengths", "answers", "losses"))
    return {
        "sources": [f"[{name}](../{name}/{name}.md)" for name in SOURCES if name in results],
        "missing": [name for name in SOURCES if name not in results],
        "device": results["crossover"]["settings"]["device"],
        "tail": TAIL,
        "margin": f"{100 * MARGIN:g}",
        "faster": faster(times),
        "times": table_of_times(
            times,
            facts.most_gain(results["crossover"]["rows"]),
            facts.pairs_kept(lengths) if lengths else {},
        ),
        "answers": answers(asked["rows"], times) if asked else None,
        "losses": [
            losses(name, one)
            for name, one in {"losses": lost, **results.get(BROUGHT, {})}.items()
            if one
        ],
    }


def faster(times: dict[int, facts.Prefill]) -> dict:
    """From which length on, and by how much."""
    start = facts.faster_from(times)
    slower = [n for n in times if times[n].gain <= 1]
    worst = min(slower, key=lambda n: times[n].gain) if slower else None
    return {
        "from": None if start is None else spaced(start),
        "longest": spaced(max(times)) if times else None,
        "gains": [
            f"{times[n].gain:.2f} times as fast at {spaced(n)}"
            for n in sorted(times)
            if start is not None and n >= start
        ],
        "worst": None if worst is None else [spaced(worst), f"{1 / times[worst].gain:.2f}"],
        "auto": [
            spaced(n)
            for n, x in sorted(times.items())
            if x.sparse_layers == 0 and start is not None and n >= start
        ],
    }


def table_of_times(times: dict, gains: dict, kept: dict) -> list[list[str]]:
    """A row for each length: prefills, gain, what attention leaves to gain, what is kept."""
    return [
        [
            spaced(n),
            number(x.sdpa),
            number(x.always),
            f"{x.gain:.2f}",
            number(x.auto),
            "AnchorAttention" if x.sparse_layers else "dense",
            percent(gains[n][0]) if n in gains else "–",
            digits(gains[n][1], 2) if n in gains else "–",
            percent(kept[n]["density"]) if n in kept else "–",
            digits(kept[n]["recall"], 3) if n in kept else "–",
        ]
        for n, x in sorted(times.items())
    ]


def answers(rows: list[dict], times: dict[int, facts.Prefill]) -> dict:
    """What the tail of models finds, the method as published, and what else was tried.

    Args:
        rows: of `answers`.
        times: of `facts.prefills`, which tell from which length on prefills gain.
    """
    tails = list(dict.fromkeys(row["way"] for row in rows if row["way"].startswith("tail ")))
    ways = [*tails, *(way for way in (SECOND_CALL,) if any(row["way"] == way for row in rows))]
    found = facts.answers(rows, ways)
    default = {n: x[DEFAULT] for n, x in found.items() if DEFAULT in x}
    paper = {n: x[PAPER] for n, x in found.items() if PAPER in x}
    faster, lost = facts.faster_from(times), facts.lost_cells(rows, DEFAULT)
    gain = facts.gaining(list(default), faster)
    return {
        "kept": [spaced(n) for n, one in default.items() if one.keeps()],
        "kept_but": [
            _cell(*cell, x) for cell, x in lost if cell[0] in default and default[cell[0]].keeps()
        ],
        "lost": [_line(n, one) for n, one in default.items() if not one.keeps()],
        "mended": [
            [spaced(n), [way for way in ways if way in found[n] and found[n][way].keeps()]]
            for n, one in default.items()
            if not one.keeps()
        ],
        "longest": spaced(max(default, default=0)),
        "open": bool(default) and faster is not None and not gain,
        "gaining": [[spaced(n), default[n].prompts, default[n].keeps()] for n in gain],
        "longer": bool(gain) and not facts.reaches(max(gain), max(times)),
        "why": why(found),
        "paper_lost": [_line(n, one) for n, one in paper.items() if not one.keeps()],
        "cells": [
            [spaced(n), task, placement, shown(x.dense, x.prompts), shown(x.ours, x.prompts)]
            for (n, task, placement), x in lost
        ],
        "ways": ways,
        "table": [
            [spaced(n), _dense(x), *(_ours(x[way]) if way in x else "–" for way in ways)]
            for n, x in found.items()
        ],
    }


def why(found: dict[int, dict[str, Counts]]) -> dict | None:
    """Whether a dense question over the sparse document's cache finds too few as well.

    Args:
        found: of `facts.answers`.

    Returns:
        Of the length with most prompts, the longest of several, that loses answers with the tail
        of models and with the second call: tokens, prompts, and what dense attention, tail and
        second call find. None where there is none.
    """
    both = [
        n
        for n, x in found.items()
        if all(way in x and not x[way].keeps() for way in (DEFAULT, SECOND_CALL))
    ]
    if not both:
        return None
    n = max(both, key=lambda n: (found[n][DEFAULT].prompts, n))
    tail, second = (found[n][way] for way in (DEFAULT, SECOND_CALL))
    counts = {"dense": tail.dense, "tail": tail.ours, "second": second.ours}
    return {"tokens": spaced(n), "prompts": tail.prompts, **counts}


def _cell(n: int, task: str, placement: str, one: Counts) -> str:
    return (
        f"{task}, {placement}, {spaced(n)} tokens: {one.ours} of {one.prompts} where dense "
        f"attention finds {one.dense}"
    )


def _dense(by_way: dict[str, Counts]) -> str:
    one = next(iter(by_way.values()))
    return shown(one.dense, one.prompts)


def _ours(one: Counts) -> str:
    return shown(one.ours, one.prompts)


def _line(n: int, one: Counts) -> str:
    return (
        f"{spaced(n)} tokens, {one.ours} of {one.prompts} where dense attention finds {one.dense} "
        f"({one.lost} are lost, {one.won} won)"
    )


def losses(name: str, results: dict) -> dict:
    """What texts' predictions lose by θ, without a tail.

    Returns:
        name: of the file; texts, in words; tokens: of each; repeat: the share of them that repeat
        something; table.
    """
    ours = [row for row in results["rows"] if row["method"] == OURS]
    counts = row_of(results["rows"], DENSE, "default")["counts"].values()
    new = sum(x[CLASSES.index(NEW)] for x in counts) / sum(map(sum, counts))
    table = []
    for row in sorted(ours, key=lambda row: row["density"]):
        low, high = data_lost(row).interval
        mean = data_lost(row).mean
        table.append(
            [
                row["configuration"],
                percent(row["density"]),
                f"{signed(mean)} ({signed(low)} to {signed(high)})",
            ]
        )
    return {
        "name": name,
        "texts": in_words(results["settings"]["texts"]),
        "tokens": spaced(results["settings"]["tokens"]),
        "repeat": percent(1 - new),
        "table": table,
    }


EXPERIMENT = Experiment(
    name="advice",
    about=__doc__,
    measure=measure,
    page=page,
    file="advice/advice.md",
    read=gather,
)
