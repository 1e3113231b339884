"""Who takes less time at equal recall or equal loss, as the notebooks print it."""

from collections.abc import Sequence

from anchor_lab.experiments.course import columns
from anchor_lab.experiments.page import number
from anchor_lab.experiments.side_by_side.figure import SHORT, data_recalls
from anchor_lab.experiments.side_by_side.ladders import OURS, PUBLISHED
from anchor_lab.experiments.side_by_side.losses import losses_of
from anchor_lab.experiments.side_by_side.measure import DENSE
from anchor_lab.experiments.side_by_side.page import equal_loss
from anchor_lab.experiments.side_by_side.timing import fastest


def data_rivals(rows: Sequence[dict], goal: str) -> dict[str, dict[str, float]]:
    """By heads and length, then by method: ms of one call at equal recall, dense attention first.

    Oracles and variants of the method are left out: nobody can, or does, use them.

    Args:
        rows: of results/side_by_side/side_by_side.json.
        goal: "recall 0.95" or "recall 0.98".

    Raises:
        ValueError: nothing was measured at this goal.
    """
    found = {}
    for place, goals in data_recalls(rows).items():
        source = place.split(",")[0]
        dense = fastest(
            [
                row
                for row in rows
                if (row["part"], row.get("source"), row.get("method")) == ("recall", source, DENSE)
            ]
        )
        if goal in goals and dense is not None:
            known = {name: ms for name, ms in goals[goal].items() if name in (OURS, *PUBLISHED)}
            found[place] = {DENSE: dense["ms"]["median"], **known}
    if not found:
        raise ValueError(f"goal must be one that was measured, got {goal!r}")
    return found


def rivals_table(rows: Sequence[dict], goal: str = "recall 0.95") -> str:
    """`data_rivals` as text, the fastest at the longer text first."""
    found = data_rivals(rows, goal)
    *_, longest = found.values()
    everyone = dict.fromkeys(name for times in found.values() for name in times)
    order = sorted(everyone, key=lambda name: longest.get(name, float("inf")))
    lines = [
        columns(
            f"  {SHORT.get(name, name) if name != OURS else OURS}",
            *(number(times[name]) if name in times else "–" for times in found.values()),
            other=26,
        )
        for name in order
    ]
    return "\n".join([columns(f"ms of one call at {goal}", *found, other=26), *lines])


def data_losses(rows: Sequence[dict]) -> dict[float, float]:
    """By θ: nats a token that AnchorAttention, without a tail, loses against dense attention."""
    return {
        theta: row["loss"]
        for (method, theta), row in sorted(losses_of(rows).items(), key=str)
        if method == OURS
    }


def losses_table(rows: Sequence[dict]) -> str:
    """Who loses no more than AnchorAttention, of the whole model's next tokens, in how many ms."""
    lines = []
    for table in equal_loss(rows):
        lines.append(columns(table["title"], "nats", "pairs", "ms a layer"))
        for name, _, nats, pairs, who, ms in table["lines"]:
            if who != "nobody":
                lines.append(columns(f"  {name.replace('*', '')}", nats, pairs, ms))
    return "\n".join(lines)
