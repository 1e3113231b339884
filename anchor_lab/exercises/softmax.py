"""Merge two softmax states; go on with gathered keys."""

import torch
from torch import Tensor

from anchor_lab.exercises.exercise import Exercise
from anchor_ref.heads import scaled_scores
from anchor_ref.online_softmax import SoftmaxState, merge, normalise, partial_softmax


def _states(random: torch.Generator) -> tuple[SoftmaxState, SoftmaxState]:
    """Two parts of four rows; in row 1 the second part saw no key, in row 2 neither did."""
    states = []
    for keys, empty in ((3, [2]), (5, [1, 2])):
        scores = 3 * torch.randn(4, keys, generator=random, dtype=torch.float64)
        scores[empty] = -torch.inf
        values = torch.randn(keys, 2, generator=random, dtype=torch.float64)
        states.append(partial_softmax(scores, values))
    return states[0], states[1]


def _merged(weight):
    """`merge` with other weights of (part, its maximum, the new maximum)."""

    def wrong(a: SoftmaxState, b: SoftmaxState) -> SoftmaxState:
        m = torch.maximum(a.max, b.max)
        (sum_a, acc_a), (sum_b, acc_b) = (weight(part.max, m) for part in (a, b))
        return SoftmaxState(
            m,
            sum_a * a.sum + sum_b * b.sum,
            acc_a.unsqueeze(-1) * a.acc + acc_b.unsqueeze(-1) * b.acc,
        )

    return wrong


def _shift(part: Tensor, m: Tensor) -> Tensor:
    return (part - m.where(m > -torch.inf, torch.zeros_like(m))).exp()


MERGE = Exercise(
    "merge",
    _states,
    merge,
    (
        (
            _merged(lambda part, m: 2 * (torch.ones_like(m),)),
            "The sums are added as they are, but each is measured from the maximum of its own "
            "part. Bring both to the new maximum first: times e^(m_part − m).",
        ),
        (
            _merged(lambda part, m: (_shift(part, m), torch.ones_like(m))),
            "The sum is right. acc is measured from its part's maximum as well: the same factor.",
        ),
        (
            _merged(lambda part, m: 2 * ((part - m).exp(),)),
            "Right wherever a key was seen. Where neither part has seen one both maxima are −∞, "
            "and −∞ − (−∞) is NaN: measure from 0 there.",
        ),
        (
            _merged(lambda part, m: 2 * (1 / _shift(part, m),)),
            "The factor is upside down: a part with the smaller maximum must shrink.",
        ),
    ),
    parts=("max", "sum", "acc"),
    axes=("row", "value"),
)


def _stage_3(random: torch.Generator) -> tuple:
    """Four queries, a state of three keys, and two stripes among nine other keys."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    state = partial_softmax(2 * normal(4, 3), normal(3, 2))
    q, k, v = 2 * normal(4, 8), normal(9, 8), normal(9, 2)
    return state, q, k, v, torch.randperm(9, generator=random)[:2].sort().values, 0.5


def _finish(
    state: SoftmaxState, q: Tensor, k: Tensor, v: Tensor, stripes: Tensor, scale: float
) -> Tensor:
    scores = scaled_scores(q, k[stripes], scale)
    return normalise(merge(state, partial_softmax(scores, v[stripes])))


def _stripes_alone(state, q, k, v, stripes, scale):
    return (scale * q @ k[stripes].T).softmax(-1) @ v[stripes]


def _mean_of_two(state, q, k, v, stripes, scale):
    first = state.acc / state.sum.unsqueeze(-1)
    return (first + _stripes_alone(state, q, k, v, stripes, scale)) / 2


def _not_shrunk(state, q, k, v, stripes, scale):
    part = partial_softmax(scaled_scores(q, k[stripes], scale), v[stripes])
    return (state.acc + part.acc) / (state.sum + part.sum).unsqueeze(-1)


FINISH = Exercise(
    "finish",
    _stage_3,
    _finish,
    (
        (
            _stripes_alone,
            "A softmax over the stripes alone: stage 1's state is not used. Merge the two.",
        ),
        (
            _mean_of_two,
            "The mean of two softmaxes is no softmax of both: the part with larger scores must "
            "weigh more. Merge the states, and divide by the sum last.",
        ),
        (
            _not_shrunk,
            "The sums are added as they are, but each is measured from the maximum of its own "
            "part. Bring both to one maximum first, as `merge` does.",
        ),
        (
            lambda *given: _finish(*given[:-1], 1.0),
            "The scores lack the factor `scale`.",
        ),
        (
            lambda *given: _finish(*given[:4], torch.arange(len(given[4])), given[5]),
            "These are the first keys of k. `stripes` holds positions: gather k[stripes] and "
            "v[stripes].",
        ),
    ),
    axes=("query", "value"),
)

SOFTMAX = (MERGE, FINISH)
