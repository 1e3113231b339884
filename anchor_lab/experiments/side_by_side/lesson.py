"""What notebooks 12 and 13 show of everyone's kernels: calls by length, equal recall, losses."""

from collections.abc import Sequence

from anchor_lab.drawing.shapes import label, name_ticks
from anchor_lab.drawing.style import ACCENT, INK, STRIPE, TAIL, finish, panels
from anchor_lab.experiments.course import columns
from anchor_lab.experiments.page import number, percent, spaced
from anchor_lab.experiments.side_by_side.figure import SHORT, draw_planted
from anchor_lab.experiments.side_by_side.ladders import OURS
from anchor_lab.experiments.side_by_side.losses import DENSE
from anchor_lab.experiments.side_by_side.timing import fastest


def show_planted(data: dict[tuple[str, str], dict[int, float]], where: str) -> None:
    """The figure of `draw_planted`, with its words."""
    figure, ax = panels(size=(7.2, 4.4))
    draw_planted(data, ax)
    lengths = sorted({n for times in data.values() for n in times})
    name_ticks(ax.xaxis, lengths, [spaced(n) for n in lengths])
    finish(
        figure,
        draw_planted.__doc__,
        f"{where}; 32 / 8 heads of 128, planted stripes, 5 % of the candidates.",
        "Milliseconds of a call against length, both logarithmic. All dense kernels, and blocks "
        "that cover the stripes, grow with the square of the length. AnchorAttention lies below "
        "them from 8192 tokens on and is over ten times faster at 131 072.",
    )


def data_goal(rows: Sequence[dict], n: int, goal: str) -> list[dict]:
    """The fastest row of each method that reaches this recall at this length, fastest first.

    Ours is there once for each tail, and dense attention, whose recall is 1, as a method too.
    """
    here = [row for row in rows if (row["part"], row.get("n")) == ("recall", n)]
    own = [
        {"recall": 1.0} | row
        for row in here
        if row["status"] == "ok" and (row.get("goal") == goal or row.get("method") == DENSE)
    ]
    found = []
    for method in dict.fromkeys(row["method"] for row in own):
        of_method = [row for row in own if row["method"] == method]
        found += of_method if method == OURS else [fastest(of_method)]
    return sorted(found, key=lambda row: row["ms"]["median"])


def goal_table(found: Sequence[dict]) -> str:
    """`data_goal` as text."""
    lines = [columns("", "ms a call", "pairs kept", "recall")]
    for row in found:
        name = SHORT.get(row["method"], row["method"])
        cells = number(row["ms"]["median"]), percent(row["density"]), f"{row['recall']:.3f}"
        lines.append(columns(f"{name}, {row['way']}", *cells))
    return "\n".join(lines)


def data_losses(rows: Sequence[dict]) -> dict[str, list[tuple[float, float, float]]]:
    """By method: (pairs kept, loss above dense attention's, setting), by pairs."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if row["part"] == "loss" and row["status"] == "ok" and row["setting"] is not None:
            point = row["kept"], row["loss"], row["setting"]
            found.setdefault(row["method"], []).append(point)
    return {method: sorted(points) for method, points in found.items()}


def draw_losses(data: dict[str, list[tuple[float, float, float]]], ax) -> None:
    """What does a model lose, by the pairs that it keeps?"""
    looks = {OURS: STRIPE, "XAttention": ACCENT, "FlexPrefill": TAIL}
    for method, points in data.items():
        kept, lost = [point[0] for point in points], [point[1] for point in points]
        colour = looks.get(method, INK)
        ax.plot(kept, lost, color=colour, marker="o", ms=4, lw=1.2)
        at = len(points) // 2 if method == "FlexPrefill" else 0  # another begins where it does
        label(ax, SHORT.get(method, method), (kept[at], lost[at]), (5, 6), color=colour)
    ax.set(xlim=(0, 1), ylim=(0, None), xlabel="share of the pairs kept")
    ax.set(ylabel="nats a token above dense")


def show_losses(data: dict[str, list[tuple[float, float, float]]], where: str) -> None:
    """The figure of `draw_losses`, with its words."""
    figure, ax = panels(size=(7.2, 3.6))
    draw_losses(data, ax)
    finish(
        figure,
        draw_losses.__doc__,
        f"{where}; SmolLM2, one text of 8192 tokens, rows beyond the first 2048.",
        "Loss above dense attention's against the share of the pairs kept. AnchorAttention's two "
        "points, 0.18 at 40 % and 0.15 at 64 %, lie above the lines of FlexPrefill, FlashPrefill "
        "and XAttention, which lose less than half of that with as many pairs.",
    )
