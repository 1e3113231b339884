"""What a selection is judged by: recall of a row, density."""

import torch
from torch import Tensor

from anchor_lab.exercises.exercise import Exercise


def _row(random: torch.Generator) -> tuple[Tensor, Tensor]:
    scores = 3 * torch.randn(16, generator=random, dtype=torch.float64) + 800
    kept = torch.rand(16, generator=random) < 0.4
    kept[0] = True
    return scores, kept


RECALL = Exercise(
    "recall",
    _row,
    lambda scores, kept: scores.softmax(0)[kept].sum(),
    (
        (
            lambda scores, kept: kept.double().mean(),
            "This is the share of keys. Recall is the share of mass: a key counts as much as it "
            "weighs in the softmax over all keys.",
        ),
        (
            lambda scores, kept: torch.ones((), dtype=torch.float64),
            "1 always: the softmax was taken over the kept keys alone. Take it over all keys, "
            "then add up those kept.",
        ),
        (
            lambda scores, kept: scores.exp()[kept].sum() / scores.exp().sum(),
            "The exponentials overflow: e^800 is inf, and inf / inf is NaN. Take the largest "
            "score off first; a constant added to all scores of a row changes nothing.",
        ),
        (
            lambda scores, kept: scores[kept].sum() / scores.sum(),
            "These are shares of scores. Mass is what softmax makes of them.",
        ),
    ),
)


def _causal(random: torch.Generator) -> tuple[Tensor]:
    n = int(torch.randint(6, 12, (), generator=random))
    kept = (torch.rand(n, n, generator=random) < 0.4) | torch.eye(n, dtype=torch.bool)
    return (kept.tril(),)


def _per_row(kept: Tensor) -> Tensor:
    return (kept.sum(1) / torch.arange(1, len(kept) + 1)).double().mean()


DENSITY = Exercise(
    "density",
    _causal,
    lambda kept: kept.sum().double() / (len(kept) * (len(kept) + 1) / 2),
    (
        (
            lambda kept: kept.double().mean(),
            "This divides by the full square. Half of it can never be seen: there are N(N+1)/2 "
            "causal pairs, and dense attention must have density 1.",
        ),
        (
            _per_row,
            "This is a mean over rows of each row's share. Work counts pairs: a long row counts "
            "more than a short one.",
        ),
        (
            lambda kept: 1 - kept.sum().double() / (len(kept) * (len(kept) + 1) / 2),
            "This is sparsity, what is left out: 1 − density.",
        ),
        (
            lambda kept: kept.sum().double() / (len(kept) * (len(kept) - 1) / 2),
            "N(N−1)/2 pairs are those without the diagonal. A token sees itself too: N(N+1)/2.",
        ),
    ),
    tolerance=1e-6,  # PyTorch divides counts in float32
)

MEASURES = (RECALL, DENSITY)
