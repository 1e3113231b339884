"""Figures of the retrieval bench: who still answers, and which questions are lost."""

from collections.abc import Sequence

from anchor_lab.drawing.style import ACCENT, INK, MAGNITUDE, STRIPE
from anchor_lab.experiments.retrieval.score import wilson

COLOURS, MARKERS = (STRIPE, ACCENT), ("o", "D")  # of rising density


def data_answers(
    cells: Sequence[dict], length: int
) -> dict[str, dict[float | None, tuple[float, float, float]]]:
    """Answers found, mean over the tasks that dense attention can do.

    Args:
        cells: each with "length", "row", "task", "density" (None where a row has its own),
            "right", "asked", "prompts"; the row "Dense" tells which tasks can be done: those
            answered in half of the cases.
        length: N.

    Returns:
        Of each row by density (share, low, high), the ends of the 95 % Wilson interval for as many
        trials as there were prompts. Rows that lack one of the tasks are left out.
    """
    can = answerable_tasks(cells, length)
    found: dict[tuple[str, float | None], list[dict]] = {}
    for cell in cells:
        if cell["length"] == length and cell["task"] in can:
            found.setdefault((cell["row"], cell["density"]), []).append(cell)
    answers: dict[str, dict] = {}
    for (row, density), of_row in found.items():
        if len(of_row) == len(can):
            share = sum(cell["right"] / cell["asked"] for cell in of_row) / len(can)
            trials = sum(cell["prompts"] for cell in of_row)
            answers.setdefault(row, {})[density] = (share, *wilson(share, trials))
    return answers


def answerable_tasks(cells: Sequence[dict], length: int) -> list[str]:
    """The tasks that dense attention answers in at least half of the cases."""
    return [
        cell["task"]
        for cell in cells
        if cell["row"] == "Dense"
        and cell["length"] == length
        and 2 * cell["right"] >= cell["asked"]
    ]


def draw_answers(data: dict[str, dict[float | None, tuple[float, float, float]]], ax) -> None:
    """Who still answers?"""
    densities = sorted({density for row in data.values() for density in row} - {None})
    looks = dict(zip(densities, zip(COLOURS, MARKERS, strict=True), strict=False))
    looks[None] = INK, "s"
    for y, row in enumerate(data.values()):
        for density, (share, low, high) in row.items():
            colour, marker = looks[density]
            at = y + 0.18 * (2 * densities.index(density) - 1 if density in densities else 0)
            ax.plot([low, high], [at, at], color=colour, lw=1.4, alpha=0.6)
            ax.scatter(share, at, color=colour, marker=marker, s=18, zorder=3)
    for density, (colour, marker) in looks.items():
        label = "density of its own" if density is None else f"{density:.0%} of the pairs"
        ax.scatter([], [], color=colour, marker=marker, s=18, label=label)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=len(looks), handletextpad=0)
    ax.set(xlim=(-0.03, 1.03), xlabel="answers found, mean over tasks")
    ax.set_yticks(range(len(data)), list(data))
    ax.set_ylim(len(data) - 0.4, -0.6)
    ax.grid(axis="y", color="#E5E5E5", lw=0.6)
    ax.set_axisbelow(True)


def data_tasks(
    cells: Sequence[dict], length: int, density: float, rows: Sequence[str]
) -> dict[str, list[float]]:
    """Answers found by task.

    Args:
        cells, length: as in `data_answers`.
        density: that the rows were set to; rows with a density of their own show that.
        rows: which ones, in this order.

    Returns:
        Of each task that dense attention can do the share of each row; NaN where it is absent.
    """
    shares = {
        (cell["task"], cell["row"]): cell["right"] / cell["asked"]
        for cell in cells
        if cell["length"] == length and cell["density"] in (density, None)
    }
    tasks = answerable_tasks(cells, length)
    return {task: [shares.get((task, row), float("nan")) for row in rows] for task in tasks}


def draw_tasks(data: dict[str, list[float]], ax) -> None:
    """Which questions are lost?"""
    columns = list(data.values())
    image = [list(row) for row in zip(*columns, strict=True)]
    ax.imshow(image, cmap=MAGNITUDE, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    for y, row in enumerate(image):
        for x, share in enumerate(row):
            shade = "white" if share < 0.5 else INK
            ax.text(x, y, f"{100 * share:.0f}", ha="center", va="center", color=shade, size=7)
    ax.set_xticks(range(len(data)), list(data), rotation=30, ha="right", rotation_mode="anchor")
    ax.set(yticks=[], xlabel="answers found, percent")
