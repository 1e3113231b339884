"""Figures of notebook 03: one softmax in pieces."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
    for place, (name, (words, own, origin, common)) in enumerate(data["parts"].items()):
        colour = COLOURS[place]
        _bars(axes[place], words, own, colour)
        axes[place].set_title(f"{name}: m = {origin:g}, l = {float(own.sum()):.3f}")
        shrink = float(common[0] / own[0])
        label = f"{name} × {shrink:.3f}".replace("× 1.000", "as it was")
        at = [len(axes[-1].patches) + i for i in range(len(words))]
        _bars(axes[-1], words, common, colour, at)
        axes[-1].text(sum(at) / len(at), 1.16, label, ha="center", color=colour, weight="bold")
    total = sum(float(common.sum()) for *_, common in data["parts"].values())
    names = [word for words, *_ in data["parts"].values() for word in words]
    axes[-1].set_xticks(range(len(names)), names, va="baseline")
    axes[-1].set_title(f"Merged: m = {data['max']:g}, l = {total:.3f}")
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
        early = there < float(line["seen"][-1]) / 2
        axes[1].annotate(
            name,
            (there, height),
            (6 if early else -6, 0),
            textcoords="offset points",
            color=colour,
            ha="left" if early else "right",
            va="center",
        )
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
    ax.annotate(
        "one rounding of float32, 2⁻²⁴",
        (data["tile"][-1], 2.0**-24),
        (0, -4),
        textcoords="offset points",
        ha="right",
        va="top",
    )
    ax.set(xscale="log", yscale="log", xlabel="keys to a tile", ylabel="relative error")
    ax.set_xticks(data["tile"], [str(tile) for tile in data["tile"]])
    ax.set_xticks([], minor=True)
    ax.set_ylim(1e-8, 1e-5)


def _bars(ax, words: Sequence[str], heights: Tensor, colour: str, at=None) -> None:
    at = range(len(words)) if at is None else at
    bars = ax.bar(at, heights.tolist(), color=colour, width=0.7)
    ax.bar_label(bars, [f"{height:.2f}" for height in heights.tolist()], padding=2)
    ax.set_xticks(at, words, va="baseline")
    ax.tick_params(axis="x", pad=12)
