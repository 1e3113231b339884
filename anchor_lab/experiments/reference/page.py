"""The page of the reference on a CPU."""

from pathlib import Path
from statistics import median

from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import digits, render
from anchor_lab.experiments.reference import measure


def page(results: dict, _path: Path) -> str:
    """The numbers as Markdown."""
    rows = results["rows"]
    times = [
        [row["n"], digits(row["density"], 3)]
        + [digits(x, 2) for x in (median(row["dense_s"]), median(row["anchor_s"]), row["ratio"])]
        for row in rows
    ]
    memory = [
        [row["n"], digits(row["mib"], 0), digits(row["mib"] * 1024 / row["n"], 1)] for row in rows
    ]
    return render(
        "reference/page.md.j2",
        run=results["runs"][-1],
        repeats=results["settings"]["repeats"],
        times=times,
        memory=memory,
    )


EXPERIMENT = Experiment(
    name="reference",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="reference/reference.json",
    options=measure.options,
)
