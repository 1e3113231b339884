"""Which methods have been read as far as a comparison needs: a run may have been stopped."""

from collections.abc import Sequence

from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.losses.measure import (
    BUDGETS,
    DENSE,
    GOALS,
    bracket,
    compared,
    ladders,
    theta_label,
)
from anchor_lab.experiments.rivals.page import published


def finished_rows(rows: Sequence[dict]) -> list[dict]:
    """Those of dense attention, of ours, and of each method whose levels are all bracketed.

    A method read in part would be taken for one that cannot spend more, or less.

    Args:
        rows: of results/losses/*.json.
    """
    begun = unfinished(rows)
    return [row for row in rows if row["method"] not in begun]


def unfinished(rows: Sequence[dict]) -> list[str]:
    """Methods of which configurations next to a level are still to be read."""
    names = dict.fromkeys(row["method"] for row in rows)
    return [name for name in names if name not in (DENSE, OURS) and not _is_finished(rows, name)]


def comparable(results: dict) -> dict | None:
    """Results with their finished rows; None where more published methods are only begun.

    Args:
        results: of results/losses/*.json.
    """
    rows = finished_rows(results["rows"])
    done = {*published(row["method"] for row in rows)} - {OURS}
    begun = published(unfinished(results["rows"]))
    return None if len(begun) > len(done) else {**results, "rows": rows}


def _is_finished(rows: Sequence[dict], name: str) -> bool:
    labels = list(ladders((), [name])[name])
    read = {row["configuration"]: row for row in rows if row["method"] == name}
    if not read.keys() <= set(labels):  # of another sweep than today's: whole, or nobody can tell
        return True
    wanted = {theta_label(theta) for theta in GOALS}
    ours = [row for row in rows if row["method"] == OURS and row["configuration"] in wanted]
    try:
        for row in ours:
            for budget in (one for one in BUDGETS if compared(name, one)):
                # As in `measure.fill`, but that nothing is read: what is missing is a KeyError.
                bracket(
                    lambda place, budget=budget: read[labels[place]][budget],
                    len(labels),
                    row[budget],
                )
    except KeyError:
        return False
    return True
