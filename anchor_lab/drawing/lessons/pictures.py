"""Figures of notebook 02: which columns hold the mass, and what pictures leave of them."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_lab.drawing import reduction, style
from anchor_lab.drawing.lessons.place import small_print
from anchor_models.capture import Captured
from anchor_models.heads import BundledHeads
from anchor_ref.heads import causal_scores

PIXELS = 320  # to a side of a picture
CELLS = 256  # to a side of the pooled map
LOGARITHMIC = {"vmin": -5, "vmax": 0, "cmap": style.MAGNITUDE}
LEAST_FAR, LEAST_TOP = 0.3, 0.9  # of a head of stripes: mass far away, its share on 1 % of keys


def column_mass(x: Captured, place: int, rows: Int[Tensor, "R"]) -> Float[Tensor, "N"]:
    """Mass that each key gets from the mean of some rows; 0 for the first 128 keys."""
    mass = torch.zeros(x.k.shape[2])
    for part in rows.split(256):
        scores = x.scaling * x.q[0, place, part] @ x.k[0, 0].T
        later = torch.arange(len(mass)) > part[:, None]
        mass += scores.masked_fill(later, -torch.inf).softmax(-1).sum(0)
    mass[:128] = 0
    return mass / len(rows)


def of_stripes(bundled: BundledHeads) -> list[tuple[int, int]]:
    """(layer, head) of every head of the model that puts much of its mass on few far keys."""
    return [
        (head["layer"], head["head"])
        for head in bundled.heads
        if head["far"] > LEAST_FAR and head["top"] > LEAST_TOP
    ]


def weights_of(x: Captured, place: int) -> Float[Tensor, "N N"]:
    """All weights of a head at once: N² numbers."""
    return causal_scores(x.q[:, place : place + 1], x.k, x.scaling)[0, 0].softmax(-1)


def pictures_of(weights: Float[Tensor, "N N"]) -> dict[str, Int[Tensor, "P P 3"]]:
    """Three ways to bring a map on a screen."""
    largest = reduction.pool(weights, CELLS, "max").clamp(min=1e-5).log10()
    nearest = {"interpolation": "nearest"}
    return {
        "imshow": reduction.picture(weights, PIXELS),
        "imshow, nearest": reduction.picture(weights, PIXELS, **nearest),
        "max-pool, log scale": reduction.picture(largest, PIXELS, **nearest, **LOGARITHMIC),
    }


def count(
    pictures: Mapping[str, Int[Tensor, "P P 3"]], keys: Int[Tensor, "S"], n: int
) -> dict[str, int]:
    """How many of the columns can be seen in each picture."""
    return {
        name: int(reduction.data_seen(rgb, keys, n)["seen"].sum())
        for name, rgb in pictures.items()
    }


def show_pictures(
    x: Captured, place: int, weights: Float[Tensor, "N N"], keys: Int[Tensor, "S"]
) -> dict[str, int]:
    """Which of these pictures shows the stripes?"""
    pictures = pictures_of(weights)
    seen = count(pictures, keys, len(weights))
    figure, axes = style.panels(1, len(pictures), (9.6, 3.9))
    titled = {f"{name}: {seen[name]} of {len(keys)}": rgb for name, rgb in pictures.items()}
    reduction.draw_pictures(titled, axes.flat)
    told = ", ".join(f"{name} {number}" for name, number in seen.items())
    style.finish(
        figure,
        show_pictures.__doc__,
        f"{len(keys)} stripes, {small_print(x, place)}, {PIXELS} pixels a side. Counted: "
        f"columns lighter than their surroundings by {reduction.SEEN} L* or more.",
        f"The same map in {len(pictures)} pictures. Of {len(keys)} stripes can be seen: {told}.",
    )
    return seen
