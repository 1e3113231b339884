"""Figures of the six tokens: small enough that every number is written in its cell."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anchor_lab.drawing.style import ACCENT, INIT, INK, MAGNITUDE, SKIPPED, STRIPE, WINDOW
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
    from matplotlib.patches import Rectangle

    values, hidden = data["values"], data["hidden"]
    shown = values[~hidden & values.isfinite()]
    least, most = float(shown.min()), float(shown.max())
    image = values.masked_fill(hidden | ~values.isfinite(), torch.nan)
    ax.imshow(image.numpy(), cmap=MAGNITUDE, vmin=least, vmax=most, interpolation="nearest")
    for i, j in _pairs(len(values)):
        if hidden[i, j]:
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc="white", ec=SKIPPED, hatch="///"))
            continue
        dark = values[i, j] < (least + most) / 2
        text = form.format(float(values[i, j])).replace("-", "−")
        ax.text(j, i, text, ha="center", va="center", color="white" if dark else INK, size=9)
    for i, j in data["boxed"].nonzero().tolist():
        box = Rectangle((j - 0.44, i - 0.44), 0.88, 0.88, fill=False, ec=STRIPE, lw=2.5)
        ax.add_patch(box)
    _name_axes(ax, data["words"])


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
        bars = ax.bar(places, data[name].tolist(), color=ACCENT, width=0.7)
        labels = [form.format(float(x)).replace("-", "−") for x in data[name]]
        ax.bar_label(bars, labels, padding=2)
        ax.axhline(0, color=INK, lw=0.8)
        ax.set_xticks(places, data["words"], va="baseline")
        ax.tick_params(axis="x", pad=12)
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
    from matplotlib.patches import Patch, Rectangle

    n = len(data["words"])
    for i, j in _pairs(n):
        letter = data["kind"][i][j]
        if letter == " ":
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc="white", ec=SKIPPED, hatch="///"))
            continue
        colour = KINDS[letter][1]
        edge = SKIPPED if letter == "C" else "white"
        ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc=colour, ec=edge, lw=1.5))
        shade = "white" if letter == "S" else INK
        ax.text(j, i, letter, ha="center", va="center", color=shade, weight="bold")
    for start in data["groups"][1:]:
        ax.plot([-0.5, n - 0.5], [start - 0.5] * 2, color=INK, lw=1)
    ax.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect=1)
    _name_axes(ax, data["words"])
    used = [letter for letter in KINDS if any(letter in row for row in data["kind"])]
    handles = [
        Patch(fc=KINDS[letter][1], ec="#9A9A9A", label=f"{letter}  {KINDS[letter][0]}")
        for letter in used
    ]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _pairs(n: int):
    return ((i, j) for i in range(n) for j in range(n))


def _name_axes(ax, words: tuple[str, ...]) -> None:
    places = range(len(words))
    ax.set_xticks(places, words, va="baseline")
    ax.set_yticks(places, words)
    ax.tick_params(length=0)
    ax.tick_params(axis="x", pad=12)
    ax.set(xlabel="key", ylabel="query")
    for spine in ax.spines.values():
        spine.set_visible(False)
