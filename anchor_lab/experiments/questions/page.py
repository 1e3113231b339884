"""The answers of `anchor_lab.experiments.questions.measure` as a table and a figure."""

from collections.abc import Iterable
from pathlib import Path

from anchor_lab.analysis import REGIONS, TESTS
from anchor_lab.drawing.style import caption, use_style
from anchor_lab.experiments.questions import figure as figures

ENOUGH = 0.9  # recall that a head is worth being promised


def table(results: dict) -> str:
    """The results as Markdown."""
    rows = results["heads"]
    lines = [
        "# What the lab finds out about the bundled model",
        "",
        f"![{in_words(results)}](questions.png)",
        "",
        f"Made by `python -m anchor_lab questions` on {results['date']} with torch "
        f"{results['torch']}: {results['n']} tokens, θ = {results['theta']:g}, all {len(rows)} "
        "heads. Definitions: `anchor_lab/analysis`.",
        "",
        *_maxima(rows),
        *_tests(rows),
        *_certificate(rows),
        *_calibration(results["calibration"]),
    ]
    return "\n".join(lines) + "\n"


def in_words(results: dict) -> str:
    """What the picture shows, for those who cannot see it."""
    rows = results["heads"]
    often = sum(row["maxima"][2] > 0.5 for row in rows)
    tests = figures.data_tests(rows)
    promises = figures.data_certificate(rows)["mean"]
    said = ", ".join(
        f"{name} {recall:.3f} at {share:.2f}" for name, (share, recall) in tests.items()
    )
    (low_cost, low), (high_cost, high) = promises[0], promises[-1]
    ends = "; ".join(
        f"one θ for {'all heads' if per == 'all' else f'each {per}'}: {points[0][1]:.3f} at "
        f"{points[0][0]:.2f} to {points[-1][1]:.3f} at {points[-1][0]:.2f}"
        for per, points in figures.data_calibration(results["calibration"]).items()
    )
    return (
        f"Four panels. By layer and head: in {often} of {len(rows)} heads more than half of the "
        f"largest scores are candidates'. Recall of five tests at their density: {said}. Recall "
        f"that can be promised: from {low:.2f} at a cost of {low_cost:.2f} to {high:.2f} at "
        f"{high_cost:.2f}, mean over the heads that drop anything. Recall on held-out text at its "
        f"density, {ends}."
    )


def draw(results: dict, path: Path) -> None:
    """Four questions in one picture."""
    from matplotlib import pyplot as plt

    use_style()
    rows = results["heads"]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.6))
    panels = (
        (figures.data_maxima(rows), figures.draw_maxima),
        (figures.data_tests(rows), figures.draw_tests),
        (figures.data_certificate(rows), figures.draw_certificate),
        (figures.data_calibration(results["calibration"]), figures.draw_calibration),
    )
    for ax, (data, draw_one) in zip(axes.flat, panels, strict=True):
        draw_one(data, ax)
        ax.set_title(draw_one.__doc__.splitlines()[0])
    caption(
        figure,
        f"Bundled model, all heads, N = {results['n']}, θ = {results['theta']:g} but where it is "
        "the question.",
    )
    figure.savefig(path)
    plt.close(figure)


def _maxima(rows: list[dict]) -> list[str]:
    lines = [
        "## Where do the largest scores lie?",
        "",
        "Share of the rows that have candidates, mean over the heads of a layer; last the head "
        "with most among the candidates. The figure has every head.",
        "",
        "| layer | " + " | ".join(REGIONS) + " | most of a head |",
        "| --- |" + " --- |" * (len(REGIONS) + 1),
    ]
    for layer in [*sorted({row["layer"] for row in rows}), "all"]:
        shares = [row["maxima"] for row in rows if layer in (row["layer"], "all")]
        means = " | ".join(f"{_mean(share[i] for share in shares):.1%}" for i in range(3))
        most, head = max((share[2], number) for number, share in enumerate(shares))
        where = f" (head {rows[head]['head']})" if layer != "all" else ""
        lines.append(f"| {layer} | {means} | {most:.1%}{where} |")
    return [*lines, ""]


def _tests(rows: list[dict]) -> list[str]:
    lines = [
        "## What does each approximation cost?",
        "",
        "| test | what is compared with θ, and who keeps the key | recall | density |",
        "| --- | --- | --- | --- |",
    ]
    for name, what in TESTS.items():
        recall, density = (_mean(r["tests"][name][x] for r in rows) for x in ("recall", "density"))
        lines.append(f"| {name} | {what} | {recall:.4f} | {density:.3f} |")
    return [*lines, ""]


def _certificate(rows: list[dict]) -> list[str]:
    exact = rows[0]["certificate"][-1]["rank"]
    losing = [row for row in rows if row["certificate"][-1]["promised"] < 0.99]
    lines = [
        "## How much recall can be promised, and at which cost?",
        "",
        "Of the coordinates of a query and a key `rank` are multiplied out and the rest bounded, "
        "with the means of 32 neighbours; cost in all causal pairs. Beside all heads those that "
        f"lose more than 1 %: {len(losing)} of {len(rows)}.",
        "",
        f"| rank | cost | promised | heads promised {ENOUGH} | cost, losing heads | "
        f"promised them | of them promised {ENOUGH} |",
        "| --- |" + " --- |" * 6,
    ]
    for place, effort in enumerate(rows[0]["certificate"]):
        cells = []
        for heads in (rows, losing):
            found = [row["certificate"][place] for row in heads]
            enough = sum(x["promised"] >= ENOUGH for x in found)
            cost, promised = (_mean(x[what] for x in found) for what in ("cost", "promised"))
            cells.append(f"{cost:.3f} | {promised:.3f} | {enough} of {len(heads)}")
        name = f"{exact}: every dropped score" if effort["rank"] == exact else effort["rank"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", *_limits(rows, losing), ""]


def _limits(rows: list[dict], losing: list[dict]) -> list[str]:
    """In words: what the cheapest promise is worth, and the dearest that is no recall."""
    first, most, exact = (
        {
            what: _mean(row["certificate"][i][what] for row in losing)
            for what in ("cost", "promised")
        }
        for i in (0, -2, -1)
    )
    enough = sum(row["certificate"][0]["promised"] >= ENOUGH for row in losing)
    return [
        f"Too loose to use: pooled quantities alone (rank 0) promise {first['promised']:.2f} "
        f"where {exact['promised']:.2f} is kept, and {enough} of {len(losing)} losing heads "
        f"{ENOUGH}. Rank {rows[0]['certificate'][-2]['rank']} promises {most['promised']:.2f} for "
        f"{most['cost'] / exact['cost']:.0%} of the products that all dropped scores take. "
        "Exponentials are not counted, and every dropped pair takes one: where they bound the "
        "speed, or where little is dropped, score what was dropped instead.",
    ]


def _calibration(rows: list[dict]) -> list[str]:
    lines = [
        "## Is a threshold for each head worth it?",
        "",
        "Calibrated on two texts, judged on a third. Beside each the single θ that reaches the "
        "same mean recall there.",
        "",
        "| target | θ for each | recall | least of a head | density | single θ | its least | its "
        "density |",
        "| --- |" + " --- |" * 7,
    ]
    single = [row for row in rows if row["per"] == "all"]
    for row in rows:
        if row["per"] != "all":
            same = next((x for x in single if x["recall"] >= row["recall"]), single[-1])
            lines.append(
                f"| {row['target']} | {row['per']} | {row['recall']:.4f} | {row['least']:.4f} | "
                f"{row['density']:.3f} | {same['theta']:g} | {same['least']:.4f} | "
                f"{same['density']:.3f} |"
            )
    return lines


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
