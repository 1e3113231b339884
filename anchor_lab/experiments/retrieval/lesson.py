"""What notebook 13 shows of facts read and written: by θ, and by where the last block ends."""

from collections.abc import Mapping, Sequence

from anchor_lab.experiments.course import RESULTS, columns
from anchor_lab.experiments.retrieval.written import ROWS, WAYS
from anchor_lab.experiments.store import read

Count = tuple[int, int]  # right, asked


def written() -> list[dict]:
    """The rows of results/retrieval/written.json, wherever a notebook runs."""
    return read(RESULTS / "retrieval" / "written.json")["rows"]


def data_places(
    rows: Sequence[dict], length: int, thetas: Sequence[float]
) -> dict[tuple[float, str], dict[str, Count]]:
    """Answers by threshold and by the rows of the last block; without a tail.

    Args:
        rows: of `written`.
        length: of the prompts.
        thetas: thresholds, as far as they were measured.

    Returns:
        By (θ, which rows), all of them under "any": for each of `WAYS` (right, asked).
    """
    chosen = {float(row["theta"]): row for row in rows if row["length"] == length and row["theta"]}
    places = {f"{at[0]}–{at[-1]} rows": at for at in (ROWS[0], ROWS[-1])} | {"any": range(1, 129)}
    return {
        (theta, name): {way: _count(chosen[theta], way, place) for way in WAYS}
        for theta in thetas
        for name, place in places.items()
    }


def data_density(rows: Sequence[dict], length: int) -> dict[float, float]:
    """By threshold the share of the pairs that was kept; see `data_places`."""
    return {
        float(row["theta"]): row["density"]
        for row in rows
        if row["length"] == length and row["theta"]
    }


def table(
    published: Mapping[tuple[float, str], Mapping[str, Count]],
    here: Mapping[tuple[float, str, int], Sequence[Count]],
) -> str:
    """θ × rows of the last block × tail or none × read or written, as text.

    Args:
        published: see `data_places`.
        here: by (θ, which rows, tail), of shorter prompts: for each of `WAYS` (right, asked).
    """
    tails = sorted({tail for *_, tail in here})
    above = ["8192 tokens, no tail", *(f"short, tail {tail}" for tail in tails)]
    lines = [
        columns("the 8M model", *above, first=20, other=24),
        columns("right answers", *WAYS * len(above), first=20, other=12),
    ]
    for (theta, rows), ways in published.items():
        cells = [ways[way] for way in WAYS]
        cells += [cell for tail in tails for cell in here.get((theta, rows, tail), [])]
        shown = (f"{right} of {asked}" for right, asked in cells)
        lines.append(columns(f"θ = {theta:g}, {rows}", *shown, first=20, other=12))
    return "\n".join(lines)


def _count(row: dict, way: str, place: range) -> Count:
    ends = zip(row[way], row["rows"][way], strict=True)
    right = [found for found, n in ends if n in place]
    return sum(right), len(right)
