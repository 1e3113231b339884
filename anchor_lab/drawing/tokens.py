"""Figures of the six tokens: small enough that every number is written in its cell."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anchor_lab.drawing.shapes import bars, box, name_words
from anchor_lab.drawing.style import (
    ACCENT,
    INIT,
    INK,
    MAGNITUDE,
    MUTED,
    SKIPPED,
    STRIPE,
    WINDOW,
)
from anchor_ref.config import AnchorConfig
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups

# What a pair of query and key may be; the letters say what the colours say.
KINDS = {
    "I": ("initial region", INIT),
    "W": ("window", WINDOW),
    "C": ("candidate", "white"),
    "S": ("stripe", STRIPE),
    "·": ("skipped", SKIPPED),
}


def data_numbers(
    values: Float[Tensor, "N N"],
    words: Sequence[str],
    hidden: Bool[Tensor, "N N"] | None = None,
    boxed: Bool[Tensor, "N N"] | None = None,
) -> dict:
    """A table of query against key.

    Args:
        values: a number for each pair, row = query.
        words: the tokens.
        hidden: pairs that are left blank; None means those whose key is later than the query.
        boxed: pairs with a box around them; None means none.

    Returns:
        values, hidden, boxed: `[N, N]`; words.
    """
    n = len(words)
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    return {
        "values": values,
        "hidden": later if hidden is None else hidden,
        "boxed": torch.zeros_like(later) if boxed is None else boxed,
        "words": tuple(words),
    }


def draw_numbers(data: dict, ax, form: str = "{:.2f}") -> None:
    """What does each query give to each key?"""
    values, hidden = data["values"], data["hidden"] | ~data["values"].isfinite()
    numbers = [[form.format(value).replace("-", "−") for value in row] for row in values.tolist()]
    _draw_table(values, numbers, hidden, data["words"], ax, cmap=MAGNITUDE)
    shown = values[~hidden]
    for text, dark in zip(ax.texts, shown < (shown.min() + shown.max()) / 2, strict=True):
        text.set_color("white" if dark else INK)
    for i, j in data["boxed"].nonzero().tolist():
        ax.add_patch(box(j + 0.06, i + 0.06, 0.88, 0.88, "none", ec=STRIPE, lw=2.5))


def data_row(scores: Float[Tensor, "N"], words: Sequence[str]) -> dict:
    """One query: the score of each key and the weight that softmax makes of it.

    Returns:
        score, weight: `[N]`; words.
    """
    return {"score": scores, "weight": scores.softmax(-1), "words": tuple(words)}


def draw_row(data: dict, axes) -> None:
    """How does a score become a weight?"""
    places = range(len(data["words"]))
    for ax, name, form in zip(axes, ("score", "weight"), ("{:.0f}", "{:.3f}"), strict=True):
        bars(ax, places, data[name].tolist(), ACCENT, form.format)
        ax.axhline(0, color=INK, lw=0.8)
        name_words(ax, places, data["words"])
        ax.set(ylabel=name)
        ax.margins(y=0.18)


def data_kinds(
    words: Sequence[str],
    config: AnchorConfig,
    stripes: StripePlan | None = None,
    head: int = 0,
) -> dict:
    """The region of every pair, as a letter of `KINDS`.

    Args:
        words: the tokens.
        config: the regions.
        stripes: what was selected; None leaves candidates undecided.
        head: whose stripes.

    Returns:
        kind: N strings of N letters, " " where the key is later than the query.
        words: the tokens.
        groups: first row of each group.
    """
    n = len(words)
    kinds = [[" "] * n for _ in words]
    found = groups(config, n, n)
    for g, group in enumerate(found):
        kept = set() if stripes is None else set(stripes.keys(0, head, g).tolist())
        for i in group.rows:
            for j in group.init:
                kinds[i][j] = "I"
            for j in group.candidates:
                kinds[i][j] = "C" if stripes is None else "S" if j in kept else "·"
            for j in range(group.window_start, i + 1):
                kinds[i][j] = "W"
    return {
        "kind": ["".join(row) for row in kinds],
        "words": tuple(words),
        "groups": [group.rows.start for group in found],
    }


def draw_kinds(data: dict, ax) -> None:
    """Which region does each pair belong to?"""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    letters = "".join(KINDS)
    colours = ListedColormap([colour for _, colour in KINDS.values()])
    index = torch.tensor([[letters.find(letter) for letter in row] for row in data["kind"]])
    look = {"cmap": colours, "vmin": -0.5, "vmax": len(KINDS) - 0.5, "linewidths": 1.5}
    look |= {"linecolor": SKIPPED, "annot_kws": {"color": INK, "weight": "bold"}}
    _draw_table(index, [list(row) for row in data["kind"]], index < 0, data["words"], ax, **look)
    for start in data["groups"][1:]:
        ax.axhline(start, color=INK, lw=1)
    handles = [
        Patch(fc=colour, ec=MUTED, label=f"{letter}  {kind}")
        for letter, (kind, colour) in KINDS.items()
        if any(letter in row for row in data["kind"])
    ]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_table(
    values: Tensor,
    texts: list[list[str]],
    hidden: Bool[Tensor, "N N"],
    words: tuple[str, ...],
    ax,
    **look,
) -> None:
    """A cell for each pair, coloured by its value, its text in it; hidden pairs are hatched."""
    import seaborn as sns

    look = {"annot_kws": {"size": 9}, "cbar": False, "square": True} | look
    sns.heatmap(values.numpy(), mask=hidden.numpy(), annot=texts, fmt="", ax=ax, **look)
    ax.patch.set(hatch="////", edgecolor=SKIPPED)  # cells that are masked let it show
    name_words(ax, list(ax.get_xticks()), words)
    ax.set_yticks(ax.get_yticks(), words, rotation=0)
    ax.tick_params(length=0)
    ax.set(xlabel="key", ylabel="query")
