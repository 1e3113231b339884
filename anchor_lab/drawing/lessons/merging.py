"""Figures of notebook 03: one softmax in pieces."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int
from torch import Tensor

from anchor_lab.drawing import softmax, style

LITTLE = 5e-7  # a few roundings of float32: told in words, since the last digits differ by machine


def show_parts(
    scores: Float[Tensor, "N"],
    parts: Mapping[str, Sequence[int]],
    words: Sequence[str],
    query: str,
) -> None:
    """What does a part give up when it meets another?"""
    data = softmax.data_parts(scores, parts, words)
    figure, axes = style.panels(1, len(parts) + 1, (9, 2.7), width_ratios=[3] * len(parts) + [6])
    softmax.draw_parts(data, axes)
    told = []
    for name, (names, own, origin, common) in data["parts"].items():
        pairs = zip(names, own.tolist(), common.tolist(), strict=True)
        bars = ", ".join(f"{word} {before:.2f} then {after:.2f}" for word, before, after in pairs)
        told.append(f"Part {name}, m = {origin:g}: {bars}")
    style.finish(
        figure,
        show_parts.__doc__,
        f'Weights of the query "{query}", measured from each part\'s own m and from one.',
        "Bars of exp(score - m), of each part's own m and then of the common one, "
        f"{data['max']:g}. {'; '.join(told)}.",
    )


def show_visit(
    scores: Float[Tensor, "N"], orders: Mapping[str, Sequence[Int[Tensor, "_"]]], small_print: str
) -> dict[str, dict[str, Tensor]]:
    """Which order learns the most from few keys?"""
    data = softmax.data_visit(scores, orders)
    figure, axes = style.panels(1, 2, (8, 2.8))
    softmax.draw_visit(data, axes)
    told = []
    for name, line in data.items():
        top = int((line["max"] >= line["max"][-1]).nonzero()[0]) + 1
        half = int((line["mass"] > 0.5).nonzero()[0]) + 1
        told.append(f"{name}: the maximum after {top}, half of the sum after {half}")
    style.finish(
        figure,
        show_visit.__doc__,
        small_print,
        f"Running maximum and share of the sum by tiles of keys visited. {'; '.join(told)}.",
    )
    return data


def show_tiles(
    scores: Float[Tensor, "N M"], v: Float[Tensor, "M D"], tiles: Sequence[int], small_print: str
) -> dict[str, list]:
    """Does it matter into how many pieces a softmax is cut?"""
    data = softmax.data_tiles(scores, v, tiles)
    figure, ax = style.panels(size=(6, 2.8))
    softmax.draw_tiles(data, ax)
    worst = max(zip(data["error"], data["tile"], strict=True))[1]
    pairs = zip(data["tile"], data["error"], strict=True)
    few = [tile for tile, error in pairs if error > LITTLE]
    style.finish(
        figure,
        show_tiles.__doc__,
        f"{len(scores)} rows, float32 against float64. {small_print}",
        f"Relative error by keys to a tile: largest with {worst}, below {LITTLE:g} beyond "
        f"{max(few, default=0)}. One rounding of float32 is 6e-08.",
    )
    return data
