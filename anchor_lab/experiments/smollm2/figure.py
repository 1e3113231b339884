"""Pictures of the real model's heads: how sparse each is, and from which length on it pays."""

from collections.abc import Sequence
from statistics import mean, median

from anchor_lab.drawing.style import ACCENT, INK, STRIPE, caption, use_style


def data_heads(rows: Sequence[dict], length: int, theta: float) -> list[list[float]]:
    """Density of every head at one length and threshold, a list for each layer measured."""
    found = [
        row
        for row in rows
        if row["part"] == "heads" and (row["length"], row["theta"]) == (length, theta)
    ]
    layers = sorted({row["layer"] for row in found})
    return [[row["density"] for row in found if row["layer"] == layer] for layer in layers]


def data_lengths(rows: Sequence[dict]) -> dict[tuple[int, float], dict]:
    """By (length, θ): heads, mean density, least density of a head, mean recall beyond."""
    groups: dict[tuple[int, float], list[dict]] = {}
    for row in rows:
        if row["part"] == "heads":
            groups.setdefault((row["length"], row["theta"]), []).append(row)
    return {
        key: {
            "heads": len(found),
            "density": mean(row["density"] for row in found),
            "least": min(row["density"] for row in found),
            "recall": mean(row["recall"] for row in found),
            "recall_p10": mean(row["recall_p10"] for row in found),
        }
        for key, found in sorted(groups.items())
    }


def data_times(rows: Sequence[dict]) -> dict[int, dict[str, float]]:
    """By length: the median over layers of each way's median, ms."""
    groups: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        if row["part"] == "times":
            of_length = groups.setdefault(row["length"], {})
            of_length.setdefault(row["way"], []).append(row["ms"]["median"])
    return {
        length: {way: median(times) for way, times in ways.items()}
        for length, ways in sorted(groups.items())
    }


def draw_heads(densities: list[list[float]], ax) -> None:
    """How many of the pairs does each head need?"""
    import seaborn as sns

    sns.heatmap(
        densities,
        ax=ax,
        cmap="cividis",
        vmin=0,
        vmax=1,
        cbar_kws={"label": "pairs kept"},
        linewidths=0.4,
        linecolor="white",
        yticklabels=2,  # thirty of them would touch
    )
    ax.tick_params(axis="y", rotation=0)
    ax.set(xlabel="query head", ylabel="layer measured")
    ax.set_title(draw_heads.__doc__)


def draw_times(times: dict[int, dict[str, float]], ax) -> None:
    """From which length on is a layer's attention faster?"""
    looks = {"cudnn": ("dense, cuDNN", INK, "-"), "sdpa": ("dense, PyTorch's choice", INK, "--")}
    own = [way for way in next(iter(times.values()), {}) if way not in looks]
    looks |= {
        way: (f"AnchorAttention, {way}", colour, "-")
        for way, colour in zip(own, (STRIPE, ACCENT), strict=False)
    }
    for way, (label, colour, line) in looks.items():
        ax.plot(
            list(times),
            [x[way] for x in times.values()],
            line,
            color=colour,
            marker="o",
            ms=4,
            label=label,
        )
    ax.set(xscale="log", yscale="log", xlabel="N, tokens", ylabel="ms a layer")
    ax.set_xticks(list(times), [f"{n // 1024}k" for n in times])
    ax.set_xticks([], minor=True)
    ax.legend(loc="upper left")
    ax.set_title(draw_times.__doc__)


def draw(results: dict):
    """Heads at the shortest length, and times where they were measured."""
    from matplotlib import pyplot as plt

    use_style()
    rows, times = results["rows"], data_times(results["rows"])
    shortest, theta = min(data_lengths(rows))[0], max(theta for _, theta in data_lengths(rows))
    figure, axes = plt.subplots(
        1, 2 if times else 1, figsize=(11 if times else 5.5, 5), squeeze=False
    )
    draw_heads(data_heads(rows, shortest, theta), axes[0, 0])
    if times:
        draw_times(times, axes[0, 1])
    about = results["settings"]
    caption(
        figure,
        f"{about['model']}, {about['device']}, torch {about['torch']}; left N = {shortest}, "
        f"θ = {theta:g}, no tail. Times: bfloat16, θ = 12, medians over layers.",
    )
    return figure
