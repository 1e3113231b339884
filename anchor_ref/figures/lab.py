"""Figures of the lab: what its questions found out about the heads of a model."""

from collections.abc import Sequence

from anchor_ref.figures.style import ACCENT, INK, MAGNITUDE, STRIPE


def data_maxima(rows: Sequence[dict]) -> list[list[float]]:
    """Share of rows whose largest score is a candidate's, by layer and head.

    Args:
        rows: one for each head, with "layer", "head" and "maxima", the shares of `lab.REGIONS`.

    Returns:
        Shares `[layers][heads]`.
    """
    layers = sorted({row["layer"] for row in rows})
    return [[row["maxima"][2] for row in rows if row["layer"] == layer] for layer in layers]


def draw_maxima(shares: list[list[float]], ax) -> None:
    """Where is a row's largest score a candidate's?"""
    ax.imshow(shares, cmap=MAGNITUDE, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    for layer, heads in enumerate(shares):
        for head, share in enumerate(heads):
            shade = "white" if share < 0.5 else INK
            ax.text(head, layer, f"{share:.0%}", ha="center", va="center", color=shade, size=7)
    ax.set(xlabel="head", ylabel="layer", xticks=range(len(shares[0])), yticks=range(len(shares)))


def data_tests(rows: Sequence[dict]) -> dict[str, tuple[float, float]]:
    """Mean (density, recall) over heads of each difference test.

    Args:
        rows: one for each head, with "tests": {name: {"density": …, "recall": …}}.
    """
    return {
        name: tuple(
            sum(row["tests"][name][what] for row in rows) / len(rows)
            for what in ("density", "recall")
        )
        for name in rows[0]["tests"]
    }


def draw_tests(points: dict[str, tuple[float, float]], ax) -> None:
    """What does each approximation cost?"""
    for number, (name, (density, recall)) in enumerate(points.items()):
        colour = STRIPE if name == "method" else ACCENT
        ax.scatter(density, recall, s=28, color=colour, zorder=2)
        ax.annotate(
            name,
            (density, recall),
            color=colour,
            va="center",
            xytext=(8, -8 if number % 2 else 8),  # neighbours in the list lie close together
            textcoords="offset points",
        )
    ax.set(xlabel="density, mean over heads", ylabel="recall, mean over heads")
    ax.margins(x=0.25, y=0.1)
    ax.set_ylim(top=1.0015)


def data_certificate(rows: Sequence[dict]) -> list[tuple[float, list[float], float]]:
    """Of each effort its cost, what each head is promised, and the mean promise, by rising cost.

    Args:
        rows: one for each head, with "certificate": [{"cost": …, "promised": …}, ...].
    """
    by_cost: dict[float, list[float]] = {}
    for row in rows:
        for effort in row["certificate"]:
            by_cost.setdefault(effort["cost"], []).append(effort["promised"])
    return [
        (cost, promised, sum(promised) / len(promised))
        for cost, promised in sorted(by_cost.items())
    ]


def draw_certificate(efforts: list[tuple[float, list[float], float]], ax) -> None:
    """How much recall can be promised?"""
    costs = [cost for cost, _, _ in efforts]
    for head in zip(*(promised for _, promised, _ in efforts), strict=True):
        ax.plot(costs, head, color="#BBBBBB", lw=0.6, zorder=1)
    ax.plot(costs, [mean for _, _, mean in efforts], color=ACCENT, lw=2, marker="o", zorder=2)
    ax.annotate(
        "mean over heads",
        (costs[-1], efforts[-1][2]),
        color=ACCENT,
        weight="bold",
        ha="right",
        xytext=(-6, 6),
        textcoords="offset points",
    )
    ax.set(
        xscale="log",
        xlabel="cost of asking, share of all causal pairs",
        ylabel="guaranteed recall, mean over rows",
        ylim=(-0.02, 1.02),
    )
