"""How far a share found in a few trials may be from the share itself."""

from math import sqrt

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
