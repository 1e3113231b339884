"""A window of one head's map, with what the method keeps of it: the picture of the explorer."""

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing.style import INK, MAGNITUDE, STRIPE, caption, panels, show
from anchor_lab.explorer.prepare import PreparedHead
from anchor_lab.explorer.view import HeadSelection, View, Window, look

FAINTEST = -5.0  # log10 of the weight below which differences are not shown
LABELLED = 32  # tokens to a side up to which each is written out
VISIBLE = 0.45  # tint of a cell of which a single key is kept


def data_view(view: View) -> dict[str, Tensor | tuple]:
    """The window as a picture.

    Two scales, one for what is computed and one for what is not: kept cells run from dark blue to
    yellow with their largest weight, skipped cells from white to red. White was skipped rightly.
    A cell kept in part is a mixture by its share, but never so pale that a lone stripe is lost.

    Returns:
        image: red, green and blue of each cell in 0..1, `[cells, cells, 3]`; later keys grey.
        extent: (first key, end key, end query, first query) of the picture.
    """
    import matplotlib

    strength = ((view.log_weight - FAINTEST) / -FAINTEST).clamp(0, 1)
    kept = torch.from_numpy(matplotlib.colormaps[MAGNITUDE](strength.numpy())[..., :3]).float()
    share = torch.where(view.kept > 0, VISIBLE + (1 - VISIBLE) * view.kept, 0)[..., None]
    image = share * kept + (1 - share) * skipped_colour(strength)
    image[view.log_weight == -torch.inf] = 0.965
    side = len(image) * view.cell
    window = view.window
    return {
        "image": image,
        "extent": (window.key, window.key + side, window.query + side, window.query),
    }


def skipped_colour(strength: Float[Tensor, "*cells"]) -> Float[Tensor, "*cells 3"]:
    """From white to the colour of a loss, slowly at first: faint weights are no loss."""
    from matplotlib.colors import to_rgb

    strong = torch.tensor(to_rgb(STRIPE))
    return 1 - strength[..., None] ** 2 * (1 - strong)


def draw_view(data: dict[str, Tensor | tuple], ax, tokens: list[str] | None = None):
    """Where does this head look, and what does the method compute of it?

    Args:
        data: from `data_view`.
        ax: where to draw.
        tokens: text of every token of the prompt; written beside the axes where there is room.

    Returns:
        The image, to be updated by `update_view`.
    """
    image = ax.imshow(data["image"].numpy(), interpolation="nearest", aspect="equal")
    ax.set(xlabel="key position", ylabel="query position")
    for side in ("top", "right", "bottom", "left"):
        ax.spines[side].set(visible=True, color="#BBBBBB")
    update_view(image, data, tokens)
    return image


def update_view(image, data: dict[str, Tensor | tuple], tokens: list[str] | None = None) -> None:
    """Show other data in an image that `draw_view` made."""
    from matplotlib.ticker import AutoLocator, FixedLocator, NullFormatter, ScalarFormatter

    ax, extent = image.axes, data["extent"]
    image.set_data(data["image"].numpy())
    image.set_extent(extent)
    ax.set(xlim=extent[:2], ylim=extent[2:])
    small = extent[1] - extent[0] <= LABELLED
    for axis, first, end in ((ax.xaxis, extent[0], extent[1]), (ax.yaxis, extent[3], extent[2])):
        if small and tokens is not None:
            axis.set_major_locator(FixedLocator([at + 0.5 for at in range(first, end)]))
            axis.set_major_formatter(NullFormatter())
            axis.set_ticklabels([readable(text) for text in tokens[first:end]])
        else:
            axis.set_major_locator(AutoLocator())
            axis.set_major_formatter(ScalarFormatter(useOffset=False))
    rotated = 90 if small and tokens is not None else 0
    size = 7 if rotated else 9
    ax.tick_params("x", rotation=rotated, labelsize=size)
    ax.tick_params("y", labelsize=size)


def readable(token: str) -> str:
    """A token's text with what would not be seen written out."""
    return token.replace("\n", "⏎").replace("$", r"\$").strip() or "␣"


def draw_scale(ax) -> None:
    """What do the colours mean?"""
    import matplotlib

    strength = torch.linspace(0, 1, 256)
    kept = torch.from_numpy(matplotlib.colormaps[MAGNITUDE](strength.numpy())[:, :3]).float()
    rows = torch.stack([kept, skipped_colour(strength)])
    ax.imshow(rows.numpy(), aspect="auto", extent=(FAINTEST, 0, 2, 0), interpolation="nearest")
    ax.axhline(1, color="white", lw=2)
    ax.set_yticks([0.5, 1.5], labels=["computed", "skipped"], fontsize=8)
    ax.set_xticks(
        [-5, -4, -3, -2, -1, 0],
        labels=["≤ 10⁻⁵", "10⁻⁴", "10⁻³", "0.01", "0.1", "1"],
        fontsize=8,
    )
    ax.set_xlabel("largest attention weight in the cell", fontsize=8)
    ax.tick_params(length=0)


def data_shares(selection: HeadSelection) -> list[tuple[int, int, float]]:
    """For every group its first row, its end, and the share of its candidates that is kept."""
    return [
        (group.rows.start, group.rows.stop, share)
        for group, share in zip(selection.groups, selection.shares, strict=True)
    ]


def draw_shares(shares: list[tuple[int, int, float]], ax) -> None:
    """How many of its candidates does each group keep?"""
    starts, ends, widths = zip(*shares, strict=True)
    heights = [end - start for start, end in zip(starts, ends, strict=True)]
    ax.barh(starts, widths, heights, align="edge", color=STRIPE, lw=0)
    ax.set(xlim=(0, 1), xticks=[1], xlabel="kept")
    ax.set_xticklabels(["all"], fontsize=8)
    ax.tick_params("y", labelleft=False, length=0)
    ax.spines["left"].set(color=INK, lw=0.5)


def data_columns(view: View, tokens: list[str]) -> list[str]:
    """The words of a small window whose column is kept for all its queries, from the left.

    Args:
        view: of cells of one token, no later keys among them.
        tokens: text of every token of the prompt.
    """
    kept = (view.kept > 0).all(0).nonzero().flatten().tolist()
    return [readable(tokens[view.window.key + j]) for j in kept]


def show_views(
    head: PreparedHead, selection: HeadSelection, window: Window, tokens: list[str], of: str
) -> None:
    """All pairs of a head, and a small window with its words.

    Args:
        head, selection: of `select`.
        window: before the group's own window, so that stripes are what is kept of it.
        tokens: text of every token of the prompt.
        of: model, layer and head, for the small print.
    """
    figure, axes = panels(1, 2, (8, 4.7))
    whole, near = (look(head, selection, one) for one in (None, window))
    for view, asked, ax in zip(
        (whole, near), ("What is computed?", "Which words are that?"), axes, strict=True
    ):
        draw_view(data_view(view), ax, tokens)
        ax.set_title(asked)
    at = near.window
    caption(figure, f"Largest weight in each cell; {of}, θ = {selection.config.theta:g}.")
    show(
        figure,
        f"Left the triangle of one head, of which {selection.density:.0%} are computed: start, "
        f"windows and columns of stripes. Right {at.size} by {at.size} pairs from query "
        f"{at.query} and key {at.key} on; computed are the columns of "
        f"{', '.join(data_columns(near, tokens)) or 'nothing'}.",
    )
