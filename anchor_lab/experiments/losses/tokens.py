"""Which tokens a text repeats, and from how far: those that sparse attention may lose."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

FAR, NEAR, NEW = "repeated from far", "repeated from near", "new"
CLASSES = (FAR, NEAR, NEW)


def classes_of(tokens: Sequence[int], near: int) -> Int[Tensor, "L"]:
    """What each token after the first is.

    A token is repeated when it has followed the same two tokens before; from near when the latest
    such place lies no more than `near` tokens back. The first two have no two tokens before them
    and are new.

    Args:
        tokens: N token ids.
        near: tokens, at least 1.

    Returns:
        Places in `CLASSES`, of token 1, 2, ..., N - 1.

    Raises:
        ValueError: `near` is below 1.
    """
    if near < 1:
        raise ValueError(f"near must be at least 1, got {near}")
    latest: dict[tuple[int, int, int], int] = {}
    found = []
    for place in range(1, len(tokens)):
        three = tuple(tokens[place - 2 : place + 1]) if place >= 2 else None
        before = latest.get(three)
        if before is None:
            found.append(CLASSES.index(NEW))
        else:
            found.append(CLASSES.index(NEAR if place - before <= near else FAR))
        if three is not None:
            latest[three] = place
    return torch.tensor(found, dtype=torch.int64)
