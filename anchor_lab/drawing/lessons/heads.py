"""Figures of real heads: where they look, what is kept of it, and what that loses."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing import gallery, maps, stages, style
from anchor_lab.drawing.lessons.place import name_of, small_print
from anchor_models.capture import Captured
from anchor_models.heads import BundledHeads
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import Measurement, rows_beyond
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups

PIXELS = 128  # to a side of a small map
WIDTH = 9.6  # of a figure, at most, inches
LAYERS = "application/vnd.anchor-ref.layers+json"  # kind of the table that `make tour` reads
FIRST_ROW, ROW_STEP = 2048, 16  # rows whose mass is told in words: those with keys far away


def show_maps(
    heads: Sequence[tuple[Captured, int]], kinds: Sequence[str] = (), columns: int = 2
) -> dict[str, dict[str, Tensor]]:
    """Where do these heads look?

    Args:
        heads: layer and place of the query head in it.
        kinds: what each of them is, for its title.
        columns: maps in a row.

    Returns:
        `maps.data_attention_map` of each, by name, with "sink", "window" and "stripes" as in
        `gallery.data_profile`.
    """
    shown = {
        name_of(x, place): maps.data_attention_map(
            x.q[0, place], x.k[0, 0], x.scaling, pixels=PIXELS
        )
        for x, place in heads
    }
    rows, wide = -(-len(shown) // columns), min(4.1, WIDTH / columns)
    figure, axes = style.panels(
        2 * rows,
        columns,
        (wide * columns, 1.08 * wide * rows),
        height_ratios=[1, 5] * rows,
        squeeze=False,
    )
    kinds = kinds or [""] * len(shown)
    titled = {
        f"{kind}: {name}".removeprefix(": ").capitalize(): data
        for kind, (name, data) in zip(kinds, shown.items(), strict=True)
    }
    strips, below = axes[::2].flatten(), axes[1::2].flatten()
    gallery.draw_maps(titled, below[: len(shown)], strips[: len(shown)])
    for ax in [*strips[len(shown) :], *below[len(shown) :]]:
        ax.set_axis_off()
    for (x, place), data in zip(heads, shown.values(), strict=True):
        rows = torch.arange(FIRST_ROW, x.q.shape[2], ROW_STEP)
        profile = gallery.data_profile(x.q[0], x.k[0], x.scaling, rows)
        data |= {kind: float(profile[kind][place]) for kind in ("sink", "window", "stripes")}
    cell = int(next(iter(shown.values()))["cell"])
    words = "; ".join(f"{name}: {_in_words(data)}" for name, data in shown.items())
    style.finish(
        figure,
        show_maps.__doc__.splitlines()[0],
        f"Largest weight in each {cell} x {cell} cell, above it the mean mass on {cell} keys; "
        f"SmolLM2, N = {heads[0][0].q.shape[2]}.",
        f"Attention maps of real heads, a strip of mass above each. {words}.",
    )
    return shown


def _in_words(data: Mapping[str, Tensor | float]) -> str:
    return (
        f"{data['sink']:.0%} of the mass lies on the first key, {data['window']:.0%} on the 128 "
        f"nearest, {data['stripes']:.0%} on the best 1 % of the keys between"
    )


def show_anchor_gap(x: Captured, place: int, anchor: Float[Tensor, "N"]) -> dict[str, Tensor]:
    """How near is the anchor to the row's true maximum?"""
    data = stages.data_anchor_gap(x.q[0, place], x.k[0, 0], anchor, x.scaling)
    figure, ax = style.panels(size=(7, 2.6))
    stages.draw_anchor_gap(data, ax)
    exact = float((data["gap"] < 1e-4).double().mean())
    style.finish(
        figure,
        show_anchor_gap.__doc__,
        f"Every query; natural-log units. {small_print(x, place)}.",
        f"How far each row's anchor lies below its true maximum: {exact:.0%} of the rows lie at "
        f"0, the others up to {float(data['gap'].max()):.1f} below.",
    )
    return data


def show_difference(
    x: Captured, place: int, anchor: Float[Tensor, "N"], config: AnchorConfig
) -> dict[str, Tensor]:
    """Which keys come within θ of the anchor?

    Of the last group; x is cut to one head by `place`.
    """
    last = len(groups(config, x.q.shape[2], x.k.shape[2])) - 1
    data = stages.data_difference(x.q[0, place], x.k[0, 0], anchor, config, last, x.scaling)
    figure, ax = style.panels(size=(7, 3))
    stages.draw_difference(data, ax)
    kept = int((data["difference"] <= config.theta).sum())
    style.finish(
        figure,
        "Which keys come within θ of the anchor?",
        f"Candidates of the last group, which see all of the text; {small_print(x, place)}.",
        f"One dot for each candidate: anchor minus score of its best block, by key position. "
        f"{kept} of {len(data['key'])} dots lie above the line θ = {config.theta:g} and are kept.",
    )
    return data


def show_kept(x: Captured, place: int, stripes: StripePlan, config: AnchorConfig) -> None:
    """Which keys does each query keep?"""
    figure, ax = style.panels(size=(5.4, 5.4))
    n = x.q.shape[2]
    data = maps.data_kept_map(stripes, place, config, n)
    maps.draw_kept_map(data, ax)
    counts = ", ".join(str(len(keys)) for keys in data["keys"])
    rows = " The last rows see every key." if config.tail else ""
    style.finish(
        figure,
        show_kept.__doc__,
        "A thin line is one selected key, drawn wider than it is: the density is less than it "
        f"seems.\n{small_print(x, place, config)}.",
        f"A triangle in {len(data['groups'])} groups. Kept: the first keys, a triangular window "
        f"in each group, and thin vertical lines, the stripes: {counts} of them by group. The "
        f"rest is grey.{rows}",
    )


def show_recall(
    x: Captured, place: int, kept: Float[Tensor, "N"], config: AnchorConfig
) -> dict[str, Tensor]:
    """How much of each row's attention mass is kept?"""
    data = stages.data_recall(kept)
    figure, ax = style.panels(size=(7, 2.6))
    stages.draw_recall(data, ax)
    style.finish(
        figure,
        show_recall.__doc__,
        f"Rows in blocks of 128; {small_print(x, place, config)}.",
        f"Recall along the sequence, median and 10th percentile of each block of rows: the lowest "
        f"median is {float(data['median'].min()):.2f}, the lowest 10th percentile "
        f"{float(data['p10'].min()):.2f}.",
    )
    return data


def layers_table(
    bundled: BundledHeads, found: Mapping[int, Measurement], config: AnchorConfig
) -> list[dict[str, int | float]]:
    """What each layer's heads keep and lose, as a table; `make tour` reads the same numbers.

    Args:
        bundled: whose text was read.
        found: by layer what `measure` found.
        config: with which.

    Returns:
        By layer the means over its heads of recall_mean, recall_p10 and recall_min of the rows
        beyond the first group, of density and of output_error; seconds, that it took.
    """
    from IPython import get_ipython
    from IPython.display import display

    n = len(bundled.words)
    beyond = rows_beyond(config, n, n)
    rows = [
        {
            "layer": layer,
            **{
                f"recall_{name}": float(m.mean()) for name, m in one.recall_summary(beyond).items()
            },
            "density": float(one.density.mean()),
            "output_error": float(one.output_error.mean()),
            "seconds": one.seconds,
        }
        for layer, one in found.items()
    ]
    names = ("layer", "recall_mean", "recall_p10", "recall_min", "density", "output_error")
    lines = ["  ".join(f"{name:>12}" for name in names)]
    lines += ["  ".join(f"{round(row[name], 3):>12}" for name in names) for row in rows]
    heads = sum(len(x.query_heads) for x in bundled.captured.values())
    model = (
        f"SmolLM2-135M-Instruct, {heads} of its {len(bundled.heads)} heads, θ = {config.theta:g}"
    )
    table = {"model": model, "tokens": n, "layers": rows}
    if get_ipython() is None:  # plain Python, where `display` prints the dictionary
        print("\n".join(lines))
    else:
        display({LAYERS: table, "text/plain": "\n".join(lines)}, raw=True)
    return rows


def show_all_heads(bundled: BundledHeads, theta: float) -> list[list[float]]:
    """How many of the pairs does each head need?

    All heads of the model on the bundled text, as they were measured when the capture was made.

    Returns:
        Density by layer and head.
    """
    import seaborn as sns

    layers = sorted({head["layer"] for head in bundled.heads})
    density = [
        [head[f"density {theta:g}"] for head in bundled.heads if head["layer"] == layer]
        for layer in layers
    ]
    figure, ax = style.panels(size=(5.4, 5.4))
    look = {"vmin": 0, "vmax": 1, "linewidths": 0.4, "linecolor": "white", "yticklabels": 2}
    bar = {"label": "pairs kept"}
    sns.heatmap(density, ax=ax, cmap=style.MAGNITUDE, cbar_kws=bar, **look)
    ax.tick_params(axis="y", rotation=0)
    ax.set(xlabel="query head", ylabel="layer")
    flat = torch.tensor(density).flatten()
    few, most = int((flat < 1 / 3).sum()), int((flat > 0.9).sum())
    ax.set_title("How many of the pairs does each head need?")
    style.caption(
        figure, f"All {len(flat)} heads of SmolLM2, N = {len(bundled.words)}, θ = {theta:g}."
    )
    style.show(
        figure,
        f"Share of the pairs kept, by layer and head: under a third in {few} of {len(flat)} "
        f"heads, over nine tenths in {most}.",
    )
    return density
