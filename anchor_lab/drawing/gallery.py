"""What real heads look like: what kind of head each is, by measured criteria, and their maps."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_lab.drawing.shapes import label
from anchor_lab.drawing.style import INK, MAGNITUDE
from anchor_ref.heads import attention_scores

NEAR = 128  # keys that count as the row's neighbourhood
BEST = 0.01  # share of columns, or of distances, that counts as "few"
SINK = 0.15  # mass of the first cell that is worth a word

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
    scores = attention_scores(q[None, :, rows].float(), k[None].float(), scale)[0]  # [Hq, R, N]
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


def draw_maps(maps: Mapping[str, dict[str, Tensor]], axes: Iterable, strips: Iterable) -> None:
    """Where do these heads look?

    `maps` are those of `maps.data_attention_map` by title. Each strip shows how the mass is spread
    over the keys of the map below it, and says how large a sink is.
    """
    axes, strips = list(axes), list(strips)
    for ax, strip, (title, data) in zip(axes, strips, maps.items(), strict=True):
        cells, cell = len(data["heaviest"]), int(data["cell"])
        n = cells * cell
        later = torch.ones(cells, cells, dtype=torch.bool).triu(1)
        image = data["heaviest"].clamp(min=1e-5).log10().masked_fill(later, torch.nan)
        look = {"cmap": MAGNITUDE, "vmin": -5, "vmax": 0, "interpolation": "nearest"}
        shown = ax.imshow(image.numpy(), extent=(0, n, n, 0), aspect="auto", **look)
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
            words = f"{first:.0%} on the first {cell} keys"
            label(strip, words, (cell, first), (4, 0), fontsize=8)
    bar = axes[0].figure.colorbar(shown, ax=[*axes, *strips], shrink=0.6, pad=0.02)
    bar.set_label("largest weight in the cell")
    bar.set_ticks([-5, -3, -1, 0], labels=["≤ 10⁻⁵", "0.001", "0.1", "1"])
