"""Two loops to be written in Triton. Only tensors come and go here: Triton stays in the notebook.

Answers compute in float32, on the CPU under Triton's interpreter or on a GPU. A kernel that lacks
a mask reads and writes beyond its tensors, which could end the notebook's process. So inputs and
output are the first rows of longer tensors, and what lies behind the output is checked too.
"""

import torch
from torch import Tensor

from anchor_lab.exercises.exercise import Exercise

TILE = 16  # of the exercises' text
ROOM = 32 * TILE  # rows that a program for each index, without any mask, would reach
UNTOUCHED = 12345.0  # what memory holds before a kernel has run


def _device() -> str:
    """Where the kernels run: where the interpreter was asked for, on the CPU."""
    import os

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return "cuda" if torch.cuda.is_available() and not interpreted else "cpu"


def _filled(function, *inputs: Tensor, rows: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What an answer wrote on the first rows of a long tensor, and on the next tile of it."""
    room = torch.full((ROOM, *shape), UNTOUCHED, device=inputs[0].device)
    function(*inputs, room[:rows])
    return room[:rows], room[rows : rows + TILE]


def _rows(random: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(ROOM, 8, generator=random)
    m = int(torch.randint(17, 32, (), generator=random))  # never a multiple of the tile
    index = torch.randperm(ROOM, generator=random).to(torch.int32)
    index[:m] = index[:m].sort().values
    return x.to(_device()), index.to(_device())[:m]


def _unmasked(out: Tensor) -> Tensor:
    """Whole tiles of `out` and of what lies behind it."""
    return out.as_strided((-(-len(out) // TILE) * TILE, *out.shape[1:]), out.stride())


def _no_mask(x: Tensor, index: Tensor, out: Tensor) -> None:
    _unmasked(out).copy_(x[_unmasked(index).long()])


def _no_store_mask(x: Tensor, index: Tensor, out: Tensor) -> None:
    _unmasked(out).copy_(x[0])
    out.copy_(x[index.long()])


def _whole_tiles(x: Tensor, index: Tensor, out: Tensor) -> None:
    whole = len(index) // TILE * TILE
    out[:whole] = x[index[:whole].long()]


def _neighbours(x: Tensor, index: Tensor, out: Tensor) -> None:
    out.copy_(x[(int(index[0]) + torch.arange(len(index), device=x.device)) % len(x)])


_NOTHING = (
    lambda *given: None,
    "Nothing was written. Fill `out`: that takes a launch, and `tl.store` in the kernel.",
)

GATHER = Exercise(
    "gather_rows",
    _rows,
    lambda x, index, out: out.copy_(x[index.long()]),
    (
        _NOTHING,
        (
            lambda x, index, out: out.copy_(x[: len(index)]),
            "These are the first rows of x. Load the tile of `index`, and make the row pointers "
            "from what was loaded.",
        ),
        (
            _neighbours,
            "These are neighbouring rows from the first index on. The rows are scattered: each "
            "has an index of its own.",
        ),
        (
            _whole_tiles,
            "The last tile is missing: there are M indices, and M is no multiple of the tile. "
            "Start one more program and mask what lies beyond M.",
        ),
        (
            _no_mask,
            "The rows are right, but the last tile goes on behind them: it reads indices and "
            "writes rows that are not yours. Mask what lies beyond M.",
        ),
        (
            _no_store_mask,
            "The rows are right, but the last tile writes behind them, on memory that is not "
            "yours. The store needs the mask as well.",
        ),
    ),
    parts=("rows", "memory behind the rows"),
    axes=("row", "dimension"),
    call=lambda answer, x, index: _filled(answer, x, index, rows=len(index), shape=x.shape[1:]),
    tolerance=1e-6,
    draws=4,
)


def _long_rows(random: torch.Generator) -> tuple[Tensor]:
    """Rows whose largest score comes late, and is far too large for e^s in float32."""
    scores = torch.randn(ROOM, 41, generator=random) * 10
    scores[:3, 30:] += 120
    scores[3:] -= 120
    return (scores.to(_device())[:6],)


def _stored(formula):
    """An answer that fills `out` with what a formula makes of the scores."""
    return lambda scores, out: out.copy_(formula(scores))


def _no_rescale(scores: Tensor) -> Tensor:
    m = torch.full_like(scores[:, 0], -torch.inf)
    total = torch.zeros_like(m)
    for tile in scores.split(TILE, 1):
        m = torch.maximum(m, tile.amax(1))
        total = total + (tile - m[:, None]).exp().sum(1)
    return m + total.log()


def _into_next_row(columns: int):
    """The sum over so many columns, where a row has 41."""
    return lambda scores: scores.as_strided((6, columns), (41, 1)).logsumexp(-1)


ONLINE = Exercise(
    "online_logsumexp",
    _long_rows,
    _stored(lambda scores: scores.logsumexp(-1)),
    (
        _NOTHING,
        (
            _stored(lambda scores: scores.exp().sum(-1).log()),
            "e^120 is beyond float32, e^(−120) is nothing: ±inf. Keep a running maximum m and add "
            "up e^(s − m).",
        ),
        (
            _stored(_no_rescale),
            "The sum so far is measured from the old maximum. When a tile brings a larger one, "
            "multiply the sum by e^(m_old − m_new) before you add.",
        ),
        (
            _stored(lambda scores: torch.nn.functional.pad(scores, (0, 7)).logsumexp(-1)),
            "Columns beyond the row's end are counted as scores of 0. Load them as −inf: "
            "`other=float('-inf')`.",
        ),
        (
            _stored(_into_next_row(48)),
            "The last tile goes on into the next row. Mask the columns beyond the row's end, and "
            "load them as −inf.",
        ),
        (
            _stored(_into_next_row(42)),
            "One column of the next row is counted. The last column is N − 1: mask with `< N`.",
        ),
        (
            _stored(lambda scores: scores[:, :32].logsumexp(-1)),
            "The last tile is missing: 41 columns are two tiles of 16 and a part of a third.",
        ),
        (
            _stored(lambda scores: scores.amax(-1)),
            "This is the maximum alone: the logarithm of the sum is to be added.",
        ),
        (
            _stored(lambda scores: scores.logsumexp(-1) - scores.amax(-1)),
            "This is the logarithm of the sum alone, which is measured from the maximum: add m.",
        ),
    ),
    parts=("sums", "memory behind the sums"),
    axes=("", "row"),
    call=lambda answer, scores: _filled(answer, scores, rows=len(scores), shape=()),
    tolerance=1e-5,
    draws=3,
)

KERNELS = (GATHER, ONLINE)
