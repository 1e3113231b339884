"""What grows with the length: curves of density, recall, error, loss and time."""

from collections.abc import Callable, Sequence
from statistics import mean

from anchor_lab.drawing.style import ACCENT, INK, MUTED, STRIPE, TAIL, WINDOW, caption, use_style
from anchor_lab.experiments.lengths.prefills import CUDNN, OURS, SDPA

MEASURES = ("density", "recall", "recall_p10", "error")
SHOWN = (6, 9, 12, 14)  # θ, of the curves
COLOURS = dict(zip(SHOWN, (WINDOW, ACCENT, STRIPE, INK), strict=True))
LOOKS = {SDPA: (INK, "-"), CUDNN: (MUTED, "--"), OURS: (STRIPE, "-")}
TEXT_COLOURS = (ACCENT, STRIPE, TAIL)


def data_heads(rows: Sequence[dict], thetas: Sequence) -> dict[int, dict]:
    """By length what the heads keep and lose, means over texts and layers.

    Texts that are too short for one of the lengths are in none, or a curve would change its text.

    Args:
        rows: of a store.
        thetas: of its settings; None stands for no stripes.

    Returns:
        {length: {"floor", "texts", "layers", "thetas": {θ: {measure: mean, "recall_least",
        "density_most", "error_most": of all heads}}}}. Of a length the layers count that every
        text there has.
    """
    there: dict[int, dict[str, dict[int, dict]]] = {}
    for row in rows:
        if row["part"] == "heads":
            texts = there.setdefault(row["length"], {})
            texts.setdefault(row["text"], {})[row["layer"]] = row
    common = [
        text for text in next(iter(there.values()), {}) if all(text in x for x in there.values())
    ]
    found = {}
    for n, by_text in sorted(there.items()):
        layers = set.intersection(*(set(by_text[text]) for text in common)) if common else set()
        if not layers:
            continue
        cells = [by_text[text][layer] for text in common for layer in sorted(layers)]
        found[n] = {
            "floor": cells[0]["floor"],
            "texts": common,
            "layers": len(layers),
            "thetas": {
                theta: {
                    **{name: mean(cell[name][place] for cell in cells) for name in MEASURES},
                    "recall_least": min(cell["recall_least"][place] for cell in cells),
                    "density_most": max(cell["density_most"][place] for cell in cells),
                    "error_most": max(cell["error_most"][place] for cell in cells),
                }
                for place, theta in enumerate(thetas)
            },
        }
    return found


def data_texts(rows: Sequence[dict], thetas: Sequence, theta: float) -> dict[int, dict[str, dict]]:
    """By length and text each of `MEASURES` at one threshold, mean over the layers there are."""
    place = list(thetas).index(theta)
    groups: dict[int, dict[str, list[dict]]] = {}
    for row in rows:
        if row["part"] == "heads":
            groups.setdefault(row["length"], {}).setdefault(row["text"], []).append(row)
    return {
        n: {
            text: {name: mean(row[name][place] for row in own) for name in MEASURES}
            for text, own in texts.items()
        }
        for n, texts in sorted(groups.items())
    }


def data_reads(rows: Sequence[dict]) -> dict[int, dict[str, dict]]:
    """By length and text the losses "whole" and "pieces"."""
    found: dict[int, dict[str, dict]] = {}
    for row in rows:
        if row["part"] == "reads":
            found.setdefault(row["length"], {})[row["text"]] = row
    return dict(sorted(found.items()))


def data_worse(rows: Sequence[dict]) -> dict[int, list[str]]:
    """By length the texts that are read worse at once than in pieces, over all eighths.

    There the model makes nothing of the tokens far before.
    """
    found = {
        n: [
            text
            for text, row in by_text.items()
            if row["pieces"] is not None and sum(row["whole"]) > sum(row["pieces"])
        ]
        for n, by_text in data_reads(rows).items()
    }
    return {n: texts for n, texts in found.items() if texts}


def data_times(rows: Sequence[dict]) -> dict[int, dict[str, dict]]:
    """By length and way the rows of the times that ran."""
    found: dict[int, dict[str, dict]] = {}
    for row in rows:
        if row["part"] == "times" and row["status"] == "ok":
            found.setdefault(row["length"], {})[row["way"]] = row
    return dict(sorted(found.items()))


def _lengths(ax, lengths: Sequence[int]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(list(lengths), [f"{n / 1024:g}k" for n in lengths])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("N, tokens")


def _in_words(ax, say: Callable[[float], str]) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: say(x)))
    ax.yaxis.set_minor_formatter(lambda *_: "")


def _curves(found: dict[int, dict], ax, name: str, line: str, label: bool) -> None:
    for theta, colour in COLOURS.items():
        points = [(n, x["thetas"][theta][name]) for n, x in found.items() if theta in x["thetas"]]
        ax.plot(
            *zip(*points, strict=True),
            line,
            color=colour,
            marker="o",
            ms=3,
            label=f"θ = {theta}" if label else None,
        )


def draw_density(found: dict[int, dict], ax) -> None:
    """Which share of the pairs is kept?"""
    _curves(found, ax, "density", "-", label=True)
    ax.plot(
        list(found),
        [x["floor"] for x in found.values()],
        ":",
        color=MUTED,
        label="no stripes",
    )
    ax.set(yscale="log", ylabel="pairs kept, of all causal pairs")
    _in_words(ax, lambda share: f"{100 * share:g} %")
    _lengths(ax, list(found))
    ax.legend(loc="lower left")


def draw_recall(found: dict[int, dict], ax) -> None:
    """How much of the attention is found?"""
    _curves(found, ax, "recall", "-", label=True)
    _curves(found, ax, "recall_p10", ":", label=False)
    ax.set(ylabel="recall beyond; dotted: 10th percentile of rows")
    _lengths(ax, list(found))


def draw_error(found: dict[int, dict], ax) -> None:
    """How far off is the output?"""
    _curves(found, ax, "error", "-", label=True)
    ax.set(ylabel="output error beyond the first group", ylim=(0, None))
    _lengths(ax, list(found))


def draw_reads(by_text: dict[str, dict], n: int, ax) -> None:
    """Does the model still read?"""
    for (text, row), colour in zip(by_text.items(), TEXT_COLOURS, strict=False):
        place = [(part + 0.5) / len(row["whole"]) * n for part in range(len(row["whole"]))]
        ax.plot(place, row["whole"], "-", color=colour, marker="o", ms=3, label=text)
        if row["pieces"] is not None:
            ax.plot(place, row["pieces"], ":", color=colour)
    ax.set(xlabel="token", ylabel="dense loss, nats a token; dotted: in pieces", ylim=(0, None))
    ax.set_title(f"{draw_reads.__doc__} {n} tokens")
    ax.legend(loc="lower left")


def draw_times(times: dict[int, dict[str, dict]], ax) -> None:
    """How long is a prefill?"""
    for way, (colour, line) in LOOKS.items():
        points = [(n, x[way]["whole_ms"]["median"]) for n, x in times.items() if way in x]
        if points:
            ax.plot(*zip(*points, strict=True), line, color=colour, marker="o", ms=3, label=way)
    ax.set(yscale="log", ylabel="ms a prefill")
    _in_words(ax, lambda ms: f"{ms:g}")
    _lengths(ax, list(times))
    ax.legend(loc="upper left")


def draw_shares(times: dict[int, dict[str, dict]], ax) -> None:
    """How much of it passes in attention?"""
    for way, (colour, line) in LOOKS.items():
        points = [(n, x[way]["share"]) for n, x in times.items() if way in x]
        if points:
            ax.plot(*zip(*points, strict=True), line, color=colour, marker="o", ms=3, label=way)
    ax.set(ylabel="between attention's marks, waiting included", ylim=(0, 1))
    _lengths(ax, list(times))


def draw(results: dict):
    """What was measured: heads in the upper row, loss and times in the lower."""
    from matplotlib import pyplot as plt

    use_style()
    rows, about = results["rows"], results["settings"]
    found = data_heads(rows, about["thetas"])
    reads, times = data_reads(rows), data_times(rows)
    panels = []
    if found:
        panels += [
            (lambda ax, one=one: (one(found, ax), ax.set_title(one.__doc__)))
            for one in (draw_density, draw_recall, draw_error)
        ]
    if reads:
        panels.append(lambda ax: draw_reads(reads[max(reads)], max(reads), ax))
    if times:
        panels += [
            (lambda ax, one=one: (one(times, ax), ax.set_title(one.__doc__)))
            for one in (draw_times, draw_shares)
        ]
    lines = max(1, -(-len(panels) // 3))
    figure, axes = plt.subplots(lines, 3, figsize=(13, 4.2 * lines), squeeze=False)
    for panel, ax in zip(panels, axes.flat, strict=False):
        panel(ax)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    caption(
        figure,
        f"{about['model']}, {about['device']}, torch {about['torch']}, {about['dtype']}. Heads: "
        "groups of 2048, no tail, means over heads, layers and texts. Longer than trained for: "
        "by YaRN.",
    )
    return figure
