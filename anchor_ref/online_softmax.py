"""Softmax in pieces: a state that partial results merge into, without loss.

Softmax-weighted values over a set of keys are kept as

    m = max_j s_j,   l = Σ_j exp(s_j − m),   acc = Σ_j exp(s_j − m) v_j

and the states of two disjoint sets of keys give the state of their union (Milakov and Gimelshein,
2018, arXiv 1805.02867). Stage 1 leaves such a state behind and stage 3 goes on from it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_ref.heads import product


@dataclass(frozen=True, eq=False)
class SoftmaxState:
    """Softmax over the keys seen so far, one for each query.

    Attributes:
        max: m, the largest score, `[..., N]`, natural-log units; -inf when no key was seen.
        sum: l, `[..., N]`; 0 when no key was seen.
        acc: unnormalised output, `[..., N, D]`.
    """

    max: Float[Tensor, "*rows"]
    sum: Float[Tensor, "*rows"]
    acc: Float[Tensor, "*rows D"]

    def __getitem__(self, index) -> "SoftmaxState":
        """The states of some of the queries: `index` applies to the dimensions of `max`."""
        return SoftmaxState(self.max[index], self.sum[index], self.acc[index])


def partial_softmax(
    scores: Float[Tensor, "*batch N M"], v: Float[Tensor, "*batch M D"]
) -> SoftmaxState:
    """State of the M keys whose scores are given; a score of -inf stands for a hidden key.

    Args:
        scores: scaled scores, natural-log units. **Overwritten**: the exponentials take its place,
            because a second matrix of this size is what would limit the length.
        v: values of the same keys.

    Returns:
        State with rows `[*batch, N]`, in the dtype of `scores`.
    """
    if scores.shape[-1] == 0:
        return empty_state(scores.new_empty(*scores.shape[:-1], v.shape[-1]))
    row_max = scores.amax(-1)
    weights = scores.sub_(_exponent_origin(row_max).unsqueeze(-1)).exp_()
    return SoftmaxState(row_max, weights.sum(-1), product(weights, v))


def empty_state(like: Float[Tensor, "*rows D"]) -> SoftmaxState:
    """State of no keys at all, for outputs shaped as `like`: the neutral element of `merge`."""
    rows = like.shape[:-1]
    return SoftmaxState(
        like.new_full(rows, -torch.inf), like.new_zeros(rows), torch.zeros_like(like)
    )


def merge(a: SoftmaxState, b: SoftmaxState) -> SoftmaxState:
    """State of the union of two disjoint sets of keys.

    m = max(m_a, m_b),   l = e^(m_a − m) l_a + e^(m_b − m) l_b,   acc likewise
    """
    row_max = torch.maximum(a.max, b.max)
    origin = _exponent_origin(row_max)
    weight_a, weight_b = (a.max - origin).exp(), (b.max - origin).exp()
    return SoftmaxState(
        row_max,
        weight_a * a.sum + weight_b * b.sum,
        weight_a.unsqueeze(-1) * a.acc + weight_b.unsqueeze(-1) * b.acc,
    )


def normalise(state: SoftmaxState) -> Float[Tensor, "*rows D"]:
    """The attention output acc / l."""
    return state.acc / state.sum.unsqueeze(-1)


def _exponent_origin(row_max: Tensor) -> Tensor:
    # A row that saw no key has the maximum -inf, and -inf − (-inf) is NaN: measure from 0 instead.
    return row_max.masked_fill(row_max == -torch.inf, 0.0)
