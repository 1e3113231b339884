"""What is lost in how much time: the numbers of the page, and their picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from anchor_lab.drawing.style import ACCENT, INK, STRIPE, caption, use_style
from anchor_lab.experiments.equal_time.ways import DENSE, WAYS
from anchor_lab.experiments.outliers.figure import Lost, against, error_bars, saved_at

LOSSES, TIMES = "losses", "times"


@dataclass(frozen=True)
class Line(Lost):
    """A way at one length, over all texts that were read and timed so.

    Attributes:
        way: its name.
        published: is it the method of the paper?
        losses: see `Lost`.
        density: share of the causal pairs kept, mean over the texts.
        ms: of a layer, mean over layers and texts.
        of_dense: the same over dense attention's.
    """

    way: str
    published: bool
    losses: dict[str, list[float]]
    density: float
    ms: float
    of_dense: float


def data_lengths(rows: Sequence[dict]) -> list[int]:
    """The lengths at which losses and times were measured."""
    found = [{row["length"] for row in rows if row["part"] == part} for part in (LOSSES, TIMES)]
    return sorted(found[0] & found[1])


def data_lines(rows: Sequence[dict], length: int) -> list[Line]:
    """Every way but dense attention with all texts that dense attention read and was timed on."""
    found = {
        (row["part"], row["way"], row["text"]): row
        for row in rows
        if row["length"] == length and row["part"] in (LOSSES, TIMES)
    }
    texts = [
        text
        for part, way, text in found
        if (part, way) == (LOSSES, DENSE.name) and (TIMES, DENSE.name, text) in found
    ]
    lines = []
    for way in WAYS[1:]:
        of_way = [(found.get((part, way.name, t)), t) for part in (LOSSES, TIMES) for t in texts]
        if not texts or any(row is None for row, _ in of_way):
            continue  # a run that stopped before all texts were read
        read, timed = ({t: found[part, way.name, t] for t in texts} for part in (LOSSES, TIMES))
        dense, dense_timed = (
            {t: found[part, DENSE.name, t] for t in texts} for part in (LOSSES, TIMES)
        )
        ms = mean(mean(timed[t]["ms"]) for t in texts)
        lines.append(
            Line(
                way.name,
                way.published,
                against(read, dense),
                mean(read[t]["density"] for t in texts),
                ms,
                ms / mean(mean(dense_timed[t]["ms"]) for t in texts),
            )
        )
    return lines


def data_saved(line: Line, lines: Sequence[Line]) -> tuple[float, float, float] | None:
    """(saved, low, high) of the published method's loss in the same time, with a 95 % interval.

    None where the published method was measured with more time alone, or less.
    """
    return saved_at(line, [x for x in lines if x.published], lambda x: x.ms)


def draw_lines(lines: Sequence[Line], ax) -> None:
    """What is lost in so much time?"""
    by_head = [x for x in lines if x.way.endswith("by head")]
    rows = [x for x in lines if not x.published and x not in by_head]
    kinds = {
        "paper": ([x for x in lines if x.published], INK, "o-"),
        "extension: rows asked": (rows, STRIPE, "s"),
        "extension: thresholds by head": (by_head, ACCENT, "D"),
    }  # fmt: skip
    for label, (some, colour, mark) in kinds.items():
        some = sorted(some, key=lambda x: x.of_dense)
        if not some:
            continue
        ax.errorbar(
            [x.of_dense for x in some],
            [x.lost for x in some],
            error_bars(some),
            fmt=mark,
            color=colour,
            ms=5,
            lw=1,
            label=label,
        )
        for x in some if label != "paper" else ():
            # Those that follow each other closely: one above its point, the next one below.
            above = 5 if some.index(x) % 2 == 0 else -11
            name = x.way.removesuffix(", by head")
            at = (x.of_dense, x.lost)
            ax.annotate(name, at, (6, above), textcoords="offset points", fontsize=7)
    ax.axhline(0, color=INK, lw=0.6)
    ax.set(
        xlabel="time of a layer's attention, of dense attention's",
        ylabel="loss − dense, nats a token",
    )
    ax.legend(fontsize=8)


def draw(results: dict):
    """One panel for each length."""
    from matplotlib import pyplot as plt

    use_style()
    lengths = data_lengths(results["rows"])
    count = max(1, len(lengths))
    figure, axes = plt.subplots(1, count, figsize=(6 * count, 5), squeeze=False)
    for n, ax in zip(lengths, axes[0], strict=False):
        draw_lines(data_lines(results["rows"], n), ax)
        ax.set_title(f"{draw_lines.__doc__} {n} tokens")
    about = results["settings"]
    caption(
        figure,
        f"{about['model']}, {about['device']}, {about['dtype']}, no tail; rows beyond the first "
        "group, mean over texts, 95 % intervals.\nAll but 'paper' are extensions that the paper "
        "lacks.",
    )
    return figure
