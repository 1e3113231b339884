"""The measured cells by their inputs, and what follows from them: the break-even length.

A cell is one row of the file, a method on one set of inputs; a `Row` all methods on the same ones.
"""

from itertools import pairwise
from math import exp, inf, log

REFERENCE_DENSITY = 0.05  # at which lengths are compared
DENSITY_LENGTH = 131_072  # at which densities are compared
DENSE = ("sdpa-flash", "sdpa-cudnn")
STAGES = {"stage1": "1 anchor", "stage2": "2 stripes", "stage3": "3 sparse"}

Row = dict[str, dict]


def break_even(ours: dict[int, float], theirs: dict[int, float]) -> float:
    """The length from which on ours takes less time.

    Interpolated between the two shared lengths around the last crossing: log(ours / theirs) is
    taken as linear in log N.

    Args:
        ours, theirs: times in one unit, by length.

    Returns:
        The length; 0 when ours is faster at all shared lengths, inf when it is not at the last.

    Raises:
        ValueError: no length has both times.
    """
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        raise ValueError(
            f"ours and theirs must share a length, got {sorted(ours)} and {sorted(theirs)}"
        )
    points = [(log(n), log(ours[n] / theirs[n])) for n in both]
    if points[-1][1] >= 0:
        return inf
    for (x0, y0), (x1, y1) in reversed(list(pairwise(points))):
        if y0 >= 0:
            return exp(x0 + (x1 - x0) * y0 / (y0 - y1))
    return 0.0


def is_ok(row: Row, *methods: str) -> bool:
    """All of these methods were measured on the row's inputs."""
    return all(method in row and row[method]["status"] == "ok" for method in methods)


def median_ms(cell: dict) -> float:
    """The time of a cell that was measured."""
    return cell["ms"]["median"]


def by_inputs(results: dict) -> dict[tuple, Row]:
    """The cells by (source, layer, n, density), then by method."""
    rows: dict[tuple, Row] = {}
    for cell in results["rows"]:
        inputs = (cell["source"], cell["layer"], cell["n"], cell["density"])
        rows.setdefault(inputs, {})[cell["method"]] = cell
    return rows


def reference_density(rows: dict[tuple, Row]) -> float:
    """The density at which lengths are compared: 5 %, or what was measured first instead."""
    densities = [density for source, _, _, density in rows if source == "planted"]
    if REFERENCE_DENSITY in densities or not densities:
        return REFERENCE_DENSITY
    return densities[0]


def by_length(rows: dict[tuple, Row], density: float | None = None) -> dict[int, Row]:
    """Planted inputs of one density, the reference's unless given, by ascending length."""
    wanted = reference_density(rows) if density is None else density
    found = {n: row for (_, _, n, density), row in rows.items() if density == wanted}
    return dict(sorted(found.items()))


def cells(results: dict, method: str, density: float = REFERENCE_DENSITY) -> dict[int, dict]:
    """Results of one method on planted inputs, by ascending length, where it was measured.

    Args:
        results: what `anchor_lab.experiments.store.read` finds in a file of this experiment.
        method: a name in `jobs.make_methods`.
        density: share of the candidates that are stripes.
    """
    rows = by_length(by_inputs(results), density)
    return {n: row[method] for n, row in rows.items() if is_ok(row, method)}


def by_density(rows: dict[tuple, Row]) -> tuple[int, dict[float, Row]]:
    """The length with most densities, the longest of several, and its planted inputs."""
    found: dict[int, dict[float, Row]] = {}
    for (source, _, n, density), row in rows.items():
        if source == "planted":
            found.setdefault(n, {})[density] = row
    if not found:
        return 0, {}
    n = max(found, key=lambda n: (len(found[n]), n == DENSITY_LENGTH, n))
    return n, dict(sorted(found[n].items()))


def of_layers(rows: dict[tuple, Row]) -> dict[tuple[str, int, int], Row]:
    """Inputs that a model made, by its name, length and layer, ascending."""
    found = {
        (source, n, layer): row
        for (source, layer, n, _), row in rows.items()
        if source != "planted"
    }
    return dict(sorted(found.items()))


def crossing(rows: dict[tuple, Row], other: str) -> tuple[float | None, list[int]]:
    """`break_even` of the project with another method, and the lengths that have both.

    The former is None where no length has.
    """
    both = {n: row for n, row in by_length(rows).items() if is_ok(row, "anchor", other)}
    ours, theirs = (
        {n: median_ms(row[method]) for n, row in both.items()} for method in ("anchor", other)
    )
    return (break_even(ours, theirs) if both else None), list(both)
