"""What is compared: the method as published, outlier rows, and what else could do their work.

A variant has a name, as tables show it, and a method for each layer. "R = 4, 7/5" asks four rows
of a block, with θ = 7 for the mean and θ₂ = 5 for the rows; a dash in place of θ: the rows alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from anchor_lab.methods.outliers import (
    Extension,
    NearStripes,
    OutlierRows,
    SharedStripes,
    StripeBudget,
    TwoMeans,
)
from anchor_ref import AnchorConfig

BLOCK = AnchorConfig().block_size
EVENLY = "evenly spaced"
TARGETS = (0.95,)  # recall beyond that heads are calibrated to
GRID = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 11.0, 13.0, 16.0)


@dataclass(frozen=True)
class Variant:
    """A way to choose stripes.

    Attributes:
        name: as tables show it.
        method: of each layer; for a variant with one for all layers a single one.
        long: whether long prompts are read in this way too.
    """

    name: str
    method: Extension | dict[int, Extension]
    long: bool = False

    def at(self, layer: int) -> Extension:
        """The method of a layer."""
        return self.method[layer] if isinstance(self.method, dict) else self.method


def rows(count: int, theta: float, theta_2: float | None = None) -> AnchorConfig:
    """Sizes as published, with outlier rows; with none of them the method as published."""
    return AnchorConfig(theta=theta, outliers=count, outlier_theta=theta_2)


def tests(count: int, theta: float, theta_2: float) -> str:
    """ "R = 4, 7/5" """
    shown = "–" if theta == -inf else f"{theta:g}"
    return f"R = {count}, {shown}/{theta_2:g}"


def _paper() -> list[Variant]:
    return [
        # Without a row it is the method, stripe for stripe.
        Variant(f"paper, θ = {theta:g}", OutlierRows(rows(0, theta)), theta in (12, 9, 7, 5))
        for theta in (12.0, 10.5, 9.0, 8.0, 7.0, 5.0)
    ]


def _rows() -> list[Variant]:
    pairs = [
        (1, 7.0, 6.0),
        (2, 7.0, 5.0),
        (2, 7.0, 7.0),
        (4, 5.0, 5.0),
        (4, 7.0, 5.0),
        (4, 7.0, 6.0),
        (4, 7.0, 7.0),
        (4, 9.0, 5.0),
        (8, 5.0, 5.0),
        (8, 5.0, 6.0),
        (8, 7.0, 7.0),
        (4, -inf, 5.0),
        (4, -inf, 7.0),
    ]
    long = {(2, 7.0, 5.0), (4, 5.0, 5.0), (4, 7.0, 7.0), (4, 9.0, 5.0), (8, 5.0, 5.0)}
    return [Variant(tests(*pair), OutlierRows(rows(*pair)), pair in long) for pair in pairs]


def _chosen() -> list[Variant]:
    said = {
        "distance": "by distance",
        "anchor": "of the lowest anchor",
        "random": "at random",
        "group": "by cosine to the group's mean",
        "even": "evenly spaced",
    }
    return [
        Variant(f"{tests(4, 7.0, 5.0)}, {words}", OutlierRows(rows(4, 7.0, 5.0), by), by == "even")
        for by, words in said.items()
    ]


def _even() -> list[Variant]:
    pairs = [(2, 7.0, 7.0), (4, 5.0, 5.0), (4, 7.0, 7.0), (8, 7.0, 5.0), (8, 5.0, 5.0)]
    pairs += [(8, 7.0, 7.0), (16, 5.0, 3.0), (16, 5.0, 5.0)]
    long = {(4, 7.0, 7.0), (8, 5.0, 5.0), (16, 5.0, 3.0)}
    return [
        Variant(f"{tests(*pair)}, {EVENLY}", OutlierRows(rows(*pair), "even"), pair in long)
        for pair in pairs
    ]


def _near() -> list[Variant]:
    found = [
        Variant(f"near {keys}, θ = {theta:g}", NearStripes(OutlierRows(rows(0, theta)), keys),
                (keys, theta) in ((256, 12), (256, 9)))
        for keys, theta in ((128, 9.0), (256, 12.0), (256, 9.0), (256, 7.0), (512, 9.0))
    ]  # fmt: skip
    pairs = [(4, 7.0, 5.0), (8, 5.0, 5.0), (16, 5.0, 3.0)]
    return found + [
        Variant(
            f"near 256, {tests(*pair)}, {EVENLY}",
            NearStripes(OutlierRows(rows(*pair), "even"), 256),
            pair == (8, 5.0, 5.0),
        )
        for pair in pairs
    ]


def _bound() -> list[Variant]:
    return [
        Variant(f"all rows, θ₂ = {theta:g}", OutlierRows(rows(BLOCK, -inf, theta)), theta == 3)
        for theta in (2.0, 3.0, 5.0)
    ]


def _means() -> list[Variant]:
    return [
        Variant(f"two means, θ = {theta:g}", TwoMeans(rows(0, theta)), theta == 7)
        for theta in (9.0, 7.0, 5.0)
    ]


def _budget() -> list[Variant]:
    found = []
    for share in (0.1, 0.2, 0.3):
        found += [
            Variant(f"budget {share:g}, means alone", StripeBudget(share, rows(0, 7.0))),
            Variant(
                f"budget {share:g}, R = 4", StripeBudget(share, rows(4, 7.0, 6.0)), share < 0.2
            ),
        ]
    return found


def _shared() -> list[Variant]:
    return [
        Variant("shared, θ = 7", SharedStripes(rows(0, 7.0))),
        Variant("shared, θ = 5", SharedStripes(rows(0, 5.0))),
        *(
            Variant(f"shared, {tests(*pair)}", SharedStripes(rows(*pair)), pair == (4, 3.0, 3.0))
            for pair in ((2, 5.0, 3.0), (4, 3.0, 3.0), (4, 5.0, 5.0))
        ),
    ]


FIXED: dict[str, Callable[[], list[Variant]]] = {
    "paper": _paper,
    "rows": _rows,
    "chosen": _chosen,
    "even": _even,
    "near": _near,
    "bound": _bound,
    "means": _means,
    "budget": _budget,
    "shared": _shared,
}
CALIBRATED = "calibrated"
CALIBRATIONS: dict[str, Callable[[tuple[float, ...]], Extension]] = {
    "means alone": lambda thetas: OutlierRows(rows(0, 0.0), thetas=thetas),
    "R = 4": lambda thetas: OutlierRows(rows(4, 0.0), thetas=thetas),
    f"R = 4, {EVENLY}": lambda thetas: OutlierRows(rows(4, 0.0), "even", thetas),
    f"near 256, R = 4, {EVENLY}": lambda thetas: NearStripes(
        OutlierRows(rows(4, 0.0), "even", thetas), 256
    ),
}


def calibrated_name(choice: str, target: float) -> str:
    """Of a variant with a threshold for each head."""
    return f"calibrated to {target:g}, {choice}"


def calibrated(choice: str, target: float, thetas: Sequence[Sequence[float]]) -> Variant:
    """A threshold for each layer's heads, for their means and their outlier rows alike.

    Args:
        choice: of `CALIBRATIONS`.
        target: recall beyond.
        thetas: by layer and head.
    """
    method = {layer: CALIBRATIONS[choice](tuple(heads)) for layer, heads in enumerate(thetas)}
    return Variant(calibrated_name(choice, target), method, long=True)
