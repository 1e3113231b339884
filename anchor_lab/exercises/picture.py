"""What went wrong, as a picture: expected, got, and where they differ."""

import torch
from torch import Tensor

from anchor_lab.drawing.style import INK, MAGNITUDE, SKIPPED, STRIPE

FLOAT32 = 1e-4  # a weight e^s of a score near 800, the largest here, is good to 800 · 2^-24


def differs(right: Tensor, got: Tensor, tolerance: float) -> Tensor:
    """Where an answer of the right shape is wrong, bool; NaN is right where NaN is expected.

    Args:
        right: what is expected.
        got: the answer. Where float64 is expected float32 is taken too, to its own accuracy.
        tolerance: relative and absolute difference that rounding may make.
    """
    if (right.dtype, got.dtype) == (torch.float64, torch.float32):
        tolerance = max(tolerance, FLOAT32)
    right, got = right.cpu().double(), got.detach().cpu().double()
    return ~torch.isclose(got, right, rtol=tolerance, atol=tolerance, equal_nan=True)


def data_failure(expected: Tensor, got: object, tolerance: float) -> dict[str, Tensor | None]:
    """Both as pictures `[rows, columns]`, and where they differ.

    Args:
        expected, got: what should have been returned, and what was.
        tolerance: as in `differs`.

    Returns:
        expected, got: float64; got is None where it is no tensor. differ: bool; None where the
        shapes are not the same.
    """
    found, differ = None, None
    if isinstance(got, Tensor):
        found = _flat(got)
        if got.shape == expected.shape:
            differ = _flat(differs(expected, got, tolerance)).bool()
    return {"expected": _flat(expected), "got": found, "differ": differ}


def draw_failure(
    axes: tuple[str, str], part: str, expected: Tensor, got: object, tolerance: float
) -> None:
    """Where does it differ?"""
    from matplotlib import pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    data = data_failure(expected, got, tolerance)
    images = [data["expected"], data["got"]]
    finite, *other = (x[x.isfinite()] for x in images if x is not None)
    if len(finite.unique()) < 2:  # one colour for all that is right, another for what is not
        finite = torch.cat([finite, *other])
    low, high = (finite.min(), finite.max()) if finite.numel() else (0, 1)
    figure, panels = plt.subplots(1, 3, figsize=(8.5, 2.9))
    for ax, name in zip(panels, ("expected", "got", "differ"), strict=True):
        image = data[name]
        ax.set_title({"differ": "where they differ"}.get(name, name))
        if image is None:
            ax.text(0.5, 0.5, "not the same shape", ha="center", transform=ax.transAxes)
            ax.set_axis_off()
            continue
        look = {"cmap": MAGNITUDE, "vmin": float(low), "vmax": float(max(high, low + 1e-9))}
        if name == "differ":
            look = {"cmap": ListedColormap([SKIPPED, STRIPE]), "vmin": 0, "vmax": 1}
        ax.imshow(image.double().numpy(), aspect="auto", interpolation="nearest", **look)
        ax.set(xlabel=axes[1], ylabel=axes[0])
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(image) == 1:
            ax.set_yticks([])
        if name != "differ":
            _write_numbers(image, look["vmin"], look["vmax"], ax)
    figure.suptitle(part, x=0.01, ha="left", fontsize=9)


def _write_numbers(image: Tensor, low: float, high: float, ax) -> None:
    """The numbers themselves, where there is room for them."""
    if len(image) > 6 or image.shape[1] > 6:
        return
    for y, row in enumerate(image.tolist()):
        for x, value in enumerate(row):
            shade = "white" if value <= (low + high) / 2 else INK  # NaN is drawn white
            ax.text(x, y, f"{value:.3g}", ha="center", va="center", color=shade, size=7)


def _flat(x: Tensor) -> Tensor:
    x = x.detach().cpu().double()
    return x.reshape(1, -1) if x.ndim < 2 else x.reshape(-1, x.shape[-1])
