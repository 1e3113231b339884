"""What notebook 13 shows of facts read and written: by θ, and by where the last block ends."""

from collections.abc import Sequence

from anchor_lab.experiments.retrieval.written import ROWS, WAYS

Count = tuple[int, int]  # right, asked


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


def _count(row: dict, way: str, place: range) -> Count:
    ends = zip(row[way], row["rows"][way], strict=True)
    right = [found for found, n in ends if n in place]
    return sum(right), len(right)
