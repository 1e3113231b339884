"""What many figures draw: labels beside points, thresholds, marked points, boxes, bars."""

from collections.abc import Callable, Sequence

from torch import Tensor

from anchor_lab.drawing.style import INK, MUTED, STRIPE

CENTRED = {"ha": "center", "va": "center"}


def label(ax, text: str, at: tuple, offset: tuple = (6, 0), **look) -> None:
    """Write beside a point what it is, so that no legend has to be decoded.

    Args:
        ax: where to draw.
        text: what to write.
        at: the point, in the axes' own numbers; `xycoords` in `look` changes that.
        offset: from the point, in points of 1/72 inch.
        look: further arguments of `annotate`.
    """
    look = {"va": "center", "annotation_clip": False} | look
    ax.annotate(text, at, offset, textcoords="offset points", **look)


def curve(ax, x, y, name: str, colour: str, offset: tuple = (6, 0), **look) -> None:
    """A line with its name beside its last point; `weight` and `va` in `look` are the name's."""
    words = {key: look.pop(key) for key in ("weight", "va") if key in look}
    ax.plot(x, y, color=colour, ms=4, **look)
    label(ax, name, (x[-1], y[-1]), offset, color=colour, **words)


def note(ax, text: str, colour: str, at: tuple = (0.02, 0.96)) -> None:
    """Bold words in a corner of the axes; `at` in fractions of the axes."""
    side = "right" if at[0] > 0.5 else "left"
    look = {"color": colour, "weight": "bold", "ha": side, "va": "top"}
    ax.annotate(text, at, xycoords="axes fraction", **look)


def threshold(ax, theta: float) -> None:
    """A line at height θ with its name behind its right end."""
    ax.axhline(theta, color=INK, lw=1)
    label(ax, f"θ = {theta:g}", (1, theta), (4, 0), xycoords=("axes fraction", "data"))


def mark(
    ax,
    x: Tensor,
    y: Tensor,
    chosen: Tensor,
    colours: tuple[str, str] = (MUTED, STRIPE),
    sizes: tuple = (2, 2),
    **look,
) -> None:
    """Points of two colours and sizes, those that are `chosen` second and above the others."""
    for some, colour, size in zip((~chosen, chosen), colours, sizes, strict=True):
        ax.scatter(x[some], y[some], s=size, color=colour, lw=0, **look)


def box(x, y, width, height, colour: str, **look):
    """A filled rectangle with a thin white edge."""
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, **{"fc": colour, "ec": "white", "lw": 0.8} | look)


def name_ticks(axis, at: Sequence, names: Sequence[str]) -> None:
    """Ticks at these places of an axis alone, with these names: for logarithmic axes."""
    axis.set_ticks(at, names)
    axis.set_ticks([], minor=True)


def name_words(ax, at: Sequence, words: Sequence[str]) -> None:
    """Words below the axes, on one line whatever their letters."""
    ax.set_xticks(at, words, va="baseline")
    ax.tick_params(axis="x", pad=12)


def bars(ax, at: Sequence, heights: Sequence, colour: str, form: Callable[[float], str]) -> None:
    """Bars with their heights, as `form` writes them, at their ends."""
    drawn = ax.bar(at, heights, color=colour, width=0.7)
    ax.bar_label(drawn, fmt=lambda height: form(height).replace("-", "−"), padding=2, fontsize=8)
