"""What is lost by how many pairs: the numbers of the page, and their picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from anchor_lab.analysis.intervals import bootstrap
from anchor_lab.drawing.style import ACCENT, INK, STRIPE, caption, use_style
from anchor_lab.experiments.outliers.variants import CALIBRATED, FIXED

DENSE, PAPER = "dense", "paper"
PARTS = (*FIXED, CALIBRATED)


class Lost:
    """What a way to choose stripes loses against dense attention.

    Attributes:
        losses: by text, what each run of tokens lost, nats a token.
    """

    losses: dict[str, list[float]]

    @property
    def lost(self) -> float:
        """Mean over the texts, nats a token."""
        return _mean([_mean(runs) for runs in self.losses.values()])

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `lost` over the runs of each text."""
        return bootstrap(list(self.losses.values()))


def against(own: dict[str, dict], dense: dict[str, dict]) -> dict[str, list[float]]:
    """`Lost.losses` of the rows of a way, given those of dense attention, both by text."""
    return {
        text: [a - b for a, b in zip(row["losses"], dense[text]["losses"], strict=True)]
        for text, row in own.items()
    }


@dataclass(frozen=True)
class Line(Lost):
    """A variant at one length, over all texts that it and dense attention read.

    Attributes:
        part, variant: as in the experiment.
        losses: see `Lost`.
        density, recall, cost: means over the texts; shares, see the experiment.
    """

    part: str
    variant: str
    losses: dict[str, list[float]]
    density: float
    recall: float
    cost: float

    @property
    def pairs(self) -> float:
        """What is spent: pairs kept, and those scored to choose."""
        return self.density + self.cost


def data_lines(rows: Sequence[dict], length: int) -> list[Line]:
    """Every variant at one length, in the order of `PARTS`; texts that all of them read count."""
    found: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows:
        if row["length"] == length and row["part"] in (DENSE, *PARTS):
            found.setdefault((row["part"], row["variant"]), {})[row["text"]] = row
    dense = found.pop((DENSE, DENSE), {})
    lines = []
    for (part, variant), by_text in sorted(found.items(), key=lambda item: _place(item[0][0])):
        texts = [text for text in dense if text in by_text]
        if len(texts) < len(dense):
            continue  # a run that stopped before all texts were read
        losses = against({text: by_text[text] for text in texts}, dense)
        means = {
            name: _mean([by_text[text][name] for text in texts])
            for name in ("density", "recall", "cost")
        }
        lines.append(Line(part, variant, losses, **means))
    return lines


def data_lengths(rows: Sequence[dict]) -> list[int]:
    """The lengths at which texts were read densely and in another way."""
    read = {
        part: {row["length"] for row in rows if row["part"] == part} for part in (DENSE, *PARTS)
    }
    return sorted(read[DENSE] & set().union(*(read[part] for part in PARTS)))


def data_saved(line: Line, lines: Sequence[Line]) -> tuple[float, float, float] | None:
    """What a variant saves of the loss that the method as published has with as many pairs.

    Between two of its thresholds the published method's loss is taken to be linear in the pairs
    that it spends, run by run, so that both are compared on the same tokens.

    Returns:
        (saved, low, high) in nats a token, with its 95 % interval; None where the published method
        was measured with more pairs alone, or fewer.
    """
    return saved_at(line, [x for x in lines if x.part == PAPER], lambda x: x.pairs)


def saved_at(
    line: Lost, published: Sequence[Lost], spent: Callable[[Lost], float]
) -> tuple[float, float, float] | None:
    """(saved, low, high) beside the published method where it spends as much, see `data_saved`.

    Args:
        line: what saves.
        published: the method at several θ.
        spent: by what they are compared.
    """
    at = spent(line)
    for less, more in pairwise(sorted(published, key=spent)):
        low, high = spent(less), spent(more)
        if low <= at <= high and low < high:
            share = (at - low) / (high - low)
            saved = [
                [
                    (1 - share) * a + share * b - own
                    for a, b, own in zip(less.losses[text], more.losses[text], runs, strict=True)
                ]
                for text, runs in line.losses.items()
            ]
            return (_mean([_mean(runs) for runs in saved]), *bootstrap(saved))
    return None


def error_bars(lines: Sequence[Lost]) -> list[list[float]]:
    """Lengths below and above, as matplotlib takes them, of the intervals of some lines."""
    ends = [(x.lost - x.interval[0], x.interval[1] - x.lost) for x in lines]
    # A percentile interval may lie to one side of the mean.
    return [[max(0.0, end) for end in side] for side in zip(*ends, strict=True)]


def draw_lines(lines: Sequence[Line], ax) -> None:
    """What is lost with so many pairs?"""
    marks = dict(zip(PARTS, "osvdXD^<>P", strict=True))
    colours = {"paper": INK, "rows": STRIPE}
    for part in PARTS:
        of_part = sorted((x for x in lines if x.part == part), key=lambda x: x.pairs)
        if not of_part:
            continue
        ax.errorbar(
            [x.pairs for x in of_part],
            [x.lost for x in of_part],
            error_bars(of_part),
            fmt=marks[part] + ("-" if part == PAPER else ""),
            color=colours.get(part, ACCENT),
            mfc=colours.get(part, "white"),
            ms=5,
            lw=1,
            label=part if part == PAPER else f"extension: {part}",
        )
    ax.axhline(0, color=INK, lw=0.6)
    ax.set(
        xlabel="pairs kept and scored, of all causal pairs", ylabel="loss − dense, nats a token"
    )
    ax.legend(loc="upper right", fontsize=8)


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
        f"{about['model']}, {about['device']}, float32, no tail; rows beyond the first group,\n"
        "mean over texts, 95 % intervals. All but 'paper' are extensions that the paper lacks.",
    )
    return figure


def _place(part: str) -> int:
    return PARTS.index(part)


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
