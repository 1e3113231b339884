"""The page of one prompt on many GPUs."""

from pathlib import Path

from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import digits, render
from anchor_lab.experiments.parallel import measure
from anchor_models.parallel.cost import GIB


def page(results: dict, _path: Path) -> str:
    """The numbers as Markdown."""
    check, attention, prefill = (
        [row for row in results["rows"] if row["part"] == part]
        for part in ("check", "attention", "prefill")
    )
    return render(
        "parallel/page.md.j2",
        run=results["runs"][-1],
        **results["settings"],
        check=[
            [*_case(row), f"{row['difference']:.1e}", f"{row['same token']:.2%}"] for row in check
        ],
        attention=[
            [row["tokens"], row["backend"]]
            + [digits(1000 * row[name], 2) for name in ("one", "all", "exchange")]
            + [f"{row['difference']:.1e}"]
            for row in attention
        ],
        prefill=[
            [*_case(row), digits(row["seconds"], 3)]
            + [digits(size and size / GIB, 2) for size in (row["peak"] or None, row["paper"])]
            for row in prefill
        ],
    )


def _case(row: dict) -> list:
    return [row["attention"], row["mode"], row["tokens"]]


EXPERIMENT = Experiment(
    name="parallel",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="parallel/parallel.json",
)
