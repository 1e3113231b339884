"""The ablations as a page and a figure."""

from pathlib import Path

from anchor_lab.drawing.style import caption, use_style
from anchor_lab.experiments.ablations import measure
from anchor_lab.experiments.ablations.figure import (
    data_ablation,
    data_theta,
    draw_ablation,
    draw_theta,
)
from anchor_lab.experiments.compare.equal import at_equal, budget_for
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import render
from anchor_ref import AnchorConfig

RECALL, DENSITY = 0.95, 0.4  # what the variants are brought to


def values(results: dict) -> dict:
    """What the page says: the settings, each variant at equal density and recall, each θ."""
    settings, means = results["settings"], means_of(results)
    ablations = []
    for ablation, ours in ours_of(results).items():
        curves = means[means["ablation"] == ablation]
        at_density = at_equal(curves, "density", DENSITY)
        columns = (
            at_density,
            at_equal(curves, "executed_density", DENSITY),
            budget_for(curves, "density", RECALL),
            budget_for(curves, "total_cost", RECALL),
        )
        variants = curves["method"].unique()
        ablations.append(
            {
                "question": measure.QUESTIONS[ablation],
                "ours": ours,
                "at_density": at_density.to_dict(),
                "rows": {variant: [found[variant] for found in columns] for variant in variants},
            }
        )
    return {
        **settings,
        "config": AnchorConfig(**settings["config"]),
        "quick": settings["n"] < measure.LENGTH,
        "run": results["runs"][-1],
        "recall": RECALL,
        "density": DENSITY,
        "questions": measure.QUESTIONS,
        "ablations": ablations,
        "thetas": data_theta(means),
    }


def page(results: dict, path: Path) -> str:
    """The results as Markdown."""
    picture = path.with_suffix(".png").name
    return render("ablations/page.md.j2", picture=picture, **values(results))


def ours_of(results: dict) -> dict[str, str]:
    """The variant of each ablation that is the method as published."""
    config = AnchorConfig(**results["settings"]["config"])
    return {
        "granularity": "stripes",
        "test": "difference",
        "anchor": "both regions",
        "step": f"step {config.step}",
        "block": f"block {config.block_size}",
    }


def means_of(results: dict):
    """The means as a pandas frame, variants in their order."""
    import pandas as pd

    config = AnchorConfig(**results["settings"]["config"])
    order = [name for sweeps in measure.variants(config).values() for name in sweeps]
    return pd.DataFrame(results["rows"]).sort_values(
        "method", key=lambda names: names.map(order.index), kind="stable"
    )


def draw(results: dict):
    """Six questions in one picture."""
    from matplotlib import pyplot as plt

    use_style()
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.6))
    means, ours = means_of(results), ours_of(results)
    for ax, (ablation, question) in zip(axes.flat, measure.QUESTIONS.items(), strict=True):
        if ablation == "theta":
            draw_theta(data_theta(means), ax)
        else:
            draw_ablation(data_ablation(means, ablation), ax, ours[ablation])
        ax.set_title(question, fontsize=9.5)
    settings = results["settings"]
    config = AnchorConfig(**settings["config"])
    caption(
        figure,
        f"Bundled model, {len(settings['layers']) * len(settings['heads'])} heads, N = "
        f"{settings['n']}, b = {config.block_size}, S = {config.group_size} unless varied; marks: "
        "θ or another knob.",
    )
    return figure


EXPERIMENT = Experiment(
    name="ablations",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    draw=draw,
    file="ablations/ablations.json",
)
