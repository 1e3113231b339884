"""Attention maps of long sequences: what can be seen once N is larger than the screen.

A map of 8192 tokens has 64 million entries and a picture 300 thousand pixels: the reduction is the
figure. Pooling by maximum answers "is there any heavy key here?"; averaging, which is what plain
`imshow` does, would hide a stripe that is one key wide.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing.style import INIT, SKIPPED, STRIPE, TAIL, WINDOW
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import causal_scores
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups


def data_attention_map(
    q: Float[Tensor, "N D"], k: Float[Tensor, "N D"], scale: float, pixels: int = 512
) -> dict[str, Tensor]:
    """Softmax mass of one head, reduced to at most `pixels` x `pixels` cells, streamed by rows.

    Args:
        q, k: one head's queries and keys, `[N, D]`.
        scale: factor of q·k.
        pixels: cells to a side, at most.

    Returns:
        heaviest: largest single attention weight in each cell, `[cells, cells]`.
        mass: attention mass that an average row of the cell puts there, `[cells, cells]`.
        column_mass: mass that each cell's keys receive from an average later row, `[cells]`.
        cell: tokens to a cell.
    """
    n = len(q)
    cell = -(-n // pixels)
    cells = -(-n // cell)
    heaviest, mass = torch.zeros(cells, cells), torch.zeros(cells, cells)
    q, k = q[None, None].float(), k[None, None].float()
    for i in range(cells):
        end = min((i + 1) * cell, n)
        weights = causal_scores(q[:, :, i * cell : end], k[:, :, :end], scale)[0, 0].softmax(-1)
        weights = torch.nn.functional.pad(weights, (0, cells * cell - end))
        by_cell = weights.unflatten(1, (cells, cell))
        heaviest[i] = by_cell.amax((0, 2))
        mass[i] = by_cell.sum(2).mean(0)
    later_rows = torch.arange(cells, 0, -1)
    return {
        "heaviest": heaviest,
        "mass": mass,
        "column_mass": mass.sum(0) / later_rows,
        "cell": torch.tensor(cell),
    }


def region_bounds(config: AnchorConfig, n: int) -> list[tuple[int, int, int, int]]:
    """Of each group of n tokens (first row, end row, end of the initial region, window start)."""
    found = groups(config, n, n)
    return [(g.rows.start, g.rows.stop, g.init.stop, g.window_start) for g in found]


def draw_regions(bounds: list[tuple[int, int, int, int]], ax, alpha: float = 1.0) -> None:
    """Initial regions and windows of `region_bounds`, `alpha` strong, between them grey."""
    n = bounds[-1][1]
    for start, end, init, window in bounds:
        ax.fill_between([init, window], start, end, color=SKIPPED, lw=0)
        ax.fill_between([0, init], start, end, color=INIT, alpha=alpha, lw=0)
        corners = [window, start, end, window], [start, start, end, end]
        ax.fill(*corners, color=WINDOW, alpha=alpha, lw=0)
    ax.set(xlim=(0, n), ylim=(n, 0), xlabel="key position", ylabel="query position", aspect=1)


def data_kept_map(stripes: StripePlan, head: int, config: AnchorConfig, n: int) -> dict[str, list]:
    """Rectangles of the always-kept regions and the stripes of one head.

    Returns:
        groups: of each group what `region_bounds` gives.
        keys: of each group the stripe positions, from the plan itself.
        tail: of each group (first row, end row) of those that see every key; equal for none.
    """
    found = region_bounds(config, n)
    return {
        "groups": found,
        "keys": [stripes.keys(0, head, g).cpu() for g in range(len(found))],
        "tail": [(group.tail.start, group.tail.stop) for group in groups(config, n, n)],
    }


def tail_bands(data: dict[str, list]) -> list[tuple[int, int]]:
    """(first row, end row) of each group that has rows of the tail, in order."""
    return [(start, end) for start, end in data["tail"] if start < end]


def draw_kept_pairs(data: dict[str, list], ax) -> None:
    """The pairs of `data_kept_map` as colours, without words."""
    draw_regions(data["groups"], ax)
    # Stripes are drawn from their own list: as cells of an image most would fall between pixels.
    for (start, end, *_), keys in zip(data["groups"], data["keys"], strict=True):
        ax.vlines(keys, start, end, color=STRIPE, lw=0.3)
    for start, end in tail_bands(data):
        ax.fill([0, start, end, 0], [start, start, end, end], color=TAIL, lw=0, zorder=2.5)


def data_kept_share(data: dict[str, list], cell: int) -> list[torch.Tensor]:
    """What share of the keys of each cell is a stripe, by group.

    Args:
        data: of `data_kept_map`.
        cell: keys to a cell.

    Returns:
        Of each group shares in [0, 1], `[cells]`, counted from key 0 on.
    """
    cells = -(-data["groups"][-1][1] // cell)
    return [torch.bincount(keys // cell, minlength=cells) / cell for keys in data["keys"]]


def draw_kept_share(data: dict[str, list], ax, cell: int = 32) -> None:
    """The pairs of `data_kept_map`, as strongly coloured as they are many.

    A line a key, `draw_kept_pairs`, is wider than the key: many of them seem to be all.
    """
    from matplotlib.colors import LinearSegmentedColormap

    draw_regions(data["groups"], ax)
    colours = LinearSegmentedColormap.from_list("kept", [SKIPPED, STRIPE])
    shares = data_kept_share(data, cell)
    for (start, end, init, window), share in zip(data["groups"], shares, strict=True):
        if window > init:
            edges = torch.arange(len(share) + 1) * cell
            inside = (edges[:-1] >= init) & (edges[1:] <= window)
            first, last = int(inside.nonzero()[0]), int(inside.nonzero()[-1]) + 1
            look = {"cmap": colours, "vmin": 0, "vmax": 1, "rasterized": True}
            across, strength = edges[first : last + 1].tolist(), share[None, first:last].tolist()
            ax.pcolormesh(across, [start, end], strength, **look)


def draw_kept_map(data: dict[str, list], ax) -> None:
    """Which keys does each query keep?"""
    draw_kept_pairs(data, ax)
    n, middle = data["groups"][-1][1], len(data["groups"]) // 2
    start, end, init, window = data["groups"][middle]
    keys = data["keys"][middle]
    borders = torch.cat([keys.new_tensor([init - 1]), keys, keys.new_tensor([window])])
    gaps = borders.diff() - 1
    widest = int(gaps.argmax())
    # A key of each kind for its arrow to end on; a kind that this group lacks goes unnamed.
    kinds = {}
    if window:
        kinds["initial region"] = init / 2
    if gaps[widest] > 0:
        kinds["skipped"] = int(borders[widest]) + 1 + int(gaps[widest]) // 2
    if len(keys):
        kinds["stripes"] = int(keys[3 * len(keys) // 4])
    kinds["window"] = window + (end - start) / 3
    for i, (kind, key) in enumerate(kinds.items(), start=1):
        part = i / (len(kinds) + 1)
        word_row = (start + end) / 2 + (part - 0.5) * max(end - start, 0.27 * n)
        ax.annotate(
            kind,
            (key, start + part * (end - start)),
            (end + 0.06 * n, word_row),
            va="center",
            arrowprops={"arrowstyle": "-|>,head_width=0.15,head_length=0.3", "lw": 0.8, "fc": "k"},
        )
    if bands := tail_bands(data):
        middle = (bands[0][0] + bands[-1][1]) / 2
        ax.annotate("tail", (1.01 * n, middle), va="center", color=TAIL, annotation_clip=False)
