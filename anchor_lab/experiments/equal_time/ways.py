"""The ways to choose stripes that are compared: the method as published, and rows that are asked.

"R = 4, 7/5" asks four evenly spaced rows of each block, with θ = 7 for the mean and θ₂ = 5 for the
rows. "by head" has a threshold for each head, which means and rows share.
"""

from collections.abc import Callable
from dataclasses import dataclass

from anchor_lab.experiments.outliers.variants import tests
from anchor_lab.methods.outliers import Extension, OutlierRows
from anchor_ref import AnchorConfig


@dataclass(frozen=True)
class Way:
    """How stripes are chosen.

    Attributes:
        name: as tables show it.
        config: None is dense attention.
        by_head: of `BY_HEAD`, and the recall beyond that thresholds are found for.
    """

    name: str
    config: AnchorConfig | None = None
    by_head: tuple[str, float] | None = None

    @property
    def published(self) -> bool:
        """Is it the method of the paper, or dense attention?"""
        return self.by_head is None and (self.config is None or not self.config.outliers)


def _rows(count: int, theta: float = 0.0, theta_2: float | None = None) -> AnchorConfig:
    return AnchorConfig(theta=theta, outliers=count, outlier_theta=theta_2, outlier_choice="even")


# A method with a threshold for each head, by the name of its choice: what finds them.
BY_HEAD: dict[str, Callable[[tuple[float, ...]], Extension]] = {
    "means": lambda thetas: OutlierRows(AnchorConfig(theta=0.0), thetas=thetas),
    "R = 4": lambda thetas: OutlierRows(_rows(4), "even", thetas),
}
RECALL = 0.95
ROWS_BY_HEAD = "R = 4, by head"
DENSE = Way("dense")
WAYS = (
    DENSE,
    *(
        Way(f"paper, θ = {theta:g}", AnchorConfig(theta=theta))
        for theta in (15.0, 12.0, 9.0, 7.0, 5.0)
    ),
    *(
        Way(tests(*pair), _rows(*pair))
        for pair in (
            (2, 7.0, 5.0),
            (2, 7.0, 7.0),
            (4, 5.0, 5.0),
            (4, 7.0, 7.0),
            (8, 5.0, 5.0),
            (8, 7.0, 7.0),
        )
    ),
    Way("means, by head", AnchorConfig(), ("means", RECALL)),
    Way(ROWS_BY_HEAD, _rows(4), ("R = 4", RECALL)),
)
