"""What went wrong, as a picture: expected, got, and where they differ."""

import torch
from torch import Tensor

from anchor_ref.figures.style import INK, MAGNITUDE, SKIPPED, STRIPE


def data_failure(expected: Tensor, got: object) -> dict[str, Tensor | None]:
    """Both as pictures `[rows, columns]`, and where they differ.

    Returns:
        expected, got: float64; got is None where it is no tensor. differ: bool; None where the
        shapes are not the same.
    """
    found = _flat(got) if isinstance(got, Tensor) else None
    wanted, differ = _flat(expected), None
    if found is not None and found.shape == wanted.shape:
        differ = ~torch.isclose(found, wanted, rtol=1e-3, atol=1e-4, equal_nan=True)
    return {"expected": wanted, "got": found, "differ": differ}


def draw_failure(axes: tuple[str, str], part: str, expected: Tensor, got: object) -> None:
    """Where does it differ?"""
    from matplotlib import pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    data = data_failure(expected, got)
    finite = data["expected"][data["expected"].isfinite()]
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
