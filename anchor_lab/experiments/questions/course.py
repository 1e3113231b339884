"""What the shortcuts of stage 2 cost on single heads, as a notebook prints it."""

from collections.abc import Mapping, Sequence

from anchor_lab.analysis.pooling import TESTS, Kept
from anchor_lab.drawing.lessons.place import name_of
from anchor_lab.experiments.course import columns
from anchor_models.capture import Captured
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import rows_beyond

Points = dict[str, tuple[float, float]]


def data_heads(
    heads: Sequence[tuple[Captured, int, Mapping[str, Kept]]], config: AnchorConfig
) -> dict[str, Points]:
    """By head and test its density, and its mean recall over the rows beyond the first group.

    Args:
        heads: layer, place of the query head in it, and what `compare_tests` found of the layer.
        config: sizes.
    """
    found: dict[str, Points] = {}
    for x, place, tests in heads:
        n = x.q.shape[2]
        beyond = rows_beyond(config, n, n)
        found[name_of(x, place)] = {
            name: (float(kept.density[0, place]), float(kept.recall[0, place, beyond].mean()))
            for name, kept in tests.items()
        }
    return found


def tests_table(points: Mapping[str, Points]) -> str:
    """`data_heads` as text: recall at density, a line for each test."""
    look = {"first": 9, "other": 19}
    lines = [
        columns(
            name, *(f"{of[name][1]:.3f} at {of[name][0]:.2f}" for of in points.values()), **look
        )
        + f"   {what}"
        for name, what in TESTS.items()
    ]
    return "\n".join([columns("", *points, **look), *lines])
