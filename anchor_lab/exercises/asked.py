"""Rows that are asked by themselves, an extension: which ones, and what is kept for them."""

import torch
from torch import Tensor

from anchor_lab.exercises.exercise import Exercise
from anchor_ref.regions import even_rows

BLOCKS = ((range(8, 16), 3), (range(16, 24), 4), (range(24, 29), 3), (range(12), 5))


def _blocks(random: torch.Generator) -> tuple[list[tuple[range, int]]]:
    """Blocks and how many rows to ask; the last block is short, and is asked for all and more."""
    short = int(torch.randint(2, 6, (), generator=random))
    more = short + int(torch.randint(1, 4, (), generator=random))
    last = range(32, 32 + short)
    return ([*BLOCKS, (last, short), (last, more)],)


def _times_asked(function, blocks: list[tuple[range, int]]) -> Tensor:
    """How often each of 40 rows is asked, for each block."""
    times = torch.zeros(len(blocks), 40)
    for found, (block, count) in zip(times, blocks, strict=True):
        for row in function(block, count):
            if not 0 <= int(row) < 40:
                raise ValueError(f"there are rows 0 to 39, got {int(row)} for {block}, {count}")
            found[int(row)] += 1
    return times


def _parts(block: range, count: int, at: float, n: int | None = None) -> list[int]:
    """The row at this share of each of `count` equal parts of n rows, as many as the block has."""
    n = len(block) if n is None else n
    return [block.start + int((part + at) * n / count) for part in range(count)]


EVENLY = Exercise(
    "evenly_spaced",
    _blocks,
    even_rows,
    (
        (
            lambda block, count: _parts(block, min(count, len(block)), 0.0),
            "These are the first rows of the parts. Take those in the middle: the block's last "
            "rows would have nobody near them.",
        ),
        (
            lambda block, count: _parts(block, count, 0.5),
            "A block of fewer rows than are to be asked has some of them asked twice. All of them "
            "are asked, each once: R is at most how many there are.",
        ),
        (
            lambda block, count: [row - block.start for row in even_rows(block, count)],
            "These rows count from the block's first. Count from the text's: add `block.start`.",
        ),
        (
            lambda block, count: _parts(block, min(count, len(block)), 0.5, 8),
            "The parts are those of a block of eight. Blocks differ, the last one of a text is "
            "often shorter: divide as many rows as the block has.",
        ),
        (
            lambda block, count: list(block)[: min(count, len(block))],
            "These are the first rows of the block. They lie side by side, and nobody asks for "
            "the rest.",
        ),
    ),
    axes=("block", "row"),
    call=_times_asked,
)


def _group(random: torch.Generator) -> tuple[Tensor, Tensor, list[int], int, float, float]:
    """Rows of a group whose last block is short, what they score, and three rows to ask."""
    n = int(torch.randint(17, 20, (), generator=random))
    anchor = 10 + 3 * torch.randn(n, generator=random, dtype=torch.float64)
    # Some keys are wanted by all rows a little, some by one row very much.
    liked = 4 * torch.randn(60, generator=random, dtype=torch.float64)
    scores = liked + 3 * torch.randn(n, 60, generator=random, dtype=torch.float64)
    asked = sorted([*torch.randperm(16, generator=random)[:2].tolist(), n - 1])
    return anchor, scores, asked, 8, 9.0, 5.0


def _by_means(anchor: Tensor, scores: Tensor, size: int, theta: float) -> Tensor:
    differences = (anchor[:, None] - scores).split(size)
    return torch.stack([block.mean(0) <= theta for block in differences]).any(0)


def _by_rows(anchor: Tensor, scores: Tensor, asked: list[int], theta: float) -> Tensor:
    return (anchor[asked, None] - scores[asked] <= theta).any(0)


def _keep(anchor, scores, asked, size, theta, row_theta):
    means = _by_means(anchor, scores, size, theta)
    return means | _by_rows(anchor, scores, asked, row_theta)


def _mean_anchors(anchor: Tensor, size: int) -> Tensor:
    """The mean anchor of its block, for each row."""
    return torch.cat([block.mean().expand(len(block)) for block in anchor.split(size)])


def _padded(anchor, scores, asked, size, theta, row_theta):
    differences = (anchor[:, None] - scores).split(size)
    means = torch.stack([block.sum(0) / size <= theta for block in differences]).any(0)
    return means | _by_rows(anchor, scores, asked, row_theta)


def _whole_blocks(anchor, scores, asked, size, theta, row_theta):
    whole = len(anchor) // size * size
    means = _by_means(anchor[:whole], scores[:whole], size, theta)
    return means | _by_rows(anchor, scores, asked, row_theta)


KEEP = Exercise(
    "keep_asked",
    _group,
    _keep,
    (
        (
            lambda anchor, scores, asked, size, theta, row_theta: (
                _by_means(anchor, scores, size, theta)
                | _by_rows(_mean_anchors(anchor, size), scores, asked, row_theta)
            ),
            "An asked row is held against the mean anchor of its block. It has an anchor of its "
            "own, and its score means nothing beside that of others.",
        ),
        (
            lambda anchor, scores, asked, size, theta, row_theta: _keep(
                anchor, scores, asked, size, theta, theta
            ),
            "The asked rows are judged by θ, the threshold of the means. Theirs is θ₂: "
            "`row_theta`.",
        ),
        (
            lambda anchor, scores, asked, size, theta, row_theta: _keep(
                anchor, scores, asked, size, row_theta, row_theta
            ),
            "The means are judged by θ₂, the threshold of the asked rows. Theirs is θ: `theta`.",
        ),
        (
            lambda anchor, scores, asked, size, theta, row_theta: _keep(
                anchor, scores, asked, size, row_theta, theta
            ),
            "The thresholds have changed places: θ is for the means, θ₂ for the asked rows.",
        ),
        (
            _padded,
            "The last block has fewer rows than the others: divide by how many it has, not by "
            "`block_size`.",
        ),
        (
            _whole_blocks,
            "The mean of the last, shorter block is not asked. Its rows are a block like others.",
        ),
        (
            lambda anchor, scores, asked, size, theta, row_theta: (
                _by_means(anchor, scores, size, theta) & _by_rows(anchor, scores, asked, row_theta)
            ),
            "This keeps what means *and* rows want. One of them is enough.",
        ),
        (
            lambda anchor, scores, asked, size, theta, row_theta: _by_means(
                anchor, scores, size, theta
            ),
            "These are the keys that means want: the method without its extension. Ask the rows "
            "in `asked` as well.",
        ),
        (
            lambda anchor, scores, asked, size, theta, row_theta: _by_rows(
                anchor, scores, asked, row_theta
            ),
            "These are the keys that the asked rows want. The means of the blocks are still "
            "asked, too.",
        ),
        (
            lambda anchor, scores, asked, size, theta, row_theta: _keep(
                anchor, scores, list(range(len(anchor))), size, theta, row_theta
            ),
            "All rows are asked. That is what was too dear: ask those in `asked` alone.",
        ),
    ),
    axes=("", "candidate"),
)

ASKED = (EVENLY, KEEP)
