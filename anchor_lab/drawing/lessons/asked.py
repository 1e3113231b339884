"""Figures of rows that are asked one by one, an extension of stage 2 that the paper lacks."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.analysis.asked import likeness, spent
from anchor_lab.drawing import pooling, style
from anchor_lab.drawing.lessons.place import MODEL, name_of, small_print
from anchor_lab.drawing.shapes import label
from anchor_lab.drawing.style import ACCENT, DIM, INK, STRIPE, TAIL
from anchor_lab.methods.outliers import OutlierRows
from anchor_models.capture import Captured
from anchor_ref.config import AnchorConfig

PAPER = "paper"
LOOKS = {  # of curves: colour, mark, line
    PAPER: (STRIPE, "o", "-"),
    "least like the mean": (DIM, "^", "--"),
    "evenly spaced": (ACCENT, "s", "-"),
    "calibrated": (TAIL, "D", "none"),
    "all rows": (INK, "_", ":"),
}
COLOURS = STRIPE, ACCENT  # of the paper's way and of the extension's


def show_asked_rows(
    x: Captured,
    place: int,
    key: int,
    block: range,
    asked: Mapping[str, Sequence[int]],
    anchors: Float[Tensor, "N"],
    config: AnchorConfig,
) -> dict[str, Tensor | float]:
    """Who needs this key, and who is asked?

    Args:
        x, place: the head.
        key: j.
        block: the rows whose differences are shown.
        asked: by choice the rows that are asked, of this block or others.
        anchors: a_i of all rows.
        config: θ.

    Returns:
        `pooling.data_block` of the block.
    """
    rows = slice(block.start, block.stop)
    scores = x.scaling * x.q[0, place, rows] @ x.k[0, 0, key]
    data = pooling.data_block(scores, anchors[rows], config.theta)
    figure, (ax, below) = style.panels(
        2, 1, (7, 3.7), sharex=True, gridspec_kw={"height_ratios": [5, 1]}
    )
    pooling.draw_block(data, ax)
    ax.set_xlabel("")
    told = []
    for height, (name, some) in enumerate(asked.items()):
        inside = [row - block.start for row in some if row in block]
        mark = LOOKS[name][1]  # the colours of curves mean something else above
        below.scatter(inside, [height] * len(inside), s=26, color=INK, marker=mark, zorder=2)
        label(below, name, (len(block), height), (4, 0))
        told.append(f"{name} {', '.join(map(str, inside))}")
    below.set(ylim=(len(asked) - 0.4, -0.6), yticks=[], xlabel="row of the block")
    below.spines["left"].set_visible(False)
    style.finish(
        figure,
        "Who needs this key, and who is asked?",
        f"Rows {block.start} to {block.stop - 1} and key {key}; dots want the key. "
        f"{small_print(x, place, config)}.",
        f"Anchor minus score of one key for each row of a block: {data['share']:.1%} of the rows "
        f"lie above the line θ and want it, their mean is {data['mean']:.1f}. Rows asked: "
        f"{'; '.join(told)}.",
    )
    return data


def data_likeness(
    layers: Sequence[Captured], choices: Mapping[str, OutlierRows]
) -> dict[str, dict[str, Tensor]]:
    """By choice of rows: "among" and "nearest" of `Likeness`, of all heads, `[heads]`."""
    found = {}
    for name, method in choices.items():
        parts = [likeness(x.q, x.k, method, x.scaling) for x in layers]
        found[name] = {
            "among": torch.cat([part.among[0] for part in parts]),
            "nearest": torch.cat([part.nearest[0] for part in parts]),
        }
    return found


def data_spent(
    layers: Sequence[Captured], ways: Mapping[str, AnchorConfig]
) -> dict[str, dict[str, Tensor]]:
    """By way of choosing stripes: "density" and "recall" beyond of each head, `[heads]`."""
    found = {}
    for name, config in ways.items():
        parts = [spent(x.q, x.k, config, x.scaling) for x in layers]
        density, recall = (torch.cat([part[i][0] for part in parts]).double() for i in (0, 1))
        found[name] = {"density": density, "recall": recall}
    return found


def names(layers: Sequence[Captured]) -> list[str]:
    """Of all query heads of some layers, in the order of `data_spent`."""
    return [name_of(x, place) for x in layers for place in range(x.q.shape[1])]


def draw_spent(data: Mapping[str, Mapping[str, Tensor]], heads: Sequence[str], ax) -> None:
    """Where do the pairs go?"""
    colours = dict(zip(data, COLOURS, strict=True))
    beside = {"xycoords": ("axes fraction", "data")}
    for (name, of), shape in zip(data.items(), "os", strict=True):
        ax.scatter(of["density"], range(len(heads)), color=colours[name], marker=shape, s=30)
    for y, ends in enumerate(zip(*(of["density"].tolist() for of in data.values()), strict=True)):
        ax.plot(ends, [y, y], color=DIM, lw=0.8, zorder=0)
        for (name, of), across in zip(data.items(), (8, 40), strict=True):
            lost = f"{1 - float(of['recall'][y]):.3f}"
            label(ax, lost, (1, y), (across, 0), color=colours[name], size=8, **beside)
    label(ax, "mass lost", (1, -0.8), (8, 0), color=DIM, size=8, **beside)
    ax.set(xlim=(0.25, 1), ylim=(len(heads) - 0.5, -0.5), xlabel="share of the pairs kept")
    ax.set_yticks(range(len(heads)), heads)


def show_spent(data: Mapping[str, Mapping[str, Tensor]], layers: Sequence[Captured]) -> None:
    """The figure of `draw_spent`, with its words.

    Args:
        data: `data_spent` of two ways, the paper's first.
        layers: of the heads.
    """
    figure, ax = style.panels(size=(7.4, 3.5))
    draw_spent(data, names(layers), ax)
    means = [f"{name} {float(of['density'].mean()):.2f}" for name, of in data.items()]
    for (name, of), colour, up in zip(data.items(), COLOURS, (14, 2), strict=True):
        mean = float(of["density"].mean())
        words = f"{name}: {mean:.2f} of the pairs, {1 - float(of['recall'].mean()):.3f} lost"
        look = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
        ax.annotate(words, (1, 0), (-4, up), color=colour, size=8, **look)
    style.finish(
        figure,
        draw_spent.__doc__,
        f"{MODEL}, N = {layers[0].q.shape[2]}; mass lost: mean over the rows beyond the first "
        "group, in the colours of the marks.",
        f"Pairs kept by each of {len(names(layers))} heads, two marks a head. Means: "
        f"{' and '.join(means)}.",
    )


def draw_losses(curves: Mapping[str, Sequence[tuple[float, float]]], ax) -> None:
    """What does a model lose, by the pairs that it keeps?"""
    for name, points in curves.items():
        colour, mark, line = LOOKS[name]
        kept, lost = zip(*sorted(points), strict=True)
        open_marks = {"mfc": "white"} if name == "least like the mean" else {}
        ax.plot(kept, lost, color=colour, marker=mark, ls=line, ms=5, lw=1.2, **open_marks)
        up = 7 if lost[-1] < 0.01 else 0  # a name does not lie on the line at 0
        label(ax, name, (kept[-1], lost[-1]), (8, up), color=colour)
    ax.axhline(0, color=INK, lw=0.6)
    ax.set(xlim=(0.25, 0.7), xlabel="share of the pairs kept", ylabel="nats a token above dense")


def show_losses(curves: Mapping[str, Sequence[tuple[float, float]]], where: str) -> None:
    """The figure of `draw_losses`, with its words.

    Args:
        curves: by name, of `LOOKS`, (pairs kept, nats a token lost) of each configuration.
        where: of the measurement, for the small print.
    """
    figure, ax = style.panels(size=(7.2, 3.6))
    draw_losses(curves, ax)
    told = [
        f"{name} {lost:.3f} with {kept:.0%}"
        for name, points in curves.items()
        for kept, lost in [min(points, key=lambda point: abs(point[0] - 0.4))]
    ]
    style.finish(
        figure,
        draw_losses.__doc__,
        f"{where}; all but “{PAPER}” are extensions that the paper lacks.",
        "Loss above dense attention's against the share of the pairs kept. Nearest to two fifths "
        f"of the pairs: {'; '.join(told)}.",
    )
