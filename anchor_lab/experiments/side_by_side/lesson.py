"""What notebook 12 shows of everyone's kernels: calls by length, and at equal recall."""

from collections.abc import Sequence

from anchor_lab.drawing.shapes import label, name_ticks
from anchor_lab.drawing.style import ACCENT, INK, STRIPE, TAIL, finish, panels
from anchor_lab.experiments.course import columns
from anchor_lab.experiments.page import number, percent, spaced
from anchor_lab.experiments.side_by_side.figure import SHORT
from anchor_lab.experiments.side_by_side.ladders import OURS
from anchor_lab.experiments.side_by_side.losses import DENSE
from anchor_lab.experiments.side_by_side.timing import fastest

FASTEST = DENSE, "FlashAttention-4"  # of the dense kernels; the unit of the figure
LINES = {  # method and way: name, colour, how far its name is moved up
    (DENSE, "FlashAttention-2"): ("FlashAttention-2, dense", INK, 0),
    ("the same blocks", "FlashAttention-4"): ("blocks, FlashAttention-4", TAIL, 5),
    FASTEST: ("FlashAttention-4, dense", INK, -5),
    (OURS, "tail 512"): ("ours, tail 512", ACCENT, 5),
    (OURS, "tail 0"): ("ours, no tail", STRIPE, -5),
}


def data_over_dense(
    data: dict[tuple[str, str], dict[int, float]],
) -> dict[tuple[str, str], dict[int, float]]:
    """Of the methods of `LINES` the time over that of the fastest dense kernel, by length.

    Args:
        data: ms, see `figure.data_planted`.
    """
    dense = data[FASTEST]
    return {way: {n: ms / dense[n] for n, ms in data[way].items() if n in dense} for way in LINES}


def draw_planted(data: dict[tuple[str, str], dict[int, float]], ax) -> None:
    """How long is a call, beside the fastest dense kernel?"""
    for way, ratios in data.items():
        name, colour, up = LINES[way]
        ax.plot(list(ratios), list(ratios.values()), color=colour, marker="o", ms=4, lw=1.2)
        label(ax, name, (max(ratios), ratios[max(ratios)]), (6, up), color=colour)
    ax.set(xscale="log", yscale="log", xlabel="N, tokens", ylabel="time / FlashAttention-4, dense")
    name_ticks(ax.yaxis, [0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])


def show_planted(data: dict[tuple[str, str], dict[int, float]], where: str) -> None:
    """The figure of `draw_planted`, with its words.

    Args:
        data: see `data_over_dense`.
        where: it was measured.
    """
    figure, ax = panels(size=(7.2, 3.6))
    draw_planted(data, ax)
    lengths = sorted({n for ratios in data.values() for n in ratios})
    name_ticks(ax.xaxis, lengths, [spaced(n) for n in lengths])
    ends = [f"{LINES[way][0]} {x[lengths[0]]:.2f} and {x[lengths[-1]]:.2f}"
            for way, x in data.items()]  # fmt: skip
    finish(
        figure,
        draw_planted.__doc__,
        f"{where}; 32 / 8 heads of 128, planted stripes, 5 % of the candidates.",
        "Time of a call over that of the fastest dense kernel, both axes logarithmic, at the "
        f"shortest and the longest length: {'; '.join(ends)}.",
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
    """`data_goal` as text; pairs and recall of ours are those of the choice, without a tail."""
    lines = [columns("", "ms a call", "pairs kept", "recall", "scored")]
    for row in found:
        name = SHORT.get(row["method"], row["method"])
        scored = percent(row["scored"]) if row.get("scored") is not None else "–"
        kept = percent(row["density"]), f"{row['recall']:.3f}", scored
        if row["method"] == OURS and row["way"] != "tail 0":
            kept = "–", "–", scored
        lines.append(columns(f"{name}, {row['way']}", number(row["ms"]["median"]), *kept))
    return "\n".join(lines)
