"""The committed results of `benchmarks.attention` as a picture.

python -m benchmarks.attention_figure        attention.json -> attention.png, both beside this
"""

import argparse
import json
from math import inf
from pathlib import Path

from anchor_ref.figures.style import ACCENT, INIT, INK, SKIPPED, STRIPE, WINDOW, caption, use_style
from benchmarks.attention import (
    HERE,
    by_density,
    by_inputs,
    by_length,
    crossing,
    is_ok,
    number,
    percent,
    reference_density,
)

STAGES = ("stage1", "stage2", "stage3")
# Name, colour and line of each method that has times of its own.
LINES = {
    "anchor": ("AnchorAttention", STRIPE, "-"),
    "sdpa-cudnn": ("SDPA cuDNN", INK, "-"),
    "sdpa-flash": ("SDPA flash", INK, "--"),
    "flex": ("FlexAttention on its blocks", ACCENT, "-."),
}


def data_times(results: dict) -> dict:
    """Times by length at the reference density.

    Returns:
        lines: by method, (lengths, median ms) where it has a result.
        floor: (lengths, ms) of AnchorAttention's least work.
        break_even: the length from which on it takes less than cuDNN; 0 or inf beyond the
            measured ones.
        ratio: cuDNN's time over AnchorAttention's at `ratio_at`, the longest length with both;
            None without one.
    """
    rows = by_inputs(results)
    lengths = by_length(rows)

    def measured(method: str) -> list[int]:
        return [n for n, row in lengths.items() if is_ok(row, method)]

    lines = {
        method: (measured(method), [lengths[n][method]["ms"]["median"] for n in measured(method)])
        for method in LINES
        if measured(method)
    }
    ours = measured("anchor")
    break_even, both = crossing(rows, "sdpa-cudnn")
    last = lengths[both[-1]] if both else None
    return {
        "lines": lines,
        "floor": (ours, [lengths[n]["anchor"]["floor_ms"] for n in ours]),
        "break_even": break_even if both else inf,
        "ratio": last and last["sdpa-cudnn"]["ms"]["median"] / last["anchor"]["ms"]["median"],
        "ratio_at": both[-1] if both else None,
        "density": reference_density(rows),
    }


def draw_times(data: dict, ax) -> None:
    """From which length on does it take less than dense attention?"""
    for method, (lengths, times) in data["lines"].items():
        name, colour, style = LINES[method]
        ax.plot(lengths, times, style, color=colour, lw=1.6, marker="o", ms=3)
        # Left of its end is free above the slower line alone; right of it, faster ones go on.
        slow = method == "flex"
        ax.annotate(
            name,
            (lengths[-1], times[-1]),
            (-7, 6) if slow else (5, 0),
            textcoords="offset points",
            color=colour,
            ha="right" if slow else "left",
            va="center",
            annotation_clip=False,
        )
    lengths, times = data["floor"]
    if lengths:
        ax.plot(lengths, times, ":", color=STRIPE, lw=1.2)
        ax.annotate(
            "its floor",
            (lengths[-1], times[-1]),
            (5, -3),
            textcoords="offset points",
            color=STRIPE,
            va="center",
        )
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
    ax.set(xscale="log", yscale="log", xlabel="N, tokens", ylabel="ms a call")
    ticks = sorted({n for lengths, _ in data["lines"].values() for n in lengths})
    ax.set_xticks(ticks, [_short(n) for n in ticks])
    ax.set_xticks([], minor=True)
    ax.set_title(draw_times.__doc__)


def data_stages(results: dict) -> dict:
    """Times of the stages by stripe density, at the length where densities were compared.

    Returns:
        n: that length.
        density: those at which all stages have a result.
        stages: ms of each stage, a list by density for each.
        end_to_end, floor: ms by density; None where there is no result.
        dense: ms of cuDNN, or None.
    """
    n, rows = by_density(by_inputs(results))
    rows = {density: row for density, row in rows.items() if is_ok(row, *STAGES)}

    def of_anchor(row: dict, value) -> float | None:
        return value(row["anchor"]) if is_ok(row, "anchor") else None

    dense = [r["sdpa-cudnn"]["ms"]["median"] for r in rows.values() if is_ok(r, "sdpa-cudnn")]
    return {
        "n": n,
        "density": list(rows),
        "stages": [[row[stage]["ms"]["median"] for row in rows.values()] for stage in STAGES],
        "end_to_end": [of_anchor(row, lambda c: c["ms"]["median"]) for row in rows.values()],
        "floor": [of_anchor(row, lambda c: c["floor_ms"]) for row in rows.values()],
        "dense": dense[0] if dense else None,
    }


def draw_stages(data: dict, ax) -> None:
    """What do more stripes cost, and where?"""
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
    text = "black line: floor of the whole"
    if data["dense"] is not None:
        text += f"\ncuDNN, all keys: {number(data['dense'])} ms"
    ax.annotate(text, (0.02, 0.98), xycoords="axes fraction", va="top")
    ax.set_xticks(places, [percent(density) for density in data["density"]])
    ax.set(xlabel=f"stripes, N = {data['n']}", ylabel="ms a call")
    ax.grid(axis="y", color=SKIPPED)
    ax.set_axisbelow(True)
    ax.set_title(draw_stages.__doc__)


def _short(n: int) -> str:
    """131072 -> 128k, 1048576 -> 1M."""
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if n >= unit and n % unit == 0:
            return f"{n // unit}{name}"
    return str(n)


def draw(results: dict):
    """Both questions on one figure."""
    from matplotlib import pyplot as plt

    use_style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1.25, 1))
    times, stages = data_times(results), data_stages(results)
    draw_times(times, left)
    draw_stages(stages, right)
    last = results["runs"][-1]
    shapes = [cell["heads"] for cell in results["cells"] if cell["status"] == "ok"]
    shape = "{} / {} heads of {}".format(*shapes[0][1:]) if shapes else "no result"
    caption(
        figure,
        f"{last['device']}, torch {last['torch']}, Triton {last['triton']}, {last['date']}; bf16, "
        f"{shape}, causal, θ = 12, planted stripes, {percent(times['density'])} on the left; "
        "medians.",
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "attention.json")
    parser.add_argument("--out", type=Path, help="default: --results as .png")
    options = parser.parse_args()
    figure = draw(json.loads(options.results.read_text()))
    figure.savefig(options.out or options.results.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
