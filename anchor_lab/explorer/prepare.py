"""One dense pass over a head, and what of it is kept so that every later look is cheap.

A map of 16384 tokens is 134 million pairs: too many for each move of a slider. One pass keeps what
cannot be had from a few of them: the softmax denominator of every row, the row anchors for each
step, and the map pooled by maximum to at most 1024 cells a side, then halved again and again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.heads import causal_scores
from anchor_ref.regions import groups

STEPS = (1, 2, 4, 8, 16)
CELLS = 1024  # a side of the finest pooled map, at most


@dataclass(frozen=True, eq=False)
class PreparedHead:
    """A head with what one dense pass found.

    Attributes:
        q, k: queries and keys, `[N, D]` float32.
        scale: factor of q·k.
        log_sum: ln Σ_j exp(s_ij) over all earlier keys, `[N]`.
        anchors: for each step the row anchors a_i, `[N]`.
        levels: log10 of the largest attention weight in each cell, float16, finest map first;
            -inf where every key comes later. Each level halves the one before.
        cell: tokens to a side of a cell of the finest level, a power of two.
    """

    q: Float[Tensor, "N D"]
    k: Float[Tensor, "N D"]
    scale: float
    log_sum: Float[Tensor, "N"]
    anchors: dict[int, Float[Tensor, "N"]]
    levels: tuple[Float[Tensor, "_ _"], ...]
    cell: int


def prepare_head(
    q: Float[Tensor, "N D"],
    k: Float[Tensor, "N D"],
    scale: float,
    steps: Sequence[int] = STEPS,
    *,
    cells: int = CELLS,
) -> PreparedHead:
    """The dense pass: every causal pair is scored once, a block of rows at a time.

    Args:
        q, k: one head's queries and keys, `[N, D]`, on the CPU, where all that looks at them is.
        scale: factor of q·k.
        steps: values of `AnchorConfig.step` to find the anchors for; the other sizes are the
            default ones.
        cells: a side of the finest map, at most; a power of two.

    Returns:
        `PreparedHead`, computed in float32.

    Raises:
        ValueError: `cells` is no power of two, or queries or keys are not on the CPU.
    """
    if cells < 1 or cells & (cells - 1):
        raise ValueError(f"cells must be a power of two, got {cells}")
    if {q.device.type, k.device.type} != {"cpu"}:
        raise ValueError(f"q and k must be on the CPU, got {q.device} and {k.device}")
    n, block = len(q), AnchorConfig().block_size
    q, k = q.float(), k.float()
    cell = 2 ** max(0, math.ceil(math.log2(n / cells)))
    side = -(-n // cell)
    log_sum, finest = torch.empty(n), torch.full((side, side), -torch.inf)
    anchors = {step: torch.empty(n) for step in steps}
    regions = {step: _group_of_block(n, step) for step in steps}
    for number, start in enumerate(range(0, n, block)):
        rows = slice(start, min(start + block, n))
        one_head = q[None, None, rows], k[None, None, : rows.stop]
        scores = causal_scores(*one_head, scale)[0, 0]  # [b, keys]
        log_sum[rows] = scores.logsumexp(-1)
        by_block = pool_max(scores, 1, block)  # the regions are made of whole blocks
        for step, found in regions.items():
            group = found[number]
            first = by_block[:, : len(group.init) // block]
            window = by_block[:, group.window_start // block :]
            anchors[step][rows] = torch.cat([first, window], 1).amax(1)
        scores -= log_sum[rows, None]  # now the logarithm of the weight
        pooled = pool_max(scores, min(cell, len(scores)), cell)
        place = finest[start // cell : start // cell + len(pooled), : pooled.shape[1]]
        torch.maximum(place, pooled, out=place)  # a cell may be higher than a block
    # float16 holds every logarithm to a hundredth of a decade, at half the memory.
    levels = [(finest / math.log(10)).half()]
    while len(levels[-1]) > 64:
        levels.append(pool_max(levels[-1], 2, 2))
    return PreparedHead(q, k, scale, log_sum, anchors, tuple(levels), cell)


def _group_of_block(n: int, step: int) -> list:
    """The group that each query block belongs to."""
    return [group for group in groups(AnchorConfig(step=step), n, n) for _ in group.blocks]


def pool_max(x: Float[Tensor, "N M"], height: int, width: int) -> Float[Tensor, "_ _"]:
    """Maximum of each cell of `height` rows and `width` keys; the last ones may be smaller."""
    cells = (height, width)
    return torch.nn.functional.max_pool2d(x[None, None], cells, ceil_mode=True)[0, 0]
