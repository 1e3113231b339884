"""Figures of the six tokens, whose every number fits on the screen."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anchor_lab.drawing import style, tokens
from anchor_ref.config import AnchorConfig
from anchor_ref.plan import StripePlan


def show_row(scores: Float[Tensor, "N"], words: Sequence[str], query: str) -> None:
    """How does a score become a weight?"""
    data = tokens.data_row(scores, words)
    figure, axes = style.panels(1, 2, (7, 2.6))
    tokens.draw_row(data, axes)
    pairs = zip(words, data["score"].tolist(), data["weight"].tolist(), strict=True)
    told = ", ".join(f"{word} {score:.0f} and {weight:.3f}" for word, score, weight in pairs)
    style.finish(
        figure,
        show_row.__doc__,
        f'The query "{query}" of six hand-typed tokens.',
        f"Two bar charts, the score of each key and the weight that becomes of it: {told}.",
    )


def show_tables(
    tables: Mapping[str, Float[Tensor, "N N"]],
    words: Sequence[str],
    small_print: str,
    hidden: Bool[Tensor, "N N"] | None = None,
    boxed: Bool[Tensor, "N N"] | None = None,
    form: str = "{:.0f}",
) -> None:
    """Numbers of query against key, one table for each question.

    Args:
        tables: by the question that each answers.
        words: the tokens.
        small_print: of the figure.
        hidden: entries of the first table left blank; None means those of later keys.
        boxed: entries of the last table with a box around them.
        form: of a number; weights, which are below 1, always have two decimals.
    """
    wide = max(5.0, 3.9 * len(tables) + 0.4)  # a single title needs more than its table
    figure, axes = style.panels(1, len(tables), (wide, 3.7), squeeze=False)
    told, last = [], len(tables) - 1
    for place, (ax, (asked, values)) in enumerate(zip(axes[0], tables.items(), strict=True)):
        data = tokens.data_numbers(
            values, words, hidden if place == 0 else None, boxed if place == last else None
        )
        shown = values[~data["hidden"] & values.isfinite()]
        weights = bool((shown >= 0).all() and (shown <= 1).all() and shown.frac().any())
        tokens.draw_numbers(data, ax, "{:.2f}" if weights else form)
        ax.set_title(asked)
        told.append(f"{asked} {_told(data, boxed is not None and place == last)}")
    style.caption(figure, small_print)
    style.show(figure, f"Tables of query against key. {' '.join(told)}")


def _told(data: Mapping, boxed: bool) -> str:
    """The boxed entries of a table in words, or else each row's largest."""
    values, words = data["values"], data["words"]
    if boxed:
        places = data["boxed"].nonzero().tolist()
    else:
        seen = values.masked_fill(data["hidden"], -torch.inf)
        rows = [i for i in range(len(words)) if seen[i].isfinite().any()]
        places = [(i, int(seen[i].argmax())) for i in rows]
    what = "Boxed: " if boxed else "The largest of each row: "
    entries = [f"{words[j]} for {words[i]}, {float(values[i, j]):.3g}" for i, j in places]
    return f"{what}{'; '.join(entries)}."


def show_kinds(
    words: Sequence[str], config: AnchorConfig, stripes: StripePlan | None = None
) -> dict:
    """Which region does each pair belong to?"""
    data = tokens.data_kinds(words, config, stripes)
    figure, ax = style.panels(size=(5.6, 3.6))
    tokens.draw_kinds(data, ax)
    rows = zip(words, data["kind"], strict=True)
    told = "; ".join(f"{word}: {' '.join(kinds.strip())}" for word, kinds in rows)
    sizes = f"blocks of {config.block_size}, groups of {config.group_size} queries, with lines"
    style.finish(
        figure,
        "Which region does each pair belong to?" if stripes is None else "What is computed?",
        f"Head 0; {sizes} between." + (f" θ = {config.theta:g}." if stripes is not None else ""),
        "A triangle of letters, I initial region, W window, C candidate, S stripe, a dot skipped. "
        f"{told}.",
    )
    return data
