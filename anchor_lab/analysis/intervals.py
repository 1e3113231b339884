"""How far a share or a mean that was found in a sample may be from the true one."""

from collections.abc import Sequence
from math import sqrt

import torch

DRAWS = 2000  # of a bootstrap
Z = 1.96  # standard deviations on either side that hold 95 % of a normal distribution


def wilson(share: float, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a share found in so many independent trials.

    (p + z²/2n ± z sqrt(p(1 − p)/n + z²/4n²)) / (1 + z²/n)

    Args:
        share: p, in [0, 1].
        trials: n, at least 1.

    Returns:
        (low, high), in [0, 1]. Unlike p ± z sqrt(p(1 − p)/n) it has a width at p = 0 and p = 1.

    Raises:
        ValueError: `share` is outside [0, 1], or `trials` is below 1.

    Source: Wilson (1927), Journal of the American Statistical Association 22.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    spread = Z * Z / trials
    half = Z * sqrt(share * (1 - share) / trials + spread / trials / 4)
    middle = share + spread / 2
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def bootstrap(
    samples: Sequence[Sequence[float]], draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95 % confidence interval of a mean over parts, by the percentile bootstrap.

    The mean of the parts' means, of numbers drawn again and again with replacement inside each
    part; the parts themselves are fixed.

    Args:
        samples: numbers of each part, such as losses of runs of tokens by text; at least one each.
        draws: how often.
        seed: of what is drawn.

    Returns:
        (low, high): the 2.5th and the 97.5th percentile.

    Raises:
        ValueError: there is no part, or one without a number.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap.
    """
    if not samples or not all(len(part) for part in samples):
        raise ValueError("samples must hold a number in each part, and have a part")
    random = torch.Generator().manual_seed(seed)
    means = torch.zeros(draws, dtype=torch.float64)
    for part in samples:
        found = torch.tensor(part, dtype=torch.float64)
        drawn = torch.randint(len(found), (draws, len(found)), generator=random)
        means += found[drawn].mean(1) / len(samples)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
