"""Figures that notebook 12 alone shows: shares of the stages, a roofline, memory."""

from anchor_lab.drawing.shapes import label
from anchor_lab.drawing.style import ACCENT, INK, STRIPE
from anchor_lab.experiments.attention.cells import STAGES, by_inputs, by_length, cells
from anchor_lab.experiments.attention.figure import (
    METHODS,
    data_stages,
    draw_stack,
    logarithmic,
    short,
)


def data_shares(results: dict) -> dict[str, list]:
    """Share of each stage in the sum of the three, by length.

    Returns:
        at: lengths; and by each of `STAGES` its shares.
    """
    times = data_stages(by_length(by_inputs(results)))
    total = [sum(column) for column in zip(*(times[stage] for stage in STAGES), strict=True)]
    shares = {
        stage: [ms / whole for ms, whole in zip(times[stage], total, strict=True)]
        for stage in STAGES
    }
    return {"at": times["at"], **shares}


def draw_shares(data: dict[str, list], ax) -> None:
    """Which stage takes the time?"""
    draw_stack(data, ax, short)
    ax.set(xlabel="N, tokens", ylabel="share of the time", xlim=(-0.6, len(data["at"]) - 0.5))


def data_roofline(results: dict, n: int) -> dict:
    """Work for each byte, and the speed reached: the stages, the whole, dense attention.

    Args:
        results: what `anchor_lab.experiments.store.read` finds in a file of this experiment.
        n: a measured length.

    Returns:
        peak: TFLOP/s of a large matrix product; bandwidth: TB/s of a copy, both of this device.
        points: by name (FLOP a byte, TFLOP/s).
    """
    names = {**STAGES, "anchor": "all three", "sdpa-cudnn": "dense, cuDNN"}
    at = {name: cells(results, method).get(n) for method, name in names.items()}
    run = results["runs"][-1]
    return {
        "peak": run["matrix_tflops"],
        "bandwidth": run["copy_tbs"],
        "points": {
            name: (cell["flop"] / cell["bytes"], cell["tflops"])
            for name, cell in at.items()
            if cell is not None
        },
    }


def draw_roofline(data: dict, ax) -> None:
    """How near does each stage come to what the device can do?"""
    peak, bandwidth = data["peak"], data["bandwidth"]
    most = 12 * max(intensity for intensity, _ in data["points"].values())
    knee = peak / bandwidth
    ax.plot([knee / 30, knee, most], [peak / 30, peak, peak], color=INK, lw=1.5)
    label(ax, "memory: a copy's speed", (knee / 8, peak / 8), (8, -8), va="baseline")
    text = "arithmetic: a matrix product's speed"
    label(ax, text, (most, peak), (0, 5), ha="right", va="baseline")
    for name, (intensity, speed) in data["points"].items():
        colour = INK if name.startswith("dense") else STRIPE
        ax.plot(intensity, speed, "o", color=colour, ms=6)
        above = name == STAGES["stage3"]  # the whole lies right below it
        offset, side = ((0, 6), "bottom") if above else ((7, -2), "top")
        label(ax, name, (intensity, speed), offset, color=colour, va=side, weight="bold")
    ax.set(xscale="log", yscale="log", xlabel="FLOP for each byte", ylabel="TFLOP/s")
    ax.set(xlim=(knee / 30, most), ylim=(peak / 40, 1.8 * peak))


def data_memory(results: dict) -> dict[str, tuple[list[int], list[float]]]:
    """MiB that a call holds besides inputs and output, by length, and these themselves."""

    def line(method: str, field: str) -> tuple[list[int], list[float]]:
        found = cells(results, method)
        return list(found), [cell[field] for cell in found.values()]

    return {
        **{METHODS[method][0]: line(method, "extra_mib") for method in ("anchor", "flex")},
        "q, k, v and output": line("anchor", "input_output_mib"),
    }


def draw_memory(lines: dict[str, tuple[list[int], list[float]]], ax) -> None:
    """How much memory does a call need beside its inputs?"""
    ticks = max((lengths for lengths, _ in lines.values()), key=len)
    looks = zip((STRIPE, ACCENT, INK), ("-", "-.", "--"), strict=True)
    for (name, (lengths, sizes)), (colour, dash) in zip(lines.items(), looks, strict=True):
        ax.plot(lengths, sizes, dash, color=colour, marker="o", ms=3)
        if lengths[-1] < ticks[-1]:  # others go on to the right of its end
            label(ax, name, (lengths[-1], sizes[-1]), (-6, 6), color=colour, ha="right")
        else:
            label(ax, name, (lengths[-1], sizes[-1]), color=colour)
    logarithmic(ax, ticks, short)
    ax.set(xlabel="N, tokens", ylabel="MiB")
