"""Figures of the method as written beside its published code."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int8
from torch import Tensor

from anchor_lab.analysis.discrepancies import RoundedTest, dense_share, memory
from anchor_lab.drawing.shapes import curve, mark, name_ticks, note
from anchor_lab.drawing.style import ACCENT, INIT, INK, STRIPE, finish, panels

# How often a key is counted, from "later key, not visible" on.
COUNTS = {"later": "#FFFFFF", "never": STRIPE, "once": "#CFE3F1", "twice": INIT}


def data_counted(counted: Int8[Tensor, "N N"], pixels: int = 256) -> dict[str, Tensor]:
    """How often each key is counted, as one pair in each square of the map.

    Args:
        counted: c of one head, see `analysis.discrepancies.times_counted`.
        pixels: squares along each side, at most; N a multiple of the square's side.

    Returns:
        index: into `COUNTS`, `[squares, squares]`: that of the lower left pair of the square, the
            one that is causal when any is.
        cell: pairs along the side of a square.
        shares: of all causal pairs, those counted never, once and twice, `[3]` float64.
    """
    cell = -(-len(counted) // pixels)
    index = counted + torch.ones_like(counted).tril()
    pairs = torch.bincount(index.flatten(), minlength=len(COUNTS))[1:].double()
    return {
        "index": index[cell - 1 :: cell, ::cell],
        "cell": torch.tensor(cell),
        "shares": pairs / pairs.sum(),
    }


def draw_counted(data: dict[str, Tensor], ax) -> None:
    """How often is each key counted?"""
    from matplotlib.colors import ListedColormap

    n = len(data["index"]) * int(data["cell"])
    colours = ListedColormap(list(COUNTS.values()))
    look = {"vmin": -0.5, "vmax": len(COUNTS) - 0.5, "interpolation": "nearest"}
    ax.imshow(data["index"], cmap=colours, extent=(0, n, n, 0), **look)
    named = zip(list(COUNTS.items())[1:], data["shares"].tolist(), strict=True)
    for line, ((name, colour), share) in enumerate(named):
        look = {"ha": "right", "va": "top", "transform": ax.transAxes}
        frame = {"boxstyle": "square,pad=0.25", "fc": colour, "ec": "none"}
        ax.text(0.97, 0.95 - 0.08 * line, f"{name}: {share:.0%}", bbox=frame, **look)
    ax.set(xlabel="key", ylabel="query")


def show_counted(counts: Mapping[str, Int8[Tensor, "N N"]], small_print: str) -> None:
    """The figure of `draw_counted`, a panel for each layout, with its words."""
    figure, axes = panels(1, len(counts), size=(4.2 * len(counts), 4.3))
    said = []
    for ax, (name, counted) in zip(axes, counts.items(), strict=True):
        data = data_counted(counted)
        draw_counted(data, ax)
        ax.set_title(name)
        shares = zip(list(COUNTS)[1:], data["shares"].tolist(), strict=True)
        said.append(f"{name}: {', '.join(f'{share:.0%} {often}' for often, share in shares)}")
    side = int(data["cell"])
    finish(
        figure,
        draw_counted.__doc__,
        f"{small_print}; a square shows one of its {side} x {side} pairs, the shares count all.",
        f"Triangles of pairs, coloured by how often each is counted. {'; '.join(said)}. What is "
        "counted twice is a band at the left, what is never counted lies before each group.",
    )


def data_theta_error(
    thetas: Sequence[float], errors: dict[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Output error by θ, one list for each layout.

    Args:
        thetas: T finite thresholds, then +inf.
        errors: by the layout's name, T + 1 relative errors.

    Returns:
        The errors, and under "x" where each θ is drawn: +inf one step to the right of the others.
    """
    *finite, _ = thetas
    return {"x": [*finite, 2 * finite[-1] - finite[-2]], **errors}


def draw_theta_error(data: dict[str, list[float]], ax) -> None:
    """How near to dense attention does θ bring the output?"""
    x = data["x"]
    for (name, errors), colour in zip(list(data.items())[1:], (ACCENT, STRIPE), strict=True):
        curve(ax, x, errors, name, colour, (8, 2), marker="o", va="bottom", weight="bold")
    ax.set_xticks(x, [*(f"{theta:g}" for theta in x[:-1]), "∞"])
    ax.set(xlabel="θ", ylabel="output error, mean over heads", ylim=(0, None))
    ax.set_xlim(x[0] - 0.5, x[-1] + 0.28 * (x[-1] - x[0]))


def show_theta_error(data: dict[str, list[float]], small_print: str) -> None:
    """The figure of `draw_theta_error`, with its words."""
    figure, ax = panels(size=(6.4, 3.0))
    draw_theta_error(data, ax)
    ends = [f"{name} {errors[-1]:.2g}" for name, errors in list(data.items())[1:]]
    finish(
        figure,
        draw_theta_error.__doc__,
        small_print,
        f"Output error against θ, a line for each layout. At θ = ∞: {', '.join(ends)}.",
    )


def data_rounding(
    tests: dict[str, RoundedTest], theta: float, reach: float
) -> dict[str, dict[str, Tensor]]:
    """Differences within `reach` of θ, and which decisions the rounding turned over.

    Args:
        tests: by name.
        theta: θ, natural-log units.
        reach: how far from θ to look.

    Returns:
        Of each test exact and rounded, both less θ, `[shown]`; flipped, bool `[shown]`.
    """
    found = {}
    for name, test in tests.items():
        near = (test.exact - theta).abs() <= reach
        exact, rounded = test.exact[near] - theta, test.rounded[near] - theta
        flipped = (exact <= 0) != (rounded <= 0)
        found[name] = {"exact": exact, "rounded": rounded, "flipped": flipped}
    return found


def draw_rounding(data: dict[str, dict[str, Tensor]], axes) -> None:
    """Which decisions does rounding turn over?"""
    for ax, (name, test) in zip(axes, data.items(), strict=True):
        flipped = test["flipped"]
        mark(ax, test["exact"], test["rounded"], flipped, sizes=(5, 5), alpha=0.7)
        ax.axhline(0, color=INK, lw=0.8)
        ax.axvline(0, color=INK, lw=0.8)
        ax.set_title(f"{name}: {int(flipped.sum())} of {len(flipped)} turned over", fontsize=10)
        ax.set(xlabel="difference − θ, exact", aspect="equal")
    axes[0].set_ylabel("difference − θ, rounded")


def show_rounding(data: dict[str, dict[str, Tensor]], small_print: str) -> None:
    """The figure of `draw_rounding`, with its words."""
    figure, axes = panels(1, len(data), size=(7.6, 4.0), sharex=True, sharey=True)
    draw_rounding(data, axes)
    said = [f"{name}: {float(x['flipped'].float().mean()):.1%}" for name, x in data.items()]
    finish(
        figure,
        draw_rounding.__doc__,
        f"{small_print}. Kept: at or below 0.",
        "Rounded against exact distance from θ, a panel for each size of the scores. The larger "
        f"the scores, the fewer lines the dots fall onto. Turned over: {', '.join(said)}.",
    )


def data_tail(lengths: Sequence[int], group_size: int) -> dict[str, Tensor]:
    """Share of the causal pairs in rows that the published code computes densely.

    Returns:
        length: `[lengths]`; share: `[lengths]`, NaN where no row is written at all.
    """
    shares = [dense_share(n, group_size) if n % group_size else float("nan") for n in lengths]
    return {"length": torch.tensor(lengths), "share": torch.tensor(shares)}


def draw_tail(data: dict[str, Tensor], ax) -> None:
    """How much of the attention is dense, by the prompt's length?"""
    length, share = data["length"], data["share"]
    ax.plot(length, share, color=ACCENT)
    zeros = length[share.isnan()]
    ax.scatter(zeros, torch.zeros(len(zeros)), color=STRIPE, s=24, zorder=3, clip_on=False)
    note(ax, "dots: the output is zero", STRIPE, (0.98, 0.95))
    ax.set(xlabel="tokens", ylabel="share of pairs in dense rows", ylim=(0, 1))


def show_tail(data: dict[str, Tensor]) -> None:
    """The figure of `draw_tail`, with its words."""
    figure, ax = panels(size=(7.0, 2.8))
    draw_tail(data, ax)
    finish(
        figure,
        draw_tail.__doc__,
        "Share of the causal pairs in the last N mod 2048 rows.",
        "Share of the attention that is dense against the prompt's length: a saw tooth that "
        "falls with length; dots at multiples of 2048, where the output is zero.",
    )


def data_memory(
    lengths: Sequence[int], q_heads: int, kv_heads: int, head_dim: int, selected: float
) -> dict[str, list[float]]:
    """Bytes by length, see `analysis.discrepancies.memory`.

    Returns:
        length, and of "keys and values" and "selection" the bytes of each side.
    """
    found = {"length": [float(n) for n in lengths]}
    for n in lengths:
        for side, parts in memory(n, q_heads, kv_heads, head_dim, selected).items():
            for part, size in parts.items():
                found.setdefault(f"{part}, {side}", []).append(size)
    return found


def draw_memory(data: dict[str, list[float]], ax) -> None:
    """How does the memory of one call grow?"""
    length = data["length"]
    for name, sizes in list(data.items())[1:]:
        colour = STRIPE if name.endswith("published") else ACCENT
        dashed = "--" if name.startswith("keys") else "-"
        other = "selection" if name.startswith("keys") else "keys and values"
        upper = sizes[-1] >= data[f"{other}, {name.split(', ')[1]}"][-1]
        up = 4 if upper else -4  # the two of a side may lie close together
        curve(ax, length, sizes, name, colour, (6, up), ls=dashed)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    name_ticks(ax.xaxis, length[::2], [f"{n / 1024:g}k" for n in length[::2]])
    powers = [2.0**p for p in range(20, 36, 5)]
    name_ticks(ax.yaxis, powers, ["1 MiB", "32 MiB", "1 GiB", "32 GiB"])
    ax.set(xlabel="tokens", ylabel="bytes")


def show_memory(data: dict[str, list[float]]) -> None:
    """The figure of `draw_memory`, with its words."""
    figure, ax = panels(size=(6.8, 3.6))
    draw_memory(data, ax)
    finish(
        figure,
        draw_memory.__doc__,
        "Computed, not measured: one layer, 32 query and 8 key heads of 128, half precision, "
        "5 % of the candidates selected.",
        "Memory of one call against length on logarithmic axes. The published selection grows "
        "with the square and meets the repeated keys and values at 256k tokens; each line of "
        "this project lies below the published one of its kind.",
    )
