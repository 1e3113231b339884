"""Figures of the report on a model: all heads at once, and all thresholds."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing.style import ACCENT, INK, MAGNITUDE, STRIPE
from anchor_lab.report.inspected import InspectedHeads

NUMBERED = 100  # heads up to which each cell says its number


def data_overview(found: InspectedHeads, theta: float, what: str) -> dict:
    """One number a head at a θ that was measured.

    Args:
        found: of a model.
        theta: one of `found.thetas`.
        what: "density" or "recall".

    Returns:
        values `[L, H]`, and the layers and heads that the rows and columns stand for.
    """
    table = getattr(found, what)[found.thetas.index(theta)]
    return {"values": table, "layers": found.layers, "heads": found.heads, "what": what}


def draw_overview(data: dict, ax) -> None:
    """Which heads need how much?"""
    values: Float[Tensor, "L H"] = data["values"]
    low = 0.0 if data["what"] == "density" else min(0.9, float(values.min()))
    image = ax.imshow(
        values, cmap=MAGNITUDE, vmin=low, vmax=1, interpolation="nearest", aspect="auto"
    )
    if values.numel() <= NUMBERED:
        middle = (low + 1) / 2
        for row, numbers in enumerate(values.tolist()):
            for column, value in enumerate(numbers):
                shade = "white" if value < middle else INK
                text = f"{value:.2f}".lstrip("0") if value < 0.995 else "1"
                ax.text(column, row, text, ha="center", va="center", color=shade, size=8)
    ax.set(xlabel="head", ylabel="layer")
    for axis, names in ((ax.xaxis, data["heads"]), (ax.yaxis, data["layers"])):
        every = -(-len(names) // 16)
        axis.set_ticks(range(0, len(names), every), labels=[str(x) for x in names[::every]])
    ax.tick_params(length=0)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    bar.set_label(f"{data['what']}, mean over rows" if low else data["what"])
    bar.outline.set_visible(False)


def data_thetas(found: InspectedHeads) -> dict[str, Sequence[float]]:
    """Over all heads at each θ: mean recall, 10th percentile, the worst head, mean density."""
    return {
        "theta": found.thetas,
        "recall": found.recall.mean((1, 2)).tolist(),
        "p10": found.p10.mean((1, 2)).tolist(),
        "worst head": found.recall.flatten(1).amin(1).tolist(),
        "density": found.density.mean((1, 2)).tolist(),
    }


def draw_thetas(data: dict[str, Sequence[float]], chosen: float, target: float, ax) -> None:
    """What does θ buy, and what does it cost?"""
    theta = data["theta"]
    lines = (
        ("recall", ACCENT, 2.2, "-"),
        ("worst head", ACCENT, 1.1, "--"),
        ("density", STRIPE, 2.2, "-"),
    )
    for name, colour, width, dash in lines:
        ax.plot(theta, data[name], color=colour, lw=width, ls=dash, label=name)
    ax.axhline(target, color="#999999", lw=0.8, zorder=0)
    ax.axvline(chosen, color=INK, lw=0.8, zorder=0)
    ax.annotate(
        f"θ = {chosen:g}", (chosen, 0.02), (4, 0), textcoords="offset points", weight="bold"
    )
    ax.annotate(
        f"target {target:g}", (theta[-1], target), (0, -3), textcoords="offset points",
        ha="right", va="top", size=8, color="#666666",
    )  # fmt: skip
    ax.set(
        xlabel="θ, natural-log units", ylabel="share", ylim=(0, 1.02), xlim=(theta[0], theta[-1])
    )
    ax.legend(loc="lower right")
