"""One call beside kernels of dense attention: a sentence for README, a table for docs."""

from functools import partial
from pathlib import Path

from anchor_lab.experiments import page
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.rivals.figure import RECALLS
from anchor_lab.experiments.side_by_side.course import data_rivals
from anchor_lab.experiments.side_by_side.figure import data_planted, heads_of
from anchor_lab.experiments.side_by_side.measure import DENSE
from anchor_lab.experiments.side_by_side.sources import KEPT
from anchor_models.backend import TAIL
from tools.standing import NAMES

OURS_TIMED = (OURS, f"tail {TAIL}")
DENSE_KERNELS = ("cuDNN", "FlashAttention-2", "FlashAttention-4")
render = partial(page.render, folder=Path(__file__).parent)


def data_kernels(results: dict) -> dict[int, tuple[float, float, dict[str, float | None]]]:
    """By length: pairs kept, ms of one call of ours, and of each kernel of dense attention.

    Args:
        results: of `python -m anchor_lab side_by_side`.
    """
    data = data_planted(results["rows"])  # of the first shape
    planted = [row for row in results["rows"] if row["part"] == "planted"]
    kept = {
        row["n"]: row["density"]
        for row in planted
        if (row["method"], row["way"]) == OURS_TIMED and heads_of(row) == heads_of(planted[0])
    }
    dense = {way: data.get((DENSE, way), {}) for way in DENSE_KERNELS}
    return {
        n: (kept[n], ms, {way: times.get(n) for way, times in dense.items()})
        for n, ms in data[OURS_TIMED].items()
    }


def _gain(ms: float, dense: dict[str, float | None]) -> str:
    """How many times as fast as the fastest of them."""
    best = min((x for x in dense.values() if x is not None), default=None)
    return page.digits(best and best / ms, 1)


def _about(results: dict) -> dict:
    """What was timed, on what."""
    first = next(row for row in results["rows"] if row["part"] == "planted")
    return {
        "dense": list(DENSE_KERNELS),
        "planted": KEPT,
        "heads": "{} query and {} kv heads of {}".format(*heads_of(first)),
        "settings": results["settings"],
        "run": results["runs"][first["run"]],
        "tail": TAIL,
    }


def kernels(results: dict, up: str = "") -> str:
    """One layer's call beside kernels of dense attention, on planted stripes.

    Args:
        results: as in `data_kernels`.
        up: from the page to the repository's root.
    """
    rows = []
    for n, (kept, ms, dense) in data_kernels(results).items():
        cells = ("–" if x is None else f"{page.number(x)} ms" for x in (ms, *dense.values()))
        rows.append((page.spaced(n), page.percent(kept), *cells, _gain(ms, dense)))
    return render("kernels.md.j2", rows=rows, up=up, **_about(results))


def calls(results: dict) -> str:
    """The same in two sentences, with the other methods at equal recall on a real layer.

    Args:
        results: as in `data_kernels`.
    """
    found = data_kernels(results)
    ends = [(page.spaced(n), page.percent(found[n][0]), _gain(*found[n][1:]))
            for n in (min(found), max(found))]  # fmt: skip
    recall = f"recall {RECALLS[0]:g}"
    *_, (place, by_method) = data_rivals(results["rows"], recall).items()
    named = sorted(by_method.items(), key=lambda x: x[1])
    return render(
        "calls.md.j2",
        first=ends[0],
        last=ends[1],
        recall=recall,
        place=place,
        by_method=[(NAMES.get(name, name).strip("*"), page.number(ms)) for name, ms in named],
        **_about(results),
    )
