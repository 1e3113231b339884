"""What went wrong, as a picture: expected, got, and where they differ."""

import torch
from torch import Tensor

from anchor_lab.drawing.shapes import CENTRED
from anchor_lab.drawing.style import MAGNITUDE, SKIPPED, STRIPE

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
    import seaborn as sns
    from matplotlib import pyplot as plt

    data = data_failure(expected, got, tolerance)
    finite, *other = (x[x.isfinite()] for x in (data["expected"], data["got"]) if x is not None)
    if len(finite.unique()) < 2:  # one colour for all that is right, another for what is not
        finite = torch.cat([finite, *other])
    low, high = (finite.min(), finite.max()) if finite.numel() else (0, 1)
    numbers = {"cmap": MAGNITUDE, "vmin": float(low), "vmax": float(max(high, low + 1e-9))}
    looks = {
        "expected": numbers,
        "got": numbers,
        "differ": {"cmap": [SKIPPED, STRIPE], "vmin": 0, "vmax": 1},
    }
    figure, panels = plt.subplots(1, 3, figsize=(8.5, 2.9))
    for ax, (name, look) in zip(panels, looks.items(), strict=True):
        image = data[name]
        ax.set_title({"differ": "where they differ"}.get(name, name))
        if image is None:
            ax.text(0.5, 0.5, "not the same shape", ha="center", transform=ax.transAxes)
            ax.set_axis_off()
            continue
        small = name != "differ" and max(image.shape) <= 6  # there is room for the numbers
        look |= {"annot": small, "fmt": ".3g", "annot_kws": {"size": 7}, "cbar": False}
        rows, columns = (max(1, size // 6) for size in image.shape)  # a tick at each so many
        ticks = {"xticklabels": columns, "yticklabels": rows if len(image) > 1 else []}
        sns.heatmap(image.double().numpy(), ax=ax, **look, **ticks)
        ax.tick_params(rotation=0)
        for y, x in image.isnan().nonzero().tolist() if small else ():  # it leaves these blank
            ax.text(x + 0.5, y + 0.5, "nan", **CENTRED, size=7)
        ax.set(xlabel=axes[1], ylabel=axes[0])
    figure.suptitle(part, x=0.01, ha="left", fontsize=9)


def _flat(x: Tensor) -> Tensor:
    x = x.detach().cpu().double()
    return x.reshape(1, -1) if x.ndim < 2 else x.reshape(-1, x.shape[-1])
