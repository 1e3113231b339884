"""Figures of notebook 03: one softmax in pieces."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_lab.drawing.shapes import bars, label, name_ticks, name_words
from anchor_lab.drawing.style import ACCENT, INK, STRIPE
from anchor_ref.online_softmax import SoftmaxState, empty_state, merge, normalise, partial_softmax

COLOURS = (ACCENT, STRIPE)


def data_parts(
    scores: Float[Tensor, "N"], parts: Mapping[str, Sequence[int]], words: Sequence[str]
) -> dict:
    """Weights of keys that were visited in parts: from each part's own maximum, then from one.

    Args:
        scores: of one query.
        parts: name and keys of each part, disjoint.
        words: the tokens.

    Returns:
        parts: by name, (words, exp(s − m) of its own m, m, exp(s − m) of the common m).
        max: the common maximum.
    """
    common = max(float(scores[list(keys)].max()) for keys in parts.values())
    found = {}
    for name, keys in parts.items():
        score = scores[list(keys)]
        own = float(score.max())
        names = [words[key] for key in keys]
        found[name] = (names, (score - own).exp(), own, (score - common).exp())
    return {"parts": found, "max": common}


def draw_parts(data: dict, axes) -> None:
    """What does a part have to give up when it meets another?"""
    *separate, merged = axes
    names, total = [], 0.0
    parts = zip(separate, COLOURS, data["parts"].items(), strict=True)
    for ax, colour, (name, (words, own, origin, common)) in parts:
        bars(ax, range(len(words)), own.tolist(), colour, "{:.2f}".format)
        name_words(ax, range(len(words)), words)
        ax.set_title(f"{name}: m = {origin:g}, l = {float(own.sum()):.3f}")
        at = range(len(names), len(names) + len(words))
        bars(merged, at, common.tolist(), colour, "{:.2f}".format)
        shrink = f"{name} × {float(common[0] / own[0]):.3f}".replace("× 1.000", "as it was")
        merged.text((at[0] + at[-1]) / 2, 1.16, shrink, ha="center", color=colour, weight="bold")
        names, total = [*names, *words], total + float(common.sum())
    name_words(merged, range(len(names)), names)
    merged.set_title(f"Merged: m = {data['max']:g}, l = {total:.3f}")
    for ax in axes:
        ax.set(ylim=(0, 1.3), ylabel="exp(score − m)")


def data_visit(
    scores: Float[Tensor, "N"], orders: Mapping[str, Sequence[Int[Tensor, "_"]]]
) -> dict[str, dict[str, Tensor]]:
    """What the state of one query knows after each tile of keys.

    Args:
        scores: of one query over its keys.
        orders: by name, the tiles in the order in which they are visited, each key in one tile.

    Returns:
        By name: seen, number of keys; max, the running maximum; mass, share of the whole sum.
    """
    nothing = scores.new_zeros(1, 1)  # values play no part
    whole = torch.logsumexp(scores, 0)
    found = {}
    for name, tiles in orders.items():
        state, seen, largest, mass = empty_state(nothing), [], [], []
        for keys in tiles:
            tile = partial_softmax(scores[keys].unsqueeze(0), scores.new_zeros(len(keys), 1))
            state = merge(state, tile)
            seen.append(len(keys))
            largest.append(state.max[0])
            mass.append((state.max[0] - whole).exp() * state.sum[0])
        found[name] = {
            "seen": torch.tensor(seen).cumsum(0),
            "max": torch.stack(largest),
            "mass": torch.stack(mass),
        }
    return found


def draw_visit(data: dict[str, dict[str, Tensor]], axes) -> None:
    """Which order learns the most from few keys?"""
    looks = zip(COLOURS, ("-", (0, (4, 2))), (0.25, 0.5), strict=True)
    for (name, line), (colour, dash, height) in zip(data.items(), looks, strict=True):
        for ax, what in zip(axes, ("max", "mass"), strict=True):
            ax.step(line["seen"], line[what], where="post", color=colour, ls=dash)
        # Named where the line passes that height, on the side that has room.
        there = float(line["seen"][int((line["mass"] > height).nonzero()[0])])
        offset, side = (6, "left") if there < float(line["seen"][-1]) / 2 else (-6, "right")
        label(axes[1], name, (there, height), (offset, 0), color=colour, ha=side)
    axes[0].set(xlabel="keys visited", ylabel="running maximum")
    axes[1].set(xlabel="keys visited", ylabel="share of the whole sum", ylim=(0, 1.05))


def in_tiles(
    scores: Float[Tensor, "N M"], v: Float[Tensor, "M D"], tile: int
) -> Float[Tensor, "N D"]:
    """Softmax over all keys, `tile` of them at a time, from left to right."""
    state: SoftmaxState = empty_state(v.new_zeros(len(scores), v.shape[1]))
    for start in range(0, scores.shape[1], tile):
        keys = slice(start, start + tile)
        # A copy: partial_softmax overwrites what it is given.
        state = merge(state, partial_softmax(scores[:, keys].clone(), v[keys]))
    return normalise(state)


def data_tiles(
    scores: Float[Tensor, "N M"], v: Float[Tensor, "M D"], tiles: Sequence[int]
) -> dict[str, list]:
    """How far float32 softmax in tiles is from float64 softmax in one.

    Args:
        scores, v: float64.
        tiles: keys to a tile.

    Returns:
        tile; error: ‖out − exact‖ / ‖exact‖ of each.
    """
    exact = scores.softmax(-1) @ v
    errors = [
        float((in_tiles(scores.float(), v.float(), tile) - exact).norm() / exact.norm())
        for tile in tiles
    ]
    return {"tile": list(tiles), "error": errors}


def draw_tiles(data: dict[str, list], ax) -> None:
    """Does it matter into how many pieces a softmax is cut?"""
    ax.plot(data["tile"], data["error"], color=ACCENT, marker="o", ms=4)
    ax.axhline(2.0**-24, color=INK, lw=0.8, ls=":")
    words = "one rounding of float32, 2⁻²⁴"
    label(ax, words, (data["tile"][-1], 2.0**-24), (0, -4), ha="right", va="top")
    ax.set(xscale="log", yscale="log", xlabel="keys to a tile", ylabel="relative error")
    name_ticks(ax.xaxis, data["tile"], [str(tile) for tile in data["tile"]])
    ax.set_ylim(1e-8, 1e-5)
