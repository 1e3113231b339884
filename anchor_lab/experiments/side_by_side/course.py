"""Who takes less time at equal recall or equal loss, as the notebooks print it."""

from collections.abc import Sequence

from anchor_lab.experiments.course import columns
from anchor_lab.experiments.page import number
from anchor_lab.experiments.side_by_side.figure import data_recalls
from anchor_lab.experiments.side_by_side.ladders import OURS, PUBLISHED
from anchor_lab.experiments.side_by_side.measure import DENSE
from anchor_lab.experiments.side_by_side.page import equal_loss
from anchor_lab.experiments.side_by_side.timing import fastest
from anchor_models.backend import TAIL
from anchor_ref import AnchorConfig

TAILED = f"{OURS}, tail {TAIL}"
PUBLISHED_THETA = AnchorConfig().theta


def data_rivals(rows: Sequence[dict], goal: str) -> dict[str, dict[str, float]]:
    """By heads and length, then by method: ms of one call at equal recall, dense attention first.

    AnchorAttention is there without a tail, under its own name, and as `TAILED`, whose choice is
    the same and whose last rows see everything: what models run unless told otherwise.
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
            known = {name: ms for name, ms in goals[goal].items() if name in PUBLISHED}
            found[place] = {DENSE: dense["ms"]["median"], **known, **_ours(rows, source, goal)}
    if not found:
        raise ValueError(f"goal must be one that was measured, got {goal!r}")
    return found


def _ours(rows: Sequence[dict], source: str, goal: str) -> dict[str, float]:
    """ms of AnchorAttention without and with a tail, by the names that tables give them."""
    names = {"tail 0": OURS, f"tail {TAIL}": TAILED}
    return {
        names[row["way"]]: row["ms"]["median"]
        for row in rows
        if (row["part"], row.get("source"), row.get("goal"), row.get("method"))
        == ("recall", source, goal, OURS)
        and row["status"] == "ok"
    }


def rivals_table(rows: Sequence[dict], goal: str = "recall 0.95") -> str:
    """`data_rivals` as text, the fastest at the longer text first."""
    found = data_rivals(rows, goal)
    *_, longest = found.values()
    everyone = dict.fromkeys(name for times in found.values() for name in times)
    order = sorted(everyone, key=lambda name: longest.get(name, float("inf")))
    lines = [
        columns(
            f"  {f'{OURS}, no tail' if name == OURS else name}",
            *(number(times[name]) if name in times else "–" for times in found.values()),
            other=26,
        )
        for name in order
    ]
    return "\n".join([columns(f"ms of one call at {goal}", *found, other=26), *lines])


def losses_table(rows: Sequence[dict]) -> str:
    """Who loses no more than AnchorAttention, of the whole model's next tokens, in how many ms.

    The loss was measured without a tail, so a line with one gives its time alone.
    """
    lines = []
    for table in equal_loss(rows):
        lines.append(columns(table["title"], "nats", "pairs", "ms a layer"))
        for name, _, nats, pairs, who, ms in table["lines"]:
            if f"tail {TAIL}" in name:
                nats = pairs = "–"
            if who != "nobody":
                lines.append(columns(f"  {name.replace('*', '')}", nats, pairs, ms))
    return "\n".join(lines)


def data_tails(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """What a tail costs on real heads: ms of one layer's attention on the device.

    Returns:
        By length, "dense" by the fastest kernel, "no tail" and "tail 512": the mean over the
        layers timed at 8192 tokens and θ = 12, and layer 15 of 32 768 tokens at recall 0.95.
    """
    short = next(t for t in equal_loss(rows) if t["title"] == f"loss at θ = {PUBLISHED_THETA:g}")
    by_name = {
        line[0].replace("*", ""): float(line[-1]) for line in short["lines"] if line[4] != "nobody"
    }
    place, times = list(data_rivals(rows, "recall 0.95").items())[-1]
    return {
        f"8192 tokens, θ = {PUBLISHED_THETA:g}": {
            "dense": by_name[DENSE],
            "no tail": by_name[f"{OURS}, tail 0"],
            f"tail {TAIL}": by_name[TAILED],
        },
        place: {
            "dense": times[DENSE],
            "no tail": times[OURS],
            f"tail {TAIL}": times[TAILED],
        },
    }


def tails_table(rows: Sequence[dict]) -> str:
    """`data_tails` as text."""
    found = data_tails(rows)
    names = next(iter(found.values()))
    head = columns("a layer's attention, ms", *names)
    lines = [
        columns(f"  {place}", *(number(ms) for ms in times.values()))
        for place, times in found.items()
    ]
    return "\n".join([head, *lines])
