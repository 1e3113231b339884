"""The page about answers: every cell with its interval, and whether as many are found."""

from collections.abc import Sequence
from pathlib import Path

from anchor_lab.experiments.answers import measure
from anchor_lab.experiments.answers.counts import MARGIN, Counts, count, shown, together
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import render, spaced

Cell = tuple[int, str, str]  # length, task, placement
ROOM = 128  # of positions, that a prompt may leave for the answer


def page(results: dict, _path: Path) -> str:
    """The numbers as Markdown."""
    return render("answers/page.md.j2", **values(results))


def values(results: dict) -> dict:
    """What the template is filled with."""
    cells = data_cells(results["rows"])
    ways = list(dict.fromkeys(way for found in cells.values() for way in found if way != "dense"))
    telling = data_telling(cells)
    return {
        "settings": results["settings"],
        "dates": list(dict.fromkeys(run["date"] for run in results["runs"])),
        "kernels": list(dict.fromkeys(x["kernels"] for x in results["runs"] if "kernels" in x)),
        "margin": f"{100 * MARGIN:g}",
        "few": [
            f"{task}, {placement}, {spaced(n)} tokens: {shown(x.dense, x.prompts)}"
            for (n, task, placement), found in cells.items()
            if not (x := found["dense"]).says_something
        ],
        "totals": [
            {
                "n": spaced(n),
                "cells": in_cells(shared),
                "ways": len(found),
                "lines": [[way, *_line(one)] for way, one in found.items()],
            }
            for n in sorted({cell[0] for cell in telling})
            for shared, found in data_compared(
                {cell: x for cell, x in telling.items() if cell[0] == n}, ways
            )
        ],
        "cells": [
            [spaced(n), task, placement, way, *_line(found[way])]
            for (n, task, placement), found in telling.items()
            for way in ways
            if way in found
        ],
    }


def _line(one: Counts) -> list[str]:
    ways = [shown(found, one.prompts) for found in (one.dense, one.ours)]
    return [*ways, str(one.lost), str(one.won), "yes" if one.keeps() else "**no**"]


def stands_for(prompt: int, n: int) -> bool:
    """Whether prompts of so many tokens, and room for an answer, tell of N: 8064 of 8192."""
    return n - ROOM <= prompt <= n


def data_cells(rows: list[dict]) -> dict[Cell, dict[str, Counts]]:
    """Counts by cell and way, dense attention against itself among them."""
    found: dict[Cell, dict[str, list[int]]] = {}
    for row in rows:
        cell = row["length"], row["task"], row["placement"]
        found.setdefault(cell, {})[row["way"]] = row["found"]
    return {
        cell: {way: count(ways["dense"], right) for way, right in ways.items()}
        for cell, ways in sorted(found.items())
        if "dense" in ways
    }


def data_telling(cells: dict) -> dict:
    """Those cells that dense attention answers often enough for a loss to show."""
    return {cell: found for cell, found in cells.items() if found["dense"].says_something}


def data_totals(cells: dict, ways: list[str]) -> dict[tuple[int, str], Counts]:
    """Counts over the cells of a length, by way; a way counts where it was run."""
    totals = {}
    for n in sorted({cell[0] for cell in cells}):
        for way in ways:
            ran = [found[way] for cell, found in cells.items() if cell[0] == n and way in found]
            if ran:
                totals[n, way] = together(ran)
    return totals


def data_compared(cells: dict, ways: list[str]) -> list[tuple[list[Cell], dict[str, Counts]]]:
    """Totals that may be compared: each over cells that all ways there were run in.

    For each set of cells that some way was run in, all ways that were run in the whole of it: a
    way that was run in more cells than others stands beside them by their cells, and in its own.

    Args:
        cells: of one length.
        ways: those that count, in this order.

    Returns:
        (cells, totals by way), those with most ways first, then those with most cells.
    """
    ran = {way: [cell for cell, found in cells.items() if way in found] for way in ways}
    found = [
        (
            list(shared),
            {
                way: together([cells[cell][way] for cell in shared])
                for way in ways
                if {*shared} <= {*ran[way]}
            },
        )
        for shared in dict.fromkeys(tuple(own) for own in ran.values() if own)
    ]
    return sorted(found, key=lambda one: (-len(one[1]), -len(one[0])))


def in_cells(cells: Sequence[Cell]) -> str:
    """Each task of one length with its placements: "single (end, turn); words (end)"."""
    found: dict[str, list[str]] = {}
    for _, task, placement in cells:
        found.setdefault(task, []).append(placement)
    return "; ".join(f"{task} ({', '.join(places)})" for task, places in found.items())


EXPERIMENT = Experiment(
    name="answers",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="answers/answers.json",
    options=measure.options,
)
