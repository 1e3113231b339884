"""What real heads look like, by measured criteria, and how pictures of them lie (notebook 02)."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_lab.drawing.style import ACCENT, INK, MAGNITUDE, STRIPE
from anchor_ref.heads import scaled_scores, stack_heads, unstack_heads

NEAR = 128  # keys that count as the row's neighbourhood
BEST = 0.01  # share of columns, or of distances, that counts as "few"
SINK = 0.15  # mass of the first cell that is worth a word
# A difference of lightness L* (0 to 100) that is easily seen; about 1 is the least that can be.
SEEN = 2.3

# What a head can be, and the measure in which the model's most typical head is the largest.
KINDS = {
    "sink": "mass on key 0",
    "window": "mass on the 128 nearest keys",
    "stripes": "mass between both on the best 1 % of keys",
    "slash": "mass between both on the best 1 % of distances",
    "diffuse": "keys that it spreads over",
}


def data_profile(
    q: Float[Tensor, "Hq N D"], k: Float[Tensor, "Hkv N D"], scale: float, rows: Int[Tensor, "R"]
) -> dict[str, Float[Tensor, "Hq"]]:
    """Five numbers that say what kind of head each head is.

    With w_j the weights of a row, averaged over `rows`; "between" are keys after the first 128
    and before the 128 nearest:

    sink, window     mass on key 0; mass on the 128 nearest keys
    stripes, slash   mass on the 1 % of keys, or of distances i − j, that hold most of what lies
                     between
    diffuse          exp of the entropy of w: over how many keys an equal spread would say as much

    Args:
        q, k: of one layer.
        scale: factor of q·k.
        rows: queries that are looked at; each must have keys between.

    Returns:
        `KINDS` by name, one number for each query head.
    """
    scores = scaled_scores(stack_heads(q[None, :, rows].float(), len(k)), k[None].float(), scale)
    scores = unstack_heads(scores, len(q))[0]  # [Hq, R, N]
    distance = rows[:, None] - torch.arange(q.shape[1])  # [R, N]
    weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
    near = (distance >= 0) & (distance < NEAR)
    between = weights.masked_fill(near | (torch.arange(q.shape[1]) < NEAR), 0)
    few = round(BEST * q.shape[1])
    by_key = between.sum(1)
    at_distance = torch.zeros_like(by_key)
    for i, row in enumerate(rows.tolist()):  # key j of this row lies at distance row − j
        at_distance[:, : row + 1] += between[:, i, : row + 1].flip(-1)
    return {
        "sink": weights[..., 0].mean(-1),
        "window": (weights * near).sum(-1).mean(-1),
        "stripes": by_key.topk(few).values.sum(-1) / len(rows),
        "slash": at_distance.topk(few).values.sum(-1) / len(rows),
        "diffuse": torch.special.entr(weights).sum(-1).exp().mean(-1),
    }


def most_typical(
    profiles: Mapping[int, dict[str, Float[Tensor, "Hq"]]],
) -> dict[str, tuple[int, int, float]]:
    """For each kind the head that has most of it.

    Args:
        profiles: `data_profile` of each layer.

    Returns:
        By kind (layer, head, value).
    """
    found = {}
    for kind in KINDS:
        layer = max(profiles, key=lambda layer: float(profiles[layer][kind].max()))
        values = profiles[layer][kind]
        found[kind] = (layer, int(values.argmax()), float(values.max()))
    return found


def draw_heads(maps: Mapping[str, dict[str, Tensor]], axes: Iterable, strips: Iterable) -> None:
    """Where do these heads look?

    `maps` are those of `maps.data_attention_map` by title. Each strip shows how the mass is spread
    over the keys of the map below it, and says how large a sink is.
    """
    axes, strips = list(axes), list(strips)
    for ax, strip, (title, data) in zip(axes, strips, maps.items(), strict=True):
        cells, cell = len(data["heaviest"]), int(data["cell"])
        n = cells * cell
        seen = torch.ones(cells, cells, dtype=torch.bool).tril()
        image = data["heaviest"].clamp(min=1e-5).log10().masked_fill(~seen, torch.nan)
        shown = ax.imshow(
            image.numpy(),
            cmap=MAGNITUDE,
            vmin=-5,
            vmax=0,
            interpolation="nearest",
            extent=(0, n, n, 0),
            aspect="auto",
        )
        keys = (-0.03 * n, n)  # room between the axis and a spike of the first cell
        ax.set(xlabel="key", ylabel="query", xlim=keys)
        ax.locator_params(nbins=4)
        # Steps, not a line: a line would taper the one-cell spike of a sink to nothing.
        edges = (torch.arange(cells + 1) * cell).numpy()
        strip.stairs(data["column_mass"].clamp(min=1e-6).numpy(), edges, color=INK, fill=True)
        strip.set(yscale="log", ylim=(1e-4, 1), xlim=keys, xticks=[], ylabel="mass")
        strip.set_title(title)
        first = float(data["column_mass"][0])
        if first > SINK:
            strip.annotate(
                f"{first:.0%} on the first {cell} keys",
                (cell, first),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    bar = axes[0].figure.colorbar(shown, ax=[*axes, *strips], shrink=0.6, pad=0.02)
    bar.set_label("largest weight in the cell")
    bar.set_ticks([-5, -3, -1, 0], labels=["≤ 10⁻⁵", "0.001", "0.1", "1"])


def pool(weights: Float[Tensor, "N N"], cells: int, how: str) -> Float[Tensor, "cells cells"]:
    """A map of N x N weights as one of cells x cells: the largest or the mean of each square.

    Args:
        weights: N a multiple of `cells`.
        cells: to a side.
        how: "max" or "mean".
    """
    squares = weights.unflatten(1, (cells, -1)).unflatten(0, (cells, -1))  # [c, N/c, c, N/c]
    return squares.amax((1, 3)) if how == "max" else squares.mean((1, 3))


def picture(image: Float[Tensor, "R C"], pixels: int, **options) -> Int[Tensor, "P P 3"]:
    """What `imshow(image, **options)` puts on a screen of pixels x pixels: RGB, 0 to 255."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(pixels / 100, pixels / 100), dpi=100, layout="none")
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(image.numpy(), **options)
    ax.set_axis_off()
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).int()


def lightness(rgb: Int[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
    """L* of CIELAB, 0 (black) to 100 (white), of sRGB colours 0 to 255."""
    level = rgb.double() / 255
    linear = torch.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    luminance = linear @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
    cube_root = torch.where(
        luminance > (6 / 29) ** 3,
        luminance ** (1 / 3),
        luminance * (29 / 6) ** 2 / 3 + 4 / 29,
    )
    return 116 * cube_root - 16


def data_seen(rgb: Int[Tensor, "P P 3"], positions: Int[Tensor, "S"], n: int) -> dict[str, Tensor]:
    """Which columns stand out from the picture around them.

    Args:
        rgb: picture of an n x n map.
        positions: keys of the columns, none in the first pixel.
        n: N.

    Returns:
        contrast: L* of each key's pixel column, less the median of the 8 pixels on either side,
            averaged over the lower half of the rows that see the key, `[S]`.
        seen: contrast of at least 2.3, `[S]` bool.
    """
    pixels, contrasts = len(rgb), []
    light = lightness(rgb)
    for key in positions.tolist():
        column = key * pixels // n
        rows = light[(column + pixels) // 2 :]
        # The column may fall on the edge of two pixels: the better one counts.
        mine = rows[:, column - 1 : column + 2].mean(0).max()
        left, right = rows[:, max(column - 9, 0) : column - 1], rows[:, column + 2 : column + 10]
        contrasts.append(mine - torch.cat([left, right], 1).mean(0).median())
    contrast = torch.stack(contrasts)
    return {"contrast": contrast, "seen": contrast >= SEEN}


def draw_pictures(pictures: Mapping[str, Int[Tensor, "P P 3"]], axes) -> None:
    """Which of these pictures shows the stripes?"""
    for ax, (title, rgb) in zip(axes, pictures.items(), strict=True):
        ax.imshow(rgb.numpy(), interpolation="nearest")
        ax.set_title(title)
        ax.set(xticks=[], yticks=[], xlabel="key →", ylabel="← query")
        for spine in ax.spines.values():
            spine.set(visible=True, color=INK, lw=0.5)


def data_fading(
    weights: Float[Tensor, "N N"], positions: Int[Tensor, "S"], tokens: Sequence[int]
) -> dict[str, list]:
    """How far a stripe stands above its neighbours when cells grow.

    Args:
        weights: a map with stripes.
        positions: keys of the stripes.
        tokens: tokens to a side of a cell, each a divisor of N.

    Returns:
        tokens; max, mean: the last row of cells pooled so; of each the median cell with a stripe
        over the median cell without one.
    """
    found: dict[str, list] = {"tokens": list(tokens), "max": [], "mean": []}
    for size in tokens:
        cells = len(weights) // size
        stripe = torch.zeros(cells, dtype=torch.bool)
        stripe[positions // size] = True
        stripe[[0, -1]] = False  # the sink's cell and the diagonal's are neither
        other = ~stripe
        other[[0, -1]] = False
        for how in ("max", "mean"):
            last = pool(weights, cells, how)[-1]
            found[how].append(float(last[stripe].median() / last[other].median()))
    return found


def draw_fading(data: dict[str, list], ax) -> None:
    """How much of a stripe is left when a cell grows?"""
    for how, colour, mark in (("max", STRIPE, "o"), ("mean", ACCENT, "s")):
        ax.plot(data["tokens"], data[how], color=colour, marker=mark, ms=4)
        ax.annotate(
            f"pooled by {how}",
            (data["tokens"][-1], data[how][-1]),
            (6, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    ax.axhline(1, color=INK, lw=0.8, ls=":")
    ax.set(xscale="log", yscale="log", xlabel="tokens to a side of a cell")
    ax.set(ylabel="stripe / neighbours", xlim=(data["tokens"][0] / 1.2, data["tokens"][-1] * 4))
    ax.set_xticks(data["tokens"], [str(size) for size in data["tokens"]])
    ax.set_xticks([], minor=True)
    ax.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    ax.set_yticks([], minor=True)
