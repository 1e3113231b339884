"""Colours and axes that all figures share; safe for colour-blind readers and in grey."""

# Okabe and Ito's palette. In grey, initial region and window are alike: figures name them.
INIT = "#E69F00"
WINDOW = "#56B4E9"
STRIPE = "#D55E00"
SKIPPED = "#ECECEC"
INK = "#1A1A1A"
ACCENT = "#0072B2"
TAIL = "#009E73"
MUTED = "#9A9A9A"  # what is there for comparison
DIM = "#666666"  # words and lines that stand back
MAGNITUDE = "cividis"

SHARPNESS = 2


def use_style() -> None:
    """Set matplotlib's defaults for the course: white paper, few lines, 100 dots an inch."""
    from matplotlib import pyplot as plt

    plt.rcParams.update(
        {
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.labelsize": 9,
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "legend.frameon": False,
            "savefig.dpi": 100,
        }
    )


def panels(rows: int = 1, columns: int = 1, size: tuple = (7, 2.8), **options):
    """An empty figure of the course in its style, and its axes: one, or an array of them.

    Args:
        rows, columns: of panels.
        size: width and height in inches.
        options: further arguments of `plt.subplots`.
    """
    from matplotlib import pyplot as plt

    use_style()
    return plt.subplots(rows, columns, figsize=size, **options)


def finish(figure, asked: str, small_print: str, alt: str) -> None:
    """Put question and small print around a figure of a notebook, and show it.

    Args:
        figure: a matplotlib figure.
        asked: the question that it answers; the title of a single panel, else above all.
        small_print: see `caption`.
        alt: see `show`.
    """
    if len(figure.axes) == 1:
        figure.axes[0].set_title(asked)
    else:
        question(figure, asked)
    caption(figure, small_print)
    show(figure, alt)


def caption(figure, text: str) -> None:
    """A line of small print under the figure: reduction, model, layer, head, N, θ."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color=DIM)


def question(figure, text: str) -> None:
    """What the panels of a figure answer together, set as the title of a single one is."""
    figure.suptitle(text, x=0.01, ha="left", size=11, weight="bold")


def show(figure, alt: str) -> None:
    """Show a figure with an alternative text, and close it.

    In a notebook the text goes into the output's metadata, where nbconvert looks for it, and into
    its plain text, which is what a terminal shows and nbval compares. The picture is rendered
    `SHARPNESS` times finer than the width that the metadata gives: sharp on high-resolution
    screens, and when a reader zooms in.

    In plain Python it opens in a window, where matplotlib has one; elsewhere, in a script on a
    server, the text is printed in its place.

    Args:
        figure: a matplotlib figure.
        alt: what the figure shows, in a sentence or two.

    Raises:
        ValueError: `alt` is empty.
    """
    from IPython import get_ipython
    from IPython.display import display
    from matplotlib import pyplot as plt

    if not alt.strip():
        raise ValueError(f"alt must say what the figure shows, got {alt!r}")
    if get_ipython() is not None:
        meant = {"alt": alt, "width": round(figure.get_figwidth() * figure.dpi)}
        bundle = {"image/png": _encoded(figure), "text/plain": alt}
        display(bundle, metadata={"image/png": meant}, raw=True)
    elif figure.canvas.required_interactive_framework is not None:
        plt.show(block=True)  # closed below, once the reader has closed it
    else:
        print(alt)
    plt.close(figure)


def _encoded(figure) -> str:
    """A figure as PNG of 256 colours, in base64."""
    from base64 import b64encode
    from io import BytesIO

    from PIL import Image

    drawn, picture = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=SHARPNESS * figure.dpi)
    # 256 colours, a third of the bytes: notebooks are kept in git and read over networks.
    # Of Pillow's methods this one moves colours the least: by 5 of 255 at most on a map.
    small = (
        Image.open(drawn)
        .convert("RGB")
        .quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    small.save(picture, format="png", optimize=True)
    return b64encode(picture.getvalue()).decode()
