"""A look at a prepared head: any θ and step, any window of its map, each in bounded work."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.analysis.sampled import sampled_recall
from anchor_lab.explorer.prepare import PreparedHead, pool_max
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores
from anchor_ref.measure import density
from anchor_ref.plan import StripePlan
from anchor_ref.regions import Group, groups
from anchor_ref.stripes import identify_stripes

PIXELS = 512  # cells drawn to a side, at most: every one of them gets a pixel
EXACT_PAIRS = 2**22  # pairs scored anew for a window, at most
RECALL_ROWS = 64


@dataclass(frozen=True, eq=False)
class HeadSelection:
    """What θ and step keep of a head.

    Attributes:
        config: θ and the sizes.
        groups: the groups of queries.
        stripes: the selected keys of each.
        shares: of each group the share of its candidates that became stripes.
        density: share of all causal pairs kept.
        recall: mean over `RECALL_ROWS` rows drawn at random.
    """

    config: AnchorConfig
    groups: tuple[Group, ...]
    stripes: StripePlan
    shares: tuple[float, ...]
    density: float
    recall: float


@dataclass(frozen=True)
class Window:
    """A square of the map: `size` queries from `query` on and as many keys from `key` on."""

    query: int
    key: int
    size: int


@dataclass(frozen=True, eq=False)
class View:
    """What is to be seen in a window.

    Attributes:
        window: the square shown; that of the request, moved to whole cells inside the map.
        cell: tokens to a side of a cell.
        log_weight: log10 of the largest attention weight in each cell, -inf where every key
            comes later, `[cells, cells]`.
        kept: share of the cell's keys that the selection keeps, `[cells, cells]`; where the cell
            lies in two groups, of the one that keeps more.
    """

    window: Window
    cell: int
    log_weight: Float[Tensor, "cells cells"]
    kept: Float[Tensor, "cells cells"]


def select(head: PreparedHead, config: AnchorConfig) -> HeadSelection:
    """Stage 2 on the anchors of the dense pass, and what the result is worth.

    Args:
        head: from `prepare_head`, prepared for `config.step`.
        config: θ, step and tail; the other sizes must be the default ones.

    Raises:
        ValueError: the head was not prepared for these sizes.
    """
    n = len(head.q)
    sizes = AnchorConfig(step=config.step, theta=config.theta, tail=config.tail)
    if config != sizes or config.step not in head.anchors:
        steps = ", ".join(map(str, head.anchors))
        raise ValueError(f"config must have a step of {steps} and default sizes, got {config}")
    q, k, anchor = head.q[None, None], head.k[None, None], head.anchors[config.step][None, None]
    stripes = identify_stripes(q, k, anchor, config, head.scale)
    sample = sampled_recall(q, k, stripes, config, min(RECALL_ROWS, n), head.scale)
    found = groups(config, n, n)
    counts = stripes.counts[0, 0].tolist()
    return HeadSelection(
        config,
        found,
        stripes,
        tuple(c / max(1, len(g.candidates)) for c, g in zip(counts, found, strict=True)),
        float(density(stripes, config, n, n)),
        float(sample.mean),
    )


def look(head: PreparedHead, selection: HeadSelection, window: Window | None = None) -> View:
    """The map of a window, with what the selection keeps of it.

    A window of at most `EXACT_PAIRS` pairs is scored anew, its weights exact by the row sums of
    the dense pass; a larger one is cut from the pooled maps.

    Args:
        head: from `prepare_head`.
        selection: of this head.
        window: what to show; None means everything.

    Raises:
        ValueError: the window's size is below 1.
    """
    n = len(head.q)
    window = _inside(window or Window(0, 0, n), n)
    if window.size**2 <= EXACT_PAIRS:
        window, cell, log_weight = _exact(head, window)
    else:
        window, cell, log_weight = _cut(head, window)
    return View(window, cell, log_weight, _kept(selection, window, cell, len(log_weight)))


def _inside(window: Window, n: int) -> Window:
    """The window moved inside the map, and no larger than it."""
    if window.size < 1:
        raise ValueError(f"window must have a size of at least 1, got {window.size}")
    size = min(window.size, n)
    query, key = (min(max(0, at), n - size) for at in (window.query, window.key))
    return Window(query, key, size)


def _exact(head: PreparedHead, window: Window) -> tuple[Window, int, Tensor]:
    """The window in whole cells, scored anew."""
    cell = -(-window.size // PIXELS)
    whole = -(-window.size // cell) * cell
    window = _inside(Window(window.query, window.key, whole), len(head.q))
    rows, keys = (slice(at, at + window.size) for at in (window.query, window.key))
    scores = scaled_scores(head.q[rows], head.k[keys], head.scale)
    scores -= head.log_sum[rows, None]  # now the logarithm of the weight
    if keys.stop > rows.start:  # the window reaches the diagonal
        later = torch.arange(keys.start, keys.stop) > torch.arange(rows.start, rows.stop)[:, None]
        scores.masked_fill_(later, -torch.inf)
    return window, cell, pool_max(scores, cell, cell) / math.log(10)


def _cut(head: PreparedHead, window: Window) -> tuple[Window, int, Tensor]:
    """Whole cells of the finest level that has a pixel for each of them."""
    number, cell = 0, head.cell
    while -(-window.size // cell) > PIXELS:
        number, cell = number + 1, 2 * cell
    level = head.levels[number]
    cells = -(-window.size // cell)
    row, key = (min(at // cell, len(level) - cells) for at in (window.query, window.key))
    part = level[row : row + cells, key : key + cells].float()
    return Window(row * cell, key * cell, cells * cell), cell, part


def _kept(selection: HeadSelection, window: Window, cell: int, cells: int) -> Tensor:
    """Share of each cell's keys in initial region, window or a stripe; of all in the tail."""
    kept = torch.zeros(cells, cells)

    def keep(band: range, regions: Sequence[range], chosen: Tensor) -> None:
        start = max(band.start - window.query, 0)
        stop = min(band.stop - window.query, cells * cell)
        if start >= stop:
            return
        keys = torch.zeros(cells * cell)
        for region in regions:
            keys[max(0, region.start - window.key) : max(0, region.stop - window.key)] = 1
        chosen = chosen.long() - window.key
        keys[chosen[(chosen >= 0) & (chosen < len(keys))]] = 1
        rows = kept[start // cell : -(-stop // cell)]
        torch.maximum(rows, keys.unflatten(0, (cells, cell)).mean(1), out=rows)

    for g, group in enumerate(selection.groups):
        near = (group.init, range(group.window_start, group.rows.stop))
        keep(group.sparse_rows, near, selection.stripes.keys(0, 0, g))
        keep(group.tail, (*near, group.candidates), torch.empty(0))
    return kept
