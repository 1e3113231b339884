"""Two loops to be written in Triton. Only tensors come and go here: Triton stays in the notebook.

Answers compute in float32, on the CPU under Triton's interpreter or on a GPU.
"""

import torch
from torch import Tensor

from anchor_ref.exercises.exercise import Exercise


def _device() -> str:
    """Where the kernels run: where the interpreter was asked for, on the CPU."""
    import os

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return "cuda" if torch.cuda.is_available() and not interpreted else "cpu"


def _rows(random: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(40, 8, generator=random)
    m = int(torch.randint(17, 32, (), generator=random))  # never a multiple of 16
    index = torch.randperm(40, generator=random)[:m].sort().values.to(torch.int32)
    return x.to(_device()), index.to(_device())


def _whole_tiles(x: Tensor, index: Tensor) -> Tensor:
    out = x[index.long()]
    out[len(index) // 16 * 16 :] = 0
    return out


GATHER = Exercise(
    "gather_rows",
    _rows,
    lambda x, index: x[index.long()],
    (
        (
            lambda x, index: x[: len(index)],
            "These are the first rows of x. Load the tile of `index`, and make the row pointers "
            "from what was loaded.",
        ),
        (
            lambda x, index: x[(int(index[0]) + torch.arange(len(index), device=x.device)) % 40],
            "These are neighbouring rows from the first index on. The rows are scattered: each "
            "has an index of its own.",
        ),
        (
            _whole_tiles,
            "The last tile is missing: there are M indices, and M is no multiple of the tile. "
            "Start one more program and mask what lies beyond M.",
        ),
    ),
    axes=("row", "dimension"),
    tolerance=1e-6,
    draws=4,
)


def _long_rows(random: torch.Generator) -> tuple[Tensor]:
    """Rows whose largest score comes late, and is far too large for e^s in float32."""
    scores = torch.randn(6, 41, generator=random) * 10
    scores[:3, 30:] += 120
    scores[3:] -= 120
    return (scores.to(_device()),)


def _no_rescale(scores: Tensor) -> Tensor:
    m = torch.full_like(scores[:, 0], -torch.inf)
    total = torch.zeros_like(m)
    for tile in scores.split(16, 1):
        m = torch.maximum(m, tile.amax(1))
        total = total + (tile - m[:, None]).exp().sum(1)
    return m + total.log()


ONLINE = Exercise(
    "online_logsumexp",
    _long_rows,
    lambda scores: scores.logsumexp(-1),
    (
        (
            lambda scores: scores.exp().sum(-1).log(),
            "e^120 is beyond float32, e^(−120) is nothing: ±inf. Keep a running maximum m and add "
            "up e^(s − m).",
        ),
        (
            _no_rescale,
            "The sum so far is measured from the old maximum. When a tile brings a larger one, "
            "multiply the sum by e^(m_old − m_new) before you add.",
        ),
        (
            lambda scores: torch.nn.functional.pad(scores, (0, 7)).logsumexp(-1),
            "Columns beyond the row's end are counted as scores of 0. Load them as −inf: "
            "`other=float('-inf')`.",
        ),
        (
            lambda scores: scores[:, :32].logsumexp(-1),
            "The last tile is missing: 41 columns are two tiles of 16 and a part of a third.",
        ),
        (
            lambda scores: scores.amax(-1),
            "This is the maximum alone: the logarithm of the sum is to be added.",
        ),
    ),
    axes=("", "row"),
    tolerance=1e-5,
    draws=3,
)

KERNELS = (GATHER, ONLINE)
