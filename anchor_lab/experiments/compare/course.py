"""What every method keeps of one real head, as the notebook shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from anchor_lab.drawing import style
from anchor_lab.drawing.lessons.place import small_print
from anchor_lab.experiments.compare.equal import BUDGETS
from anchor_lab.experiments.compare.figure import NAMES, ORACLES, colour_of, data_kept, draw_kept
from anchor_lab.experiments.compare.measure import compare_layer, sweeps
from anchor_lab.experiments.course import columns
from anchor_lab.methods import Method
from anchor_models.capture import Captured
from anchor_ref.config import AnchorConfig

PIXELS = 256  # to a side of a picture
POWER = 0.4  # of the share kept that is drawn: one column in 32 is a hint of colour, not black
BEYOND = "recall_beyond_mean"
# Place in its sweep of the setting whose density in layer 3, head 2 is nearest to 0.3.
STEPS = {
    "StreamingLLM": 3,
    "VerticalSlash": 3,
    "FlexPrefill": 2,
    "XAttention": 6,
    "SpargeAttention": 6,
    "FlashPrefill": 5,
    "AnchorAttention": 5,
    "DifferenceOracle": 8,
}


def one_head(x: Captured, place: int) -> Captured:
    """A layer cut to one query head."""
    return replace(x, q=x.q[:, place : place + 1], heads=(x.query_heads[place],))


def at_three_tenths() -> dict[str, Method]:
    """By method of `STEPS` the setting that keeps about 0.3 of the pairs of layer 3, head 2."""
    found = sweeps(list(STEPS))
    return {name: found[name][step] for name, step in STEPS.items()}


def show_masks(
    x: Captured, place: int, chosen: Mapping[str, tuple[Method, dict]], columns: int = 4
) -> None:
    """What does each method keep of the same head?

    Args:
        x, place: the head.
        chosen: by name a configuration and what was measured of it, `nearest`.
        columns: pictures in a row.
    """
    head, rows = one_head(x, place), -(-len(chosen) // columns)
    wide = min(9.6 / columns, 3.4)
    size = (wide * columns, 1.22 * wide * rows + 0.4)
    figure, axes = style.panels(rows, columns, size, squeeze=False)
    told = []
    for ax, (name, (method, row)) in zip(axes.flat, chosen.items(), strict=False):
        kept = data_kept(method.select(head.q, head.k, head.scaling), 0, PIXELS)
        draw_kept(kept**POWER, ax)
        shares = f"recall {row[BEYOND]:.2f}, density {row['density']:.2f}"
        ax.set_title(f"{name}\n{shares}", color=colour_of(name), fontsize=8.5)
        told.append(f"{name}: {shares}")
    for ax in axes.flat[len(chosen) :]:
        ax.set_axis_off()
    cell = -(-x.q.shape[2] // PIXELS)
    style.finish(
        figure,
        "What does each method keep of the same head?",
        f"Share kept of each {cell} x {cell} pairs, to the power of {POWER}; yellow: all. Recall "
        f"beyond row 2048. {small_print(x, place)}.",
        f"Triangles of what is kept, a method each. {'; '.join(told)}.",
    )


def measured(
    x: Captured, place: int, methods: Mapping[str, Method]
) -> dict[str, tuple[Method, dict]]:
    """By name each method, and its `measure.COLUMNS` on one head."""
    head = one_head(x, place)
    return {name: (m, compare_layer(head, name, [m])[0]) for name, m in methods.items()}


def densities_for(
    found: Mapping[str, Sequence[tuple[Method, dict]]], recall: float
) -> dict[str, float]:
    """The density at which each method's curve reaches a mean recall beyond the first group.

    NaN where no configuration does.
    """
    import numpy as np

    needed = {}
    for name, sweep in found.items():
        points = sorted((row[BEYOND], row["density"]) for _, row in sweep)
        recalls, densities = zip(*points, strict=True)
        needed[name] = float(np.interp(recall, recalls, densities, right=float("nan")))
    return needed


def data_grain(
    x: Captured, place: int, thetas: Mapping[type[Method], Sequence[float]]
) -> dict[str, list[tuple[Method, dict]]]:
    """`data_sweeps` of methods of groups at the published sizes, each over its own thresholds."""
    head, found = one_head(x, place), {}
    for kind, values in thetas.items():
        sweep = [kind(AnchorConfig(theta=theta)) for theta in values]
        rows = compare_layer(head, kind.__name__, sweep)
        found[kind.__name__] = list(zip(sweep, rows, strict=True))
    return found


def spent_table(measured_of: Mapping[str, tuple[Method, dict]], title: str) -> str:
    """What each setting finds and spends, as text, the most recall first."""
    head = columns(title, "recall beyond", *NAMES.values(), other=18)
    order = sorted(measured_of.items(), key=lambda pair: -pair[1][1][BEYOND])
    lines = [
        columns(
            f"  {name}{' (oracle)' * (name in ORACLES)}",
            *(f"{row[what]:.3f}" for what in (BEYOND, *BUDGETS)),
            other=18,
        )
        for name, (_, row) in order
    ]
    return "\n".join([head, *lines])
