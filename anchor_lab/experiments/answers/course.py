"""Answers of all kinds and placements together, as the notebooks print them."""

from collections.abc import Sequence

from anchor_lab.experiments.answers.counts import Counts
from anchor_lab.experiments.answers.page import data_cells, data_telling, data_totals
from anchor_lab.experiments.course import columns
from anchor_lab.experiments.page import spaced
from anchor_models.backend import TAIL

DEFAULT = f"tail {TAIL}"  # what models do


def data_asked(rows: Sequence[dict], way: str = DEFAULT) -> dict[int, Counts]:
    """By length: of the cells that dense attention answers often enough, all together.

    Args:
        rows: of results/answers/answers.json.
        way: that dense attention is compared with.
    """
    telling = data_telling(data_cells(list(rows)))
    return {n: counts for (n, _), counts in data_totals(telling, [way]).items()}


def asked_table(rows: Sequence[dict], way: str = DEFAULT) -> str:
    """`data_asked` as text."""
    lines = [columns("facts of several kinds, asked for", "dense", way, "lost", "won")]
    for n, x in data_asked(rows, way).items():
        cells = map(str, (x.dense, x.ours, x.lost, x.won))
        lines.append(columns(f"  N = {spaced(n)}, of {x.prompts}", *cells))
    return "\n".join(lines)
