"""Six tokens whose every number fits on a screen: the example that the course comes back to.

    <s>  Ada  wrote  code  and  she

The four dimensions mean something. Of a key: is it the start, a person, a thing, a verb? Of a
query: how much does it look for one? Blocks of one query, two blocks a group, so that six tokens
have three groups, and in the last one all of it: initial region, window, stripes, a skipped key.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_ref.config import AnchorConfig

# Queries of two heads that share one key head. The first looks for what a word refers to, the
# second always for a verb.
REFERS = [[2, 0, 0, 0], [2, 2, 0, 0], [2, 3, 0, 2], [2, 0, 1, 3], [2, 0, 5, 1], [2, 3, -3, 0]]
VERBS = [[1, 0, 0, 3]] * 6
KEYS = [[4, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 2], [0, 0, 2, 0], [1, 0, 0, 2], [-1, 2, 0, 0]]
VALUES = [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]


@dataclass(frozen=True, eq=False)
class SixTokens:
    """Queries, keys and values typed by hand.

    Attributes:
        words: the six tokens.
        q: `[1, 2, 6, 4]`; scores of the first head are whole numbers.
        k, v: `[1, 1, 6, 4]`.
        scale: 1/2, which is 1/sqrt(D).
        config: blocks of one query, groups of two, θ = 2.
    """

    words: tuple[str, ...]
    q: Float[Tensor, "1 2 6 4"]
    k: Float[Tensor, "1 1 6 4"]
    v: Float[Tensor, "1 1 6 4"]
    scale: float
    config: AnchorConfig


def six_tokens(dtype: torch.dtype = torch.float64) -> SixTokens:
    """The example, in float64 unless asked otherwise: by hand means exact."""
    return SixTokens(
        words=("<s>", "Ada", "wrote", "code", "and", "she"),
        q=torch.tensor([[REFERS, VERBS]], dtype=dtype),
        k=torch.tensor([[KEYS]], dtype=dtype),
        v=torch.tensor([[VALUES]], dtype=dtype),
        scale=0.5,
        config=AnchorConfig(block_size=1, step=2, theta=2.0),
    )
