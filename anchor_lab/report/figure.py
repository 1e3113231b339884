"""Figures of the report on a model: all heads at once, and all thresholds."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing.style import ACCENT, INK, MAGNITUDE, STRIPE
from anchor_lab.report.results import Results

NUMBERED = 100  # heads up to which each cell says its number


def data_overview(results: Results, theta: float, what: str) -> dict:
    """One number a head at a θ that was measured.

    Args:
        results: of a model.
        theta: one of `results.thetas`.
        what: "density" or "recall".

    Returns:
        values `[L, H]`, and the layers and heads that the rows and columns stand for.
    """
    table = getattr(results, what)[results.thetas.index(theta)]
    return {"values": table, "layers": results.layers, "heads": results.heads, "what": what}


def draw_overview(data: dict, ax) -> None:
    """Which heads need how much?"""
    values: Float[Tensor, "L H"] = data["values"]
    low = 0.0 if data["what"] == "density" else min(0.9, float(values.min()))
    image = ax.imshow(
        values, cmap=MAGNITUDE, vmin=low, vmax=1, interpolation="nearest", aspect="auto"
    )
    if values.numel() <= NUMBERED:
        middle = (low + 1) / 2
        for (row, column), value in _cells(values):
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


def _cells(values: Tensor):
    return (
        ((row, column), float(values[row, column]))
        for row in range(values.shape[0])
        for column in range(values.shape[1])
    )


def data_thetas(results: Results) -> dict[str, Sequence[float]]:
    """Over all heads at each θ: mean recall, 10th percentile, the worst head, mean density."""
    return {
        "theta": results.thetas,
        "recall": results.recall.mean((1, 2)).tolist(),
        "p10": results.p10.mean((1, 2)).tolist(),
        "worst head": results.recall.flatten(1).amin(1).tolist(),
        "density": results.density.mean((1, 2)).tolist(),
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


def data_far_keys(keys: Sequence, words: Sequence[str], reach: int = 4) -> list[dict]:
    """The strongest far keys with the words around them and around the query that looks hardest.

    Args:
        keys: of `report.results.strongest_far_keys`.
        words: text of every token.
        reach: tokens shown to each side.

    Returns:
        key, mass, weight, and the words before, at and after the key and up to the query.
    """

    def span(start: int, stop: int) -> str:
        return "".join(words[max(0, start) : stop]).replace("\n", "⏎")

    return [
        {
            "key": far.key,
            "mass": far.mass,
            "weight": far.weight,
            "before": span(far.key - reach, far.key),
            "word": span(far.key, far.key + 1),
            "after": span(far.key + 1, far.key + reach + 1),
            "query": far.query,
            "asked by": span(far.query - reach, far.query + 1),
        }
        for far in keys
    ]
