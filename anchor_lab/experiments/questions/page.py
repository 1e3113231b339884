"""Three questions about the heads of the bundled model, answered: a page and a figure."""

from pathlib import Path
from statistics import fmean

from anchor_lab.analysis import REGIONS, TESTS
from anchor_lab.drawing.style import caption, use_style
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import render
from anchor_lab.experiments.questions import figure as figures
from anchor_lab.experiments.questions import measure


def parts(results: dict) -> tuple[list[dict], list[dict]]:
    """Rows of heads, and rows of the calibration."""
    rows = results["rows"]
    return [row for row in rows if "layer" in row], [row for row in rows if "per" in row]


def values(results: dict) -> dict:
    """What the page says."""
    settings = results["settings"]
    rows, calibration = parts(results)
    return {
        "run": results["runs"][-1],
        "n": settings["n"],
        "quick": settings["n"] < measure.LENGTH,
        "theta": settings["config"]["theta"],
        "heads": len(rows),
        "often": sum(row["maxima"][2] > 0.5 for row in rows),
        "regions": REGIONS,
        "maxima": _maxima(rows),
        "tests": figures.data_tests(rows),
        "about_tests": TESTS,
        "curves": figures.data_calibration(calibration),
        "calibration": _beside_single(calibration),
    }


def page(results: dict, path: Path) -> str:
    """The results as Markdown."""
    picture = path.with_suffix(".png").name
    return render("questions/page.md.j2", picture=picture, **values(results))


def draw(results: dict):
    """Three questions in one picture."""
    from matplotlib import pyplot as plt

    use_style()
    settings = results["settings"]
    rows, calibration = parts(results)
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4))
    panels = (
        (figures.data_maxima(rows), figures.draw_maxima),
        (figures.data_tests(rows), figures.draw_tests),
        (figures.data_calibration(calibration), figures.draw_calibration),
    )
    for ax, (data, draw_one) in zip(axes.flat, panels, strict=True):
        draw_one(data, ax)
        ax.set_title(draw_one.__doc__.splitlines()[0])
    caption(
        figure,
        f"Bundled model, {len(rows)} heads, N = {settings['n']}, θ = "
        f"{settings['config']['theta']:g} but where it is the question.",
    )
    return figure


def _maxima(rows: list[dict]) -> list[dict]:
    """By layer, then for all: mean shares of the regions, and the head with most candidates."""
    found = []
    for layer in [*sorted({row["layer"] for row in rows}), "all"]:
        part = [row for row in rows if layer in (row["layer"], "all")]
        most = max(part, key=lambda row: (row["maxima"][2], row["head"]))
        found.append(
            {
                "layer": layer,
                "means": [
                    fmean(shares) for shares in zip(*(x["maxima"] for x in part), strict=True)
                ],
                "most": most["maxima"][2],
                "head": None if layer == "all" else most["head"],
            }
        )
    return found


def _beside_single(rows: list[dict]) -> list[dict]:
    """Each calibration with "single", the least θ for all that reaches its mean recall."""
    single = [row for row in rows if row["per"] == "all"]
    return [
        {
            **row,
            "single": next((x for x in single if x["recall"] >= row["recall"]), single[-1]),
        }
        for row in rows
        if row["per"] != "all"
    ]


EXPERIMENT = Experiment(
    name="questions",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    draw=draw,
    file="questions/questions.json",
    options=measure.options,
)
