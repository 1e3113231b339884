"""Scores of all keys, a few query rows at a time, for the oracles.

An oracle sees every score before it chooses and saves no work: it is the best that its kind of
choice can do. Equal scores or masses are decided for the earlier one. A NaN among the scores keeps
what cannot be compared.
"""

from collections.abc import Iterator

from torch import Tensor

from anchor_ref.heads import causal_scores
from anchor_ref.inputs import check_compute_dtype
from anchor_ref.regions import causal_pairs

SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)  # of mass, in the sweeps


def all_scored(n: int) -> float:
    """An oracle forms the score of every causal pair, and no product with a value."""
    return causal_pairs(n) / 2


def scores_of_rows(
    q: Tensor, k: Tensor, scale: float, rows: range, size: int
) -> Iterator[tuple[range, Tensor]]:
    """Scores `[B, Hq, R, M]` of `size` rows at a time, over the keys up to the last row's own."""
    dtype = check_compute_dtype(None, q.dtype)
    for start in range(rows.start, rows.stop, size):
        part = range(start, min(start + size, rows.stop))
        q_rows = q[:, :, part.start : part.stop].to(dtype)
        yield part, causal_scores(q_rows, k[:, :, : part.stop].to(dtype), scale)
