"""The page of the results: what stands beside what. `page.md.j2` has the words."""

from math import inf
from pathlib import Path

from anchor_lab.experiments.attention import figure, measure
from anchor_lab.experiments.attention.cells import (
    DENSE,
    Row,
    by_density,
    by_inputs,
    by_length,
    crossing,
    of_layers,
    reference_density,
)
from anchor_lab.experiments.attention.jobs import make_methods
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import render
from anchor_lab.experiments.store import read


def page(results: dict, path: Path) -> str:
    """Results as Markdown.

    Args:
        results: what `anchor_lab.experiments.store.read` finds in a file of this experiment.
        path: of the page. The picture has its name; where results of later kernels lie in the
            same folder, the first line leads to them.
    """
    return render(
        "attention/page.md.j2", **values(results), name=path.stem, later=later(path, results)
    )


def values(results: dict) -> dict[str, object]:
    """What the template shows: rows in which every method has a cell, and what goes with them."""
    rows = by_inputs(results)
    n, densities = by_density(rows)
    measured = [cell for cell in results["rows"] if cell["status"] == "ok"]
    shapes = figure.shapes_of(results)
    return {
        "about": results["settings"],
        "runs": results["runs"],
        "notes": sorted({cell["note"] for cell in measured if cell["method"] in DENSE}),
        "shape": shapes[0] if shapes else None,
        "density": reference_density(rows),
        "lengths": _whole(by_length(rows)),
        "even": {name: crossing(rows, method) for name, method in EVEN.items()},
        "never": inf,
        "compared_at": n,
        "densities": _whole(densities),
        "layers": _whole(of_layers(rows)),
        "gains": [gain for *_, gain in figure.data_layers(results)],
        "gaps": [cell for cell in results["rows"] if cell["status"] != "ok"],
    }


EVEN = {"SDPA cuDNN": "sdpa-cudnn", "SDPA flash": "sdpa-flash"}


def _whole(rows: dict[object, Row]) -> dict[object, Row]:
    """Rows with a cell for each method; "any" is one that has a result."""
    nothing = {"status": "–"}
    return {
        key: {
            **dict.fromkeys(make_methods(), nothing),
            **row,
            "any": next((cell for cell in row.values() if cell["status"] == "ok"), nothing),
        }
        for key, row in rows.items()
    }


def later(path: Path, results: dict) -> list[tuple[str, dict]]:
    """Files of results beside the page's that later kernels made: name and settings of each."""
    date, found = results["runs"][-1]["date"], []
    for other in sorted(path.parent.glob("attention*.json")):
        theirs = read(other)
        newer = theirs["runs"][-1]["date"] > date
        if newer and theirs["settings"]["kernels"] != results["settings"]["kernels"]:
            found.append((other.stem, theirs["settings"]))
    return found


EXPERIMENT = Experiment(
    name="attention",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="attention/attention.json",
    draw=figure.draw,
    options=measure.options,
    needs_cuda=True,
)
