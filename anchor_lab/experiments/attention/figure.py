"""What was measured as pictures: time by length and by density, its stages, a model's layers."""

import itertools
from collections.abc import Callable
from math import inf

from anchor_lab.drawing.shapes import label, name_ticks
from anchor_lab.drawing.style import (
    ACCENT,
    DIM,
    INIT,
    INK,
    MUTED,
    SKIPPED,
    STRIPE,
    WINDOW,
    caption,
    use_style,
)
from anchor_lab.experiments.attention.cells import (
    STAGES,
    Row,
    by_density,
    by_inputs,
    by_length,
    crossing,
    is_ok,
    median_ms,
    of_layers,
    reference_density,
)
from anchor_lab.experiments.page import percent

# Name, colour and line of each method that has times of its own.
METHODS = {
    "anchor": ("AnchorAttention", STRIPE, "-"),
    "sdpa-cudnn": ("cuDNN", INK, "-"),
    "sdpa-flash": ("flash", INK, "--"),
    "flex": ("FlexAttention", ACCENT, "-."),
}
_FLOOR = ("its floor", STRIPE, ":")
# By method and "floor", the project's least time: places, ms. A line without places is left out.
Lines = dict[str, tuple[list, list]]


def data_lines(rows: dict[int, Row] | dict[float, Row]) -> Lines:
    """Median times of every method, where it has a result, over the keys of `rows`."""

    def measured(method: str, value: Callable[[dict], float]) -> tuple[list, list]:
        found = {x: value(row[method]) for x, row in rows.items() if is_ok(row, method)}
        return list(found), list(found.values())

    lines = {method: measured(method, median_ms) for method in METHODS}
    lines["floor"] = measured("anchor", lambda cell: cell["floor_ms"])
    return {name: line for name, line in lines.items() if line[0]}


def data_times(results: dict) -> Lines:
    """`data_lines` by length, at the reference density."""
    return data_lines(by_length(by_inputs(results)))


def draw_times(lines: Lines, ax, even: float | None = None) -> None:
    """From which length on is it faster than dense attention?

    Args:
        lines: as `data_times` returns them.
        ax: where to.
        even: break-even length with cuDNN, to be marked; None, 0 and inf are not.
    """
    _draw_lines(lines, ax, short)
    if even is not None and 0 < even < inf:
        ax.axvline(even, color=MUTED, lw=0.8)
        text, at = f"break-even with cuDNN\nN = {even:.0f}", (even, 0.98)
        label(ax, text, at, (4, 0), va="top", color=DIM, xycoords=("data", "axes fraction"))
    ax.set(xlabel="N, tokens", ylabel="ms a call", title=draw_times.__doc__.splitlines()[0])


def data_densities(results: dict) -> tuple[int, Lines]:
    """The length at which densities were compared, and `data_lines` by stripe density there."""
    n, rows = by_density(by_inputs(results))
    return n, data_lines(rows)


def draw_densities(n: int, lines: Lines, ax) -> None:
    """How dense may the stripes be?"""
    _draw_lines(lines, ax, percent)
    ax.set(xlabel=f"stripes, N = {n}", ylabel="ms a call", title=draw_densities.__doc__)


def _draw_lines(lines: Lines, ax, name_of: Callable[[float], str]) -> None:
    """Times over logarithmic axes, each line named at its end."""
    ticks = sorted({place for places, _ in lines.values() for place in places})
    for key, (places, times) in lines.items():
        title, colour, dash = METHODS.get(key, _FLOOR)
        mark = "" if key == "floor" else "o"
        ax.plot(places, times, dash, color=colour, lw=1.6, marker=mark, ms=3.2)
        end = places[-1], times[-1]
        if key == "flex" and places[-1] < ticks[-1]:  # between two lines that end where it does
            label(ax, title, end, (-7, 6), color=colour, ha="right")
        else:
            label(ax, title, end, (6, -3 if key == "floor" else 0), color=colour)
    logarithmic(ax, ticks, name_of)


def logarithmic(ax, places: list, name_of: Callable[[float], str]) -> None:
    """Both axes logarithmic, with these ticks below and no others."""
    ax.set(xscale="log", yscale="log")
    name_ticks(ax.xaxis, places, [name_of(place) for place in places])


def data_stages(rows: dict[int, Row] | dict[float, Row]) -> dict[str, list]:
    """Times of the stages.

    Returns:
        at: the keys of `rows` where all stages have a result; and by each of `STAGES` its ms.
    """
    found = {x: row for x, row in rows.items() if is_ok(row, *STAGES)}
    times = {stage: [median_ms(row[stage]) for row in found.values()] for stage in STAGES}
    return {"at": list(found), **times}


def draw_stack(data: dict[str, list], ax, name_of: Callable[[float], str]) -> None:
    """A bar for each place, made of the three stages."""
    places, below = range(len(data["at"])), [0.0] * len(data["at"])
    looks = zip((WINDOW, INIT, STRIPE), ("", "//", ""), strict=True)
    for (stage, title), (colour, hatch) in zip(STAGES.items(), looks, strict=True):
        heights = data[stage]
        ax.bar(places, heights, bottom=below, color=colour, ec="white", hatch=hatch)
        if heights:
            label(ax, title, (places[-1] + 0.4, below[-1] + heights[-1] / 2))
        below = [low + height for low, height in zip(below, heights, strict=True)]
    ax.set_xticks(places, [name_of(place) for place in data["at"]])


def draw_stages(n: int, data: dict[str, list], floor: list[float | None], ax) -> None:
    """Which stage do more stripes make longer?

    Args:
        n: length, for the label.
        data: `data_stages` by stripe density.
        floor: ms that the whole takes at least, for each density; None where it is not known.
        ax: where to.
    """
    draw_stack(data, ax, percent)
    for place, least in enumerate(floor):
        if least is not None:
            ax.plot([place - 0.45, place + 0.45], [least, least], color=INK, lw=1.4)
    ax.annotate("black line: floor of the whole", (0.02, 0.98), xycoords="axes fraction", va="top")
    ax.set(xlabel=f"stripes, N = {n}", ylabel="ms a call")
    ax.set_title(draw_stages.__doc__.splitlines()[0])
    ax.grid(axis="y", color=SKIPPED)
    ax.set_axisbelow(True)


def data_layers(results: dict) -> list[tuple[str, int, int, float, float]]:
    """Layers of models: (model, N, layer, share of the pairs kept, cuDNN's time / ours)."""
    return [
        (*place, row["anchor"]["kept"], median_ms(row["sdpa-cudnn"]) / median_ms(row["anchor"]))
        for place, row in of_layers(by_inputs(results)).items()
        if is_ok(row, "anchor", "sdpa-cudnn")
    ]


def draw_layers(rows: list[tuple[str, int, int, float, float]], ax) -> None:
    """Which layers of a small model gain?"""
    ax.axhline(1, color=MUTED, lw=0.8)
    look = {"xycoords": ("axes fraction", "data"), "va": "top", "color": DIM}
    label(ax, "as fast as cuDNN", (0.01, 1), (0, -3), **look)
    looks = itertools.cycle(zip((ACCENT, STRIPE, INIT, WINDOW, INK), "osD^v", strict=True))
    of_models = itertools.groupby(rows, key=lambda row: row[:2])
    for ((model, n), layers), (colour, mark) in zip(of_models, looks, strict=False):
        dots = [(kept, gain, layer) for *_, layer, kept, gain in layers]
        kept, gain, _ = zip(*dots, strict=True)
        ax.plot(kept, gain, mark, color=colour, ms=4, label=f"{model} model, {short(n)} tokens")
        for x, y, numbers in data_labels(dots):
            label(ax, numbers, (x, y), (4, 3), va="baseline", fontsize=7)
    if rows:
        ax.legend(loc="lower left")
    else:
        ax.annotate("no layer measured", (0.5, 0.5), xycoords="axes fraction", ha="center")
    ax.xaxis.set_major_formatter(lambda x, _: percent(x))
    ax.set(xlabel="pairs kept", ylabel="cuDNN's time / ours", ylim=(0, None))
    ax.set_title(draw_layers.__doc__)


def data_labels(dots: list[tuple[float, float, int]]) -> list[tuple[float, float, str]]:
    """One label for dots that lie so close that their numbers would cover each other.

    Args:
        dots: (share kept, gain, layer) of each.

    Returns:
        (x, y, numbers of the layers) of the dot furthest to the right of each lot.
    """
    lots: list[list[tuple[float, float, int]]] = []
    for dot in sorted(dots):
        x, y, _ = dot
        near = (lot for lot in lots if x - lot[-1][0] < 0.015 and abs(y - lot[-1][1]) < 0.03)
        lot = next(near, None)
        if lot is None:
            lots.append([dot])
        else:
            lot.append(dot)
    return [
        (*lot[-1][:2], ", ".join(map(str, sorted(layer for *_, layer in lot)))) for lot in lots
    ]


def short(n: int) -> str:
    """131072 -> 128k, 1048576 -> 1M."""
    for unit, letter in ((2**20, "M"), (2**10, "k")):
        if n >= unit and n % unit == 0:
            return f"{n // unit}{letter}"
    return str(n)


def draw(results: dict):
    """The four questions on one figure."""
    from matplotlib import pyplot as plt

    use_style()
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.2), width_ratios=(1.15, 1))
    rows = by_inputs(results)
    draw_times(data_times(results), axes[0, 0], crossing(rows, "sdpa-cudnn")[0])
    draw_densities(*data_densities(results), axes[0, 1])
    draw_layers(data_layers(results), axes[1, 0])
    n, densities = by_density(rows)
    stages = data_stages(densities)
    whole = [densities[density].get("anchor", {}) for density in stages["at"]]
    draw_stages(n, stages, [cell.get("floor_ms") for cell in whole], axes[1, 1])
    about, shapes = results["settings"], shapes_of(results)
    shape = "{} / {} heads of {}".format(*shapes[0][1:]) if shapes else "no result"
    caption(
        figure,
        f"{about['device']}, kernels {about['kernels']}, torch {about['torch']}, Triton "
        f"{about['triton']}, {results['runs'][-1]['date']}; bf16, causal, θ = 12, medians. "
        f"Planted stripes, {shape}, {percent(reference_density(rows))} at the top left;\n"
        "below it layers of models with their numbers. cuDNN, flash: SDPA with that backend; "
        "FlexAttention: on blocks that hold a kept pair.",
    )
    return figure


def shapes_of(results: dict) -> list[list[int]]:
    """[B, query heads, kv heads, D] of each planted cell that was measured."""
    planted = [cell for cell in results["rows"] if cell["source"] == "planted"]
    return [cell["heads"] for cell in planted if cell["status"] == "ok"]
