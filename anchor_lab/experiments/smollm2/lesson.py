"""What notebook 13 shows of the real model's answers."""

from collections.abc import Sequence

from anchor_lab.analysis.intervals import wilson
from anchor_lab.drawing.style import INK, STRIPE, TAIL, finish, panels
from anchor_lab.experiments.page import spaced
from anchor_lab.experiments.smollm2.measure import WAYS
from anchor_lab.experiments.smollm2.page import answers

COLOURS = dict(zip(WAYS, (INK, STRIPE, TAIL), strict=True))


def data_answers(rows: Sequence[dict]) -> dict[int, dict[str, tuple[int, int]]]:
    """By length and way: answers found, and prompts asked."""
    return {
        length: {way: (right, count) for way, right in zip(WAYS, found, strict=True)}
        for length, count, found in answers(list(rows))
    }


def draw_answers(data: dict[int, dict[str, tuple[int, int]]], ax) -> None:
    """Does the model still answer?"""
    places, names = [], []
    for number, (length, ways) in enumerate(data.items()):
        for offset, (way, (right, count)) in enumerate(ways.items()):
            y = 4 * number + offset
            low, high = wilson(right / count, count)
            ax.plot([low, high], [y, y], color=COLOURS[way], lw=2)
            ax.plot(right / count, y, "o", color=COLOURS[way], ms=6)
            ax.text(1.02, y, f"{right} of {count}", va="center", color=COLOURS[way])
            places.append(y)
            names.append(f"{spaced(length)} tokens, {way}")
    ax.set_yticks(places, names)
    ax.set(xlim=(0, 1), xlabel="share of the answers found")
    ax.invert_yaxis()


def show_answers(data: dict[int, dict[str, tuple[int, int]]], where: str) -> None:
    """The figure of `draw_answers`, with its words."""
    figure, ax = panels(size=(7.2, 2.8))
    draw_answers(data, ax)
    finish(
        figure,
        draw_answers.__doc__,
        f"SmolLM2, {where}; θ = 12; lines: 95 % Wilson intervals.",
        "Shares of answers found, with intervals: "
        + "; ".join(
            f"{spaced(n)} tokens, "
            + ", ".join(f"{way} {x} of {y}" for way, (x, y) in ways.items())
            for n, ways in data.items()
        ),
    )
