"""Regions of a query, its anchor, pooled queries, the difference test, the ragged list."""

from dataclasses import replace

import torch
from torch import Tensor

from anchor_lab.exercises.exercise import Exercise
from anchor_ref.config import AnchorConfig
from anchor_ref.plan import StripePlan
from anchor_ref.regions import Group, groups

CONFIGS = (
    AnchorConfig(4, 2, window_blocks=1),
    AnchorConfig(2, 3, init_blocks=3),
    AnchorConfig(3, 2, init_blocks=0, window_blocks=2),
)


def _config(random: torch.Generator) -> tuple[AnchorConfig]:
    return (CONFIGS[int(torch.randint(len(CONFIGS), (), generator=random))],)


def _group(query: int, config: AnchorConfig) -> Group:
    return groups(config, query + 1, query + 1)[-1]


def _all_queries(function, config: AnchorConfig) -> Tensor:
    """Keys of each of 30 queries, as a mask: what `function(query, config)` returns as a range."""
    mask = torch.zeros(30, 30, dtype=torch.bool)
    for query in range(30):
        keys = function(query, config)
        if not isinstance(keys, range):
            raise TypeError(f"a range of keys is asked for, got {type(keys).__name__}")
        if any(not 0 <= key < 30 for key in keys):
            raise ValueError(f"there are keys 0 to 29, got {keys} for query {query}, {config}")
        mask[query, list(keys)] = True
    return mask


def _window(query: int, config: AnchorConfig) -> range:
    return range(_group(query, config).window_start, query + 1)


WINDOW = Exercise(
    "window",
    _config,
    _window,
    (
        (
            lambda query, config: range(_group(query, config).window_start, query),
            "A query sees its own key too: the window ends with key i, and a range stops before "
            "its stop.",
        ),
        (
            lambda query, config: _window(query, replace(config, step=1)),
            "This window starts at the query's block. It starts at its group, so that all queries "
            "of the group have the same candidates.",
        ),
        (
            lambda query, config: _window(query, replace(config, window_blocks=0)),
            "`window_blocks` is not used: that many blocks before the group belong to it as well.",
        ),
    ),
    axes=("query", "key"),
    call=_all_queries,
)


def _candidates(query: int, config: AnchorConfig) -> range:
    return _group(query, config).candidates


CANDIDATES = Exercise(
    "candidates",
    _config,
    _candidates,
    (
        (
            lambda query, config: range(_group(query, config).window_start),
            "These hold the initial region, which every query sees anyway: its keys would enter "
            "the softmax twice.",
        ),
        (
            lambda query, config: range(_candidates(query, config).start, query + 1),
            "These hold the window: its keys would enter the softmax twice.",
        ),
        (
            lambda query, config: _candidates(query, replace(config, window_blocks=0)),
            "These end at the group's start; the window starts `window_blocks` blocks earlier.",
        ),
        (
            lambda query, config: _candidates(query, replace(config, step=1)),
            "These end before the window of the query's block. The window starts at its group: "
            "all queries of a group have the same candidates.",
        ),
        (
            lambda query, config: _candidates(query, replace(config, init_blocks=1)),
            "`init_blocks` is not used: the initial region may be of several blocks, or of none.",
        ),
    ),
    axes=("query", "key"),
    call=_all_queries,
)


def _initial(query: int, config: AnchorConfig) -> range:
    return _group(query, config).init


def _scores(random: torch.Generator) -> tuple[Tensor, AnchorConfig]:
    scores = 4 * torch.randn(30, 30, generator=random, dtype=torch.float64)
    return (scores, *_config(random))


def _row_anchor(scores: Tensor, config: AnchorConfig, initial=_initial) -> Tensor:
    """Of each row the largest score of its initial region and its window."""
    keys = [[*initial(i, config), *_window(i, config)] for i in range(len(scores))]
    return torch.stack([scores[i, some].max() for i, some in enumerate(keys)])


ROW_ANCHOR = Exercise(
    "row_anchor",
    _scores,
    _row_anchor,
    (
        (
            lambda scores, config: scores.cummax(-1).values.diagonal(),
            "This is the largest score of all earlier keys. The anchor does not look at the "
            "candidates: that is what makes it cheap.",
        ),
        (
            lambda scores, config: scores.amax(-1),
            "This looks at keys after the query. Query i sees keys 0 to i.",
        ),
        (
            lambda scores, config: _row_anchor(scores, replace(config, init_blocks=0)),
            "The initial region is missing: every query sees it, and sinks lie there.",
        ),
        (
            lambda scores, config: _row_anchor(
                scores, config, lambda _, config: range(config.init_blocks * config.block_size)
            ),
            "In the first group the initial region holds keys after the query. Query i sees keys "
            "0 to i.",
        ),
    ),
    axes=("", "query"),
)


def _ragged(random: torch.Generator) -> tuple[Tensor, int]:
    n = int(torch.randint(9, 16, (), generator=random))
    return torch.randn(n, 6, generator=random, dtype=torch.float64), 4


def _pool(q: Tensor, block_size: int) -> Tensor:
    return torch.stack([block.mean(0) for block in q.split(block_size)])


POOL = Exercise(
    "pool_queries",
    _ragged,
    _pool,
    (
        (
            lambda q, size: torch.stack([block.sum(0) / size for block in q.split(size)]),
            "The last block has fewer queries than the others: divide by how many it has, not by "
            "`block_size`. Padding with zeros pulls its mean to 0.",
        ),
        (
            lambda q, size: q[: len(q) // size * size].unflatten(0, (-1, size)).mean(1),
            "The last, shorter block is missing. Its queries would choose no keys.",
        ),
        (
            lambda q, size: torch.stack([block.amax(0) for block in q.split(size)]),
            "This is a maximum. The mean is asked for: the score of a mean query is the mean of "
            "the scores, of a maximum it is nothing.",
        ),
    ),
    axes=("block", "dimension"),
)


def _whole_numbers(random: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Whole numbers, so that differences of exactly θ do occur; some keys lie far above all."""
    anchor = torch.randint(8, 14, (3,), generator=random).double()
    scores = torch.randint(0, 9, (3, 20), generator=random).double()
    scores[:, ::7] += 20
    return anchor, scores, 4.0


DIFFERENCE = Exercise(
    "difference_test",
    _whole_numbers,
    lambda anchor, scores, theta: (anchor[:, None] - scores <= theta).any(0),
    (
        (
            lambda anchor, scores, theta: (anchor[:, None] - scores < theta).any(0),
            "Keys that lie exactly θ below are missing: the test is inclusive, at most θ.",
        ),
        (
            lambda anchor, scores, theta: (anchor[:, None] - scores <= theta).all(0),
            "This keeps a key when all blocks ask for it. One block of the group is enough.",
        ),
        (
            lambda anchor, scores, theta: (anchor[:, None] - scores >= theta).any(0),
            "The test is turned round: keys far below the anchor are those to drop.",
        ),
        (
            lambda anchor, scores, theta: anchor.mean() - scores.mean(0) <= theta,
            "The blocks are averaged. Each block asks for itself, with its own mean anchor.",
        ),
        (
            lambda anchor, scores, theta: ((anchor[:, None] - scores).abs() <= theta).any(0),
            "Keys far above the anchor are missing: their difference is negative, and a negative "
            "number is at most θ. Ask for nothing else.",
        ),
    ),
    axes=("", "candidate"),
)


def _mask(random: torch.Generator) -> tuple[Tensor]:
    mask = torch.rand(4, 12, generator=random) < 0.3
    mask[0] = False  # the first group has no candidates
    return (mask,)


def _compact(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    plan = StripePlan.from_mask(mask[None, None])
    return plan.counts[0, 0], plan.offsets[0, 0], plan.indices


COMPACT = Exercise(
    "compact",
    _mask,
    _compact,
    (
        (
            lambda mask: (mask.sum(1), mask.sum(1).cumsum(0), mask.nonzero()[:, 1]),
            "These offsets are where each list ends. A list starts where the one before it ends: "
            "take its own count off.",
        ),
        (
            lambda mask: (_compact(mask)[0], _compact(mask)[1], mask.flatten().nonzero()[:, 0]),
            "These positions count through all groups. An index is a key's column, the same in "
            "every group.",
        ),
        (
            lambda mask: (_compact(mask)[0], _compact(mask)[1], mask.T.nonzero()[:, 0]),
            "The lists are sorted by key first. All keys of group 0 come first, then those of "
            "group 1.",
        ),
    ),
    parts=("counts", "offsets", "indices"),
    axes=("", "place"),
)

SELECTION = (WINDOW, CANDIDATES, ROW_ANCHOR, POOL, DIFFERENCE, COMPACT)
