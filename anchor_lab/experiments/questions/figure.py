"""What was found out about the heads of a model, a panel for each question."""

from collections.abc import Sequence
from statistics import fmean

from anchor_lab.drawing.shapes import label
from anchor_lab.drawing.style import ACCENT, INK, MAGNITUDE, STRIPE


def data_maxima(rows: Sequence[dict]) -> list[list[float]]:
    """Share of rows whose largest score is a candidate's, by layer and head.

    Args:
        rows: one for each head, with "layer", "head" and "maxima", the shares of `REGIONS`.

    Returns:
        Shares `[layers][heads]`.
    """
    layers = sorted({row["layer"] for row in rows})
    return [[row["maxima"][2] for row in rows if row["layer"] == layer] for layer in layers]


def draw_maxima(shares: list[list[float]], ax) -> None:
    """Where is a row's largest score a candidate's?"""
    import seaborn as sns

    look = {"cmap": MAGNITUDE, "vmin": 0, "vmax": 1, "cbar": False}
    sns.heatmap(shares, annot=True, fmt=".0%", annot_kws={"size": 7}, ax=ax, **look)
    ax.set(xlabel="head", ylabel="layer")
    ax.tick_params(axis="y", rotation=0)


def data_tests(rows: Sequence[dict]) -> dict[str, tuple[float, float]]:
    """Mean (density, recall) over heads of each difference test.

    Args:
        rows: one for each head, with "tests": {name: {"density": …, "recall": …}}.
    """
    return {
        name: tuple(fmean(row["tests"][name][x] for row in rows) for x in ("density", "recall"))
        for name in rows[0]["tests"]
    }


def draw_tests(points: dict[str, tuple[float, float]], ax) -> None:
    """What does each approximation cost?"""
    for number, (name, (density, recall)) in enumerate(points.items()):
        colour = STRIPE if name == "method" else ACCENT
        # A ring is larger than a dot: where two tests coincide both are seen.
        ring = number % 2
        face = "none" if ring else colour
        ax.scatter(density, recall, s=70 if ring else 22, fc=face, ec=colour, lw=1.5, zorder=2)
        # Neighbours in the list lie close together.
        label(ax, name, (density, recall), (8, -8 if number % 2 else 8), color=colour)
    ax.set(xlabel="density, mean over heads", ylabel="recall, mean over heads")
    ax.margins(x=0.25, y=0.1)
    ax.set_xlim(right=1.02)
    ax.set_ylim(top=1.0015)


def data_calibration(rows: Sequence[dict]) -> dict[str, list[tuple[float, float]]]:
    """Points (density, recall) on held-out text: by "per" and rising recall.

    Args:
        rows: with "per": "head", "layer" or "all", "density" and "recall".
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(rows, key=lambda row: row["recall"]):
        points.setdefault(row["per"], []).append((row["density"], row["recall"]))
    return points


def draw_calibration(data: dict[str, list[tuple[float, float]]], ax) -> None:
    """Is a threshold for each head worth it?"""
    looks = {
        "head": ("one θ a head", STRIPE, "o", (-8, 4), "right"),
        "layer": ("one θ a layer", INK, "s", (-8, 6), "right"),
        "all": ("one θ for all", ACCENT, None, (10, -6), "left"),
    }
    least = min(recall for per in ("head", "layer") for _, recall in data[per])
    for per, (name, colour, marker, offset, side) in looks.items():
        points = [point for point in data[per] if point[1] >= least - 0.02]
        ax.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=4)
        at = points[:2][-1]  # the second is clear of the axes, where there is one
        label(ax, name, at, offset, color=colour, ha=side)
    ax.set(xlabel="density on held-out text", ylabel="recall there, mean over heads")
    ax.margins(x=0.15)
