"""Figures that notebook 12 alone shows: shares of the stages, a roofline."""

from anchor_lab.drawing.shapes import label
from anchor_lab.drawing.style import INK, STRIPE, finish, panels
from anchor_lab.experiments.attention.cells import STAGES, by_inputs, by_length, cells
from anchor_lab.experiments.attention.figure import data_stages, draw_stack, short

BY_ITSELF = 65_536  # tokens from which on three calls take little more than the whole one


def data_shares(results: dict) -> dict[str, list]:
    """Share of each stage in the sum of the three, by length.

    Each stage was called by itself: of shorter prompts that is the host's time.

    Returns:
        at: lengths from `BY_ITSELF` on; and by each of `STAGES` its shares.
    """
    rows = by_length(by_inputs(results))
    times = data_stages({n: row for n, row in rows.items() if n >= BY_ITSELF})
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


def show_shares(data: dict[str, list], where: str) -> None:
    """The figure of `draw_shares`, with its words."""
    figure, ax = panels(size=(7.0, 2.9))
    draw_shares(data, ax)
    finish(
        figure,
        draw_shares.__doc__,
        f"{where}; each stage timed alone; planted stripes, 5 % of the candidates.",
        f"Stacked bars, one a length from {short(data['at'][0])} to {short(data['at'][-1])}: "
        + "; ".join(
            f"stage {title} from {data[stage][0]:.0%} to {data[stage][-1]:.0%}"
            for stage, title in STAGES.items()
        ),
    )


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


def show_roofline(data: dict, n: int, where: str) -> None:
    """The figure of `draw_roofline`, with its words."""
    figure, ax = panels(size=(7.4, 3.6))
    draw_roofline(data, ax)
    finish(
        figure,
        draw_roofline.__doc__,
        f"{where}, N = {n}; a point on the line would be the floor.",
        "Speed against work for each byte. All points lie to the right of the knee, so arithmetic "
        "sets the floor; of its speed they reach "
        + ", ".join(f"{name} {y / data['peak']:.0%}" for name, (_, y) in data["points"].items()),
    )


def data_floor(results: dict, n: int) -> dict[str, float]:
    """How many times its floor each stage, all three, and dense attention take at one length."""
    names = {**STAGES, "anchor": "all three", "sdpa-cudnn": "dense, cuDNN"}
    at = {name: cells(results, method)[n] for method, name in names.items()}
    return {name: cell["ms"]["median"] / cell["floor_ms"] for name, cell in at.items()}


def data_held(results: dict, n: int) -> tuple[float, float]:
    """MiB that a call needs besides inputs and output, and MiB of these."""
    cell = cells(results, "anchor")[n]
    return cell["extra_mib"], cell["input_output_mib"]
