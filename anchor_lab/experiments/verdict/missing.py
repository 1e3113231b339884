"""What the page cannot tell yet: what the experiments could measure, and have not."""

from collections.abc import Iterable, Sequence
from itertools import product

from anchor_lab.experiments.answers.measure import RIVALS, ways_of
from anchor_lab.experiments.answers.page import Cell, data_telling, in_cells
from anchor_lab.experiments.answers.prompts import PLACEMENTS, TASKS
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.page import listed, spaced
from anchor_lab.experiments.rivals.page import published
from anchor_lab.experiments.verdict.ahead import LONG, LOSSES
from anchor_lab.experiments.verdict.asked import asked_at, cells_at
from anchor_lab.methods import METHODS
from anchor_models.backend import TAIL

OTHERS = "every other method"


def missing(results: dict, lengths: Sequence[dict], sources: Iterable[str]) -> list[str]:
    """Everything that is missing, in words.

    Args:
        results: by name, those that are there.
        lengths: of each length "n", "losses", "recalls", "answered", "clock", and "lacking":
            methods without a line by "losses" and "recalls", and "answers" in words.
        sources: names of all that the page reads.
    """
    # Losses of several lengths lie in files of their own: one is as good as another.
    there = {*results, *(LOSSES if {*LOSSES} & {*results} else ())}
    found = [name for name in sources if name not in there and name != LONG]
    for one in lengths:
        for what, lines in (("losses", "losses"), ("recall", "recalls"), ("answers", "answered")):
            lacking = one["lacking"].get(lines)
            if what not in found and not one[lines]:
                found.append(f"{what} at {one['n']} tokens")
            elif one[lines] and lacking:
                found.append(f"{what} of {listed(lacking)} at {one['n']} tokens")
        found += one["lacking"]["answers"]
        if one["clock"] is None:
            found.append(f"times at {one['n']} tokens")
    return found


def no_line(lines: Sequence[dict]) -> list[str]:
    """Published methods of the laboratory without a line."""
    there = {line["method"] for line in lines}
    return [name for name in published(METHODS) if name not in there]


def not_asked(rows: Sequence[dict], n: int) -> list[str]:
    """Answers that are missing at one length, in words; nothing where dense attention alone was
    asked.

    Args:
        rows: of `answers`.
        n: N.
    """
    length, cells = asked_at(rows, n), cells_at(rows, n)
    if not any(len(found) > 1 for found in cells.values()):
        return []
    at, said = f"answers at {spaced(length)} tokens", []
    every = [(length, *one) for one in product(TASKS, PLACEMENTS)]
    unasked = [cell for cell in every if cell not in cells]
    if unasked:
        said.append(
            f"{at} of dense attention, and so of all others, in {len(unasked)} of {len(every)} "
            "kinds of prompts"
        )
    telling = data_telling(cells)
    for names, asked in by_cells([name for name in ways_of("ours") if name != "dense"], telling):
        said.append(_lacking(f"{at} of {OURS} ({listed(names)})", asked))
    for names, asked in by_cells(RIVALS, telling):
        said.append(_lacking(f"{at} of {_others(names)}", asked))
    tailed = {f"{name}, tail {TAIL}": name for name in RIVALS}
    for ways, asked in by_cells(list(tailed), telling):
        who = _others([tailed[way] for way in ways])
        said.append(_lacking(f"{at} of {who} with a tail of {TAIL} rows", asked))
    corrected = [name for name in ways_of("corrected") if name != "dense"]
    for names, asked in by_cells(corrected, telling):
        said.append(_lacking(f"{at} with corrections ({'; '.join(names)})", asked))
    return said


def by_cells(names: Sequence[str], telling: dict) -> list[tuple[list[str], list[Cell]]]:
    """Ways that were not asked everywhere, together with those that were asked in the same cells.

    Args:
        names: of ways.
        telling: counts by cell and way, of the cells that dense attention answers half of.
    """
    found: dict[tuple[Cell, ...], list[str]] = {}
    for name in names:
        asked = tuple(cell for cell, ways in telling.items() if name in ways)
        if len(asked) < len(telling):
            found.setdefault(asked, []).append(name)
    return [(together, list(asked)) for asked, together in found.items()]


def _others(names: Sequence[str]) -> str:
    return OTHERS if len(names) == len(RIVALS) else listed(names)


def _lacking(what: str, asked: Sequence[Cell]) -> str:
    return f"{what}, but for {in_cells(asked)}" if asked else what
