"""The results of `anchor_lab.experiments.attention.measure` as a picture."""

import itertools
from math import inf

from anchor_lab.drawing.style import ACCENT, INIT, INK, SKIPPED, STRIPE, WINDOW, caption, use_style
from anchor_lab.experiments.attention.course import left_below, short
from anchor_lab.experiments.attention.page import (
    Row,
    by_density,
    by_inputs,
    by_length,
    crossing,
    is_ok,
    of_captures,
    percent,
    reference_density,
)

STAGES = ("stage1", "stage2", "stage3")
# Name, colour and line of each method that has times of its own.
LINES = {
    "anchor": ("AnchorAttention", STRIPE, "-"),
    "sdpa-cudnn": ("cuDNN", INK, "-"),
    "sdpa-flash": ("flash", INK, "--"),
    "flex": ("FlexAttention", ACCENT, "-."),
}


def data_times(results: dict) -> dict:
    """Times by length at the reference density.

    Returns:
        lines, floor: see `data_lines`.
        break_even: the length from which on it takes less than cuDNN; 0 or inf beyond the
            measured ones.
    """
    rows = by_inputs(results)
    break_even, both = crossing(rows, "sdpa-cudnn")
    return {**data_lines(by_length(rows)), "break_even": break_even if both else inf}


def data_densities(results: dict) -> dict:
    """Times by stripe density, at the length `n` where densities were compared; `data_lines`."""
    n, rows = by_density(by_inputs(results))
    return {**data_lines(rows), "n": n}


def data_lines(rows: dict[float, Row]) -> dict:
    """Medians of every method.

    Returns:
        lines: by method, (keys of `rows`, ms) where it has a result.
        floor: the same of AnchorAttention's least work.
    """

    def measured(method: str, value) -> tuple[list, list]:
        found = {x: value(row[method]) for x, row in rows.items() if is_ok(row, method)}
        return list(found), list(found.values())

    lines = {method: measured(method, lambda cell: cell["ms"]["median"]) for method in LINES}
    return {
        "lines": {method: line for method, line in lines.items() if line[0]},
        "floor": measured("anchor", lambda cell: cell["floor_ms"]),
    }


def draw_times(data: dict, ax) -> None:
    """From which length on is it faster than dense attention?"""
    draw_lines(data, ax, short)
    if 0 < data["break_even"] < inf:
        ax.axvline(data["break_even"], color="#9A9A9A", lw=0.8)
        ax.annotate(
            f"break-even with cuDNN\nN = {data['break_even']:.0f}",
            (data["break_even"], 0.98),
            (4, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            color="#555555",
        )
    ax.set(xlabel="N, tokens", ylabel="ms a call")
    ax.set_title(draw_times.__doc__)


def draw_densities(data: dict, ax) -> None:
    """How dense may the stripes be?"""
    draw_lines(data, ax, percent)
    ax.set(xlabel=f"stripes, N = {data['n']}", ylabel="ms a call")
    ax.set_title(draw_densities.__doc__)


def draw_lines(data: dict, ax, name_of) -> None:
    """Every method's times over logarithmic axes, each line named at its end."""
    ticks = sorted({place for places, _ in data["lines"].values() for place in places})
    for method, (places, times) in data["lines"].items():
        name, colour, style = LINES[method]
        ax.plot(places, times, style, color=colour, lw=1.6, marker="o", ms=3)
        # Where others go on to the right, it is named to the left of its end.
        inside = method == "flex" and places[-1] < ticks[-1]
        ax.annotate(
            name,
            (places[-1], times[-1]),
            (-7, 6) if inside else (5, 0),
            textcoords="offset points",
            color=colour,
            ha="right" if inside else "left",
            va="center",
            annotation_clip=False,
        )
    places, times = data["floor"]
    if places:
        ax.plot(places, times, ":", color=STRIPE, lw=1.2)
        ax.annotate(
            "its floor",
            (places[-1], times[-1]),
            (5, -3),
            textcoords="offset points",
            color=STRIPE,
            va="center",
        )
    ax.set(xscale="log", yscale="log")
    ax.set_xticks(ticks, [name_of(place) for place in ticks])
    ax.set_xticks([], minor=True)


def data_stages(results: dict) -> dict:
    """Times of the stages by stripe density, at the length where densities were compared.

    Returns:
        n: that length.
        density: those at which all stages have a result.
        stages: ms of each stage, a list by density for each.
        floor: ms of the whole by density; None where there is no result.
    """
    n, rows = by_density(by_inputs(results))
    rows = {density: row for density, row in rows.items() if is_ok(row, *STAGES)}
    return {
        "n": n,
        "density": list(rows),
        "stages": [[row[stage]["ms"]["median"] for row in rows.values()] for stage in STAGES],
        "floor": [
            row["anchor"]["floor_ms"] if is_ok(row, "anchor") else None for row in rows.values()
        ],
    }


def draw_stages(data: dict, ax) -> None:
    """Which stage do more stripes make longer?"""
    places = range(len(data["density"]))
    below = [0.0] * len(data["density"])
    for i, (times, colour) in enumerate(
        zip(data["stages"], (WINDOW, INIT, STRIPE), strict=True), 1
    ):
        ax.bar(places, times, 0.6, bottom=below, color=colour)
        if times:
            ax.annotate(
                f"stage {i}",
                (places[-1] + 0.34, below[-1] + times[-1] / 2),
                va="center",
                annotation_clip=False,
            )
        below = [low + time for low, time in zip(below, times, strict=True)]
    for place, floor in zip(places, data["floor"], strict=True):
        if floor is not None:
            ax.plot([place - 0.38, place + 0.38], [floor, floor], color=INK, lw=1.4)
    ax.annotate("black line: floor of the whole", (0.02, 0.98), xycoords="axes fraction", va="top")
    ax.set_xticks(places, [percent(density) for density in data["density"]])
    ax.set(xlabel=f"stripes, N = {data['n']}", ylabel="ms a call")
    ax.grid(axis="y", color=SKIPPED)
    ax.set_axisbelow(True)
    ax.set_title(draw_stages.__doc__)


def data_captures(results: dict) -> dict:
    """Layers of models: what is kept, and what that gains.

    Returns:
        By (model, length), ascending: (shares of the pairs kept, cuDNN's times over
        AnchorAttention's, layers), where both have a result.
    """
    found: dict[tuple[str, int], tuple[list, list, list]] = {}
    for (model, n, layer), row in of_captures(by_inputs(results)).items():
        if is_ok(row, "anchor", "sdpa-cudnn"):
            kept, gain, layers = found.setdefault((model, n), ([], [], []))
            kept.append(row["anchor"]["kept"])
            gain.append(row["sdpa-cudnn"]["ms"]["median"] / row["anchor"]["ms"]["median"])
            layers.append(layer)
    return found


def draw_captures(data: dict, ax) -> None:
    """What does it gain on a real model's layers?"""
    ax.axhline(1, color="#9A9A9A", lw=0.8)
    ax.annotate(
        "as fast as cuDNN",
        (0.01, 1),
        (0, -3),
        textcoords="offset points",
        xycoords=("axes fraction", "data"),
        va="top",
        color="#555555",
    )
    looks = itertools.cycle(zip((ACCENT, STRIPE, INIT, WINDOW, INK), "osD^v", strict=True))
    for (model, n), (colour, mark) in zip(data, looks, strict=False):
        kept, gain, layers = data[model, n]
        ax.plot(kept, gain, mark, color=colour, ms=4)
        for x, y, numbers in data_labels(kept, gain, layers):
            ax.annotate(numbers, (x, y), (4, 3), textcoords="offset points", fontsize=7)
        ax.annotate(
            f"{model}, {short(n)} tokens",
            left_below(list(zip(kept, gain, strict=True))),
            (0, -12),
            textcoords="offset points",
            color=colour,
            va="top",
        )
    if not data:
        ax.annotate("no layer measured", (0.5, 0.5), xycoords="axes fraction", ha="center")
    ax.xaxis.set_major_formatter(lambda x, _: percent(x))
    ax.set(xlabel="pairs kept", ylabel="cuDNN's time / ours", ylim=(0, None))
    ax.set_title(draw_captures.__doc__)


def data_labels(
    kept: list[float], gain: list[float], layers: list[int]
) -> list[tuple[float, float, str]]:
    """One label for dots that lie so close that their numbers would cover each other.

    Returns:
        (x, y, numbers of the layers) of the dot furthest to the right of each lot.
    """
    lots: list[list[tuple[float, float, int]]] = []
    for dot in sorted(zip(kept, gain, layers, strict=True)):
        x, y, _ = dot
        near = (lot for lot in lots if x - lot[-1][0] < 0.015 and abs(y - lot[-1][1]) < 0.03)
        lot = next(near, None)
        if lot is None:
            lots.append([dot])
        else:
            lot.append(dot)
    return [
        (*lot[-1][:2], ", ".join(str(layer) for layer in sorted(dot[2] for dot in lot)))
        for lot in lots
    ]


def draw(results: dict):
    """The four questions on one figure."""
    from matplotlib import pyplot as plt

    use_style()
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.2), width_ratios=(1.15, 1))
    draw_times(data_times(results), axes[0, 0])
    draw_densities(data_densities(results), axes[0, 1])
    draw_captures(data_captures(results), axes[1, 0])
    draw_stages(data_stages(results), axes[1, 1])
    last = results["runs"][-1]
    planted = [cell for cell in results["cells"] if cell["source"] == "planted"]
    shapes = [cell["heads"] for cell in planted if cell["status"] == "ok"]
    shape = "{} / {} heads of {}".format(*shapes[0][1:]) if shapes else "no result"
    density = percent(reference_density(by_inputs(results)))
    caption(
        figure,
        f"{last['device']}, kernels {last['kernels']}, torch {last['torch']}, Triton "
        f"{last['triton']}, {last['date']}; bf16, causal, θ = 12, medians. Planted stripes, "
        f"{shape}, {density} at the top left;\nbelow it layers of models with their numbers. "
        "cuDNN, flash: SDPA with that backend; FlexAttention: on blocks that hold a kept pair.",
    )
    return figure
