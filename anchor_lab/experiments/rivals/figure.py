"""Who needs how many pairs for a recall: curves, and what .95, .98 and .99 cost."""

from collections.abc import Sequence
from math import isnan

from anchor_lab.drawing.style import DIM, INK, STRIPE, caption, question, use_style
from anchor_lab.experiments.compare.equal import BUDGETS, at_equal, budget_for
from anchor_lab.experiments.compare.figure import FAINT, LABELS, NAMES, ORACLES, OURS, colour_of

RECALLS = (0.95, 0.98, 0.99)
NAMED = 3  # other methods that the curves name
ALL_TEXTS = "all"


def data_curves(rows: Sequence[dict], length: int, text: str | None = None):
    """Means over heads, layers and texts, as `compare.equal` reads them.

    Args:
        rows: of the table.
        length: N.
        text: one of the texts; None for all.

    Returns:
        A pandas frame, a line for each method and configuration that was measured wherever any
        was; "text" is `text` or "all", "cells" how many layers and texts a line is the mean of.
    """
    import pandas as pd

    from anchor_lab.experiments.rivals.measure import MEASURES

    frame = pd.DataFrame(rows)
    frame = frame[frame["length"] == length]
    if text is not None:
        frame = frame[frame["text"] == text]
    every = len(frame[["text", "layer"]].drop_duplicates())
    groups = frame.groupby(["method", "configuration"], sort=False)
    means = groups[list(MEASURES)].mean()
    means.insert(0, "cells", groups.size())
    means = means[means["cells"] == every].reset_index()
    means.insert(0, "text", text or ALL_TEXTS)
    return means.sort_values(["method", "density"], kind="stable", ignore_index=True)


def data_lengths(rows: Sequence[dict]) -> list[int]:
    """The lengths there are."""
    return sorted({row["length"] for row in rows})


def data_needed(curves, budget: str) -> dict[str, list[float]]:
    """What each method spends for each of `RECALLS`; NaN beyond the end of its sweep.

    Returns:
        By method, those first that need least for the first recall, and last who was not swept to
        it.
    """
    found = [budget_for(curves, budget, recall) for recall in RECALLS]
    return {name: [float(one[name]) for one in found] for name in found[0].index}


def data_ends(curves) -> dict[str, tuple[float, float]]:
    """Where sweeps end: largest mean recall, and the pairs that it costs, by method."""
    best = curves.loc[curves.groupby("method", sort=False)["recall_mean"].idxmax()]
    values = zip(best["recall_mean"], best["density"], strict=True)
    return dict(zip(best["method"], ((float(a), float(b)) for a, b in values), strict=True))


def data_reached(curves, budget: str, level: float) -> dict[str, tuple[float, float]]:
    """Mean recall and 10th percentile of rows of each method for one budget, largest first."""
    mean = at_equal(curves, budget, level)
    p10 = at_equal(curves, budget, level, "recall_p10")
    return {name: (float(mean[name]), float(p10[name])) for name in mean.index}


def draw_curves(curves, ax) -> None:
    """How much is found with so many pairs?"""
    others = [
        name
        for name in data_needed(curves, "density")
        if name not in ORACLES and name not in (OURS, "Dense")
    ]
    for name, part in curves.groupby("method"):
        part = part.sort_values("density", kind="stable")
        named = name == OURS or name in others[:NAMED]
        ax.plot(
            part["density"],
            part["recall_mean"],
            color=colour_of(name) if named else FAINT,
            lw=1.8 if name == OURS else 1.2 if named else 0.7,
            marker="o" if named else None,
            ms=3,
            ls="-" if name == OURS or not named else ("--", "-.", ":")[others.index(name)],
            zorder=3 if named else 1,
            label=name if named else None,
        )
    ax.set(xlabel="pairs kept, of all causal pairs", ylabel="recall beyond", ylim=(0.7, 1.003))
    ax.legend(loc="lower right", title="ours, and who needs least for .95", title_fontsize=8)


def draw_needed(needed: dict[str, list[float]], ax, budget: str) -> None:
    """What does a recall of .95 (full), .98 and .99 (open) cost?"""
    names = list(needed)
    for place, name in enumerate(names):
        spent, colour = [x for x in needed[name] if not isnan(x)], colour_of(name)
        if not spent:
            ax.text(0.02, place, "ends below .95", color=DIM, va="center", size=8,
                    transform=ax.get_yaxis_transform())  # fmt: skip
            continue
        ax.plot([spent[0], spent[-1]], [place, place], color=colour, lw=1, alpha=0.5)
        ax.plot(spent[1:], [place] * len(spent[1:]), "o", color=colour, mfc="white", ms=4)
        ax.plot(spent[:1], [place], "o", color=colour, ms=5)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    for tick, name in zip(ax.get_yticklabels(), names, strict=True):
        tick.set_color(STRIPE if name == OURS else INK)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlabel=LABELS[budget])
    ax.set_xlim(left=0)
    ax.grid(axis="y", color="#EEEEEE", zorder=0)


def draw(results: dict):
    """A row of panels for each length: curves, then each budget."""
    from matplotlib import pyplot as plt

    use_style()
    rows, about = results["rows"], results["settings"]
    lengths = data_lengths(rows)
    frames = [data_curves(rows, n) for n in lengths]
    high = 1.2 + 0.19 * max(frame["method"].nunique() for frame in frames)
    figure, axes = plt.subplots(len(lengths), 4, figsize=(15, high * len(lengths)), squeeze=False)
    for n, frame, line in zip(lengths, frames, axes, strict=True):
        draw_curves(frame, line[0])
        line[0].set_title(f"{n} tokens", fontsize=9)
        for budget, ax in zip(BUDGETS, line[1:], strict=True):
            draw_needed(data_needed(frame, budget), ax, budget)
            ax.set_title(NAMES[budget], fontsize=9)
    question(figure, "How many pairs does recall cost?")
    caption(
        figure,
        f"{about['model']}, {about['device']}; means over heads, layers and texts, no tail. "
        "Right: what a recall beyond the first group of .95 (full), .98 and .99 (open) costs.\n"
        "Red: AnchorAttention and its variants, blue: other methods, black: oracles, which save "
        "nothing.",
    )
    return figure
