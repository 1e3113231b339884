"""How pictures of a map lie: what a screen, a scale and pooling leave of its stripes."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_lab.drawing.style import INK

# A difference of lightness L* (0 to 100) that is easily seen; about 1 is the least that can be.
SEEN = 2.3


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
    dark = luminance * (29 / 6) ** 2 / 3 + 4 / 29
    return 116 * dark.where(luminance <= (6 / 29) ** 3, luminance ** (1 / 3)) - 16


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
