"""The page and the picture of what `measure` found; every word follows from the numbers."""

from collections.abc import Collection, Sequence
from pathlib import Path

from anchor_lab.drawing.style import caption, use_style
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import render
from anchor_lab.experiments.retrieval import figure as figures
from anchor_lab.experiments.retrieval import measure
from anchor_lab.experiments.retrieval.figure import Answers, Found, data_answers, densities
from anchor_lab.experiments.retrieval.measure import DENSE, POOLED, PUBLISHED, REGIONS

GOOD, BAD = 0.9, 0.5  # of what dense attention finds


def page(results: dict, path: Path) -> str:
    """The results as Markdown."""
    rows = results["rows"]
    answers = data_answers(rows)
    length, pictured = most_telling(answers)
    return render(
        "retrieval/page.md.j2",
        name=path.stem,
        title=EXPERIMENT.title,
        dates=list(dict.fromkeys(run["date"] for run in results["runs"])),
        settings=results["settings"],
        pictured={"length": length, "best": {n: best(row) for n, row in pictured.items()}},
        dense=data_dense(rows, answers),
        parts=[data_density(answers, d) for d in densities(*answers.values())],
        smaller=data_smaller_means(answers),
        published={n: x[PUBLISHED][None] for n, x in answers.items() if PUBLISHED in x},
        said=said,
    )


def fullest(answers: dict[int, Answers], density: float) -> int:
    """The longest of the lengths with the most rows of a density, rounding a few away."""
    counts = {n: sum(density in row for row in rows.values()) for n, rows in answers.items()}
    return max(n for n, count in counts.items() if count >= 0.8 * max(counts.values()))


def most_telling(answers: dict[int, Answers]) -> tuple[int, Answers]:
    """The length that the picture is about, and its rows, those that find most first."""
    length = fullest(answers, densities(*answers.values())[-1])
    rows = answers[length]
    return length, dict(sorted(rows.items(), key=lambda item: -best(item[1])))


def best(row: dict[float | None, Found]) -> float:
    """Share of the answers at the density where most are found."""
    return max(found.share for found in row.values())


def data_density(answers: dict[int, Answers], density: float) -> dict:
    """What is told of one density: who finds how much at its fullest length, and two tables."""
    length = fullest(answers, density)
    found = answers[length]
    matched = {name: row[density] for name, row in found.items() if density in row}
    dense, regions = found[DENSE][None], found[REGIONS][None]
    return {
        "density": density,
        "length": length,
        "dense": dense,
        "regions": regions,
        "matched": matched,
        "good": [name for name, x in matched.items() if x.share >= GOOD * dense.share],
        "bad": [name for name, x in matched.items() if x.share <= BAD * dense.share],
        # Their interval reaches down to what the regions alone find.
        "no_better": [name for name, x in matched.items() if x.low <= regions.share],
        "by_length": answers_table(answers, density),
        "by_task": tasks_table(found, density),
    }


def data_smaller_means(answers: dict[int, Answers]) -> dict:
    """Means of fewer queries, at the longest prompts that they were run with."""
    length = max(n for n, rows in answers.items() if rows.keys() & POOLED)
    density = densities(*answers.values())[0]
    found = {name: answers[length][name][density] for name in POOLED}
    own = answers[length]["AnchorAttention"][density]
    return {
        "length": length,
        "found": {POOLED[name]: x for name, x in found.items()},
        "better": [name for name, x in found.items() if x.low > own.high],
    }


def data_dense(rows: Sequence[dict], lengths: Collection[int]) -> dict:
    """Dense attention by task and length, and which tasks the methods are not asked."""
    dense = {(row["task"], row["length"]): row for row in rows if row["row"] == DENSE}
    tasks = list(dict.fromkeys(task for task, _ in dense))
    can = {task for length in lengths for task in measure.answerable_tasks(rows, length)}

    def cell(task: str, length: int) -> Found | None:
        row = dense.get((task, length))
        return row and Found(row["right"] / row["asked"], row["low"], row["high"], None, {})

    return {
        "header": ["task", *lengths],
        "rows": [[task, *(said(cell(task, length)) for length in lengths)] for task in tasks],
        "prompts": {row["length"]: row["prompts"] for row in dense.values()},
        "cannot": [task for task in tasks if task not in can],
    }


def answers_table(answers: dict[int, Answers], density: float) -> tuple:
    """(header, rows): every row by length, and the densities that it had."""
    answers = {n: rows for n, rows in answers.items() if density in densities(rows)}
    table = []
    for name in dict.fromkeys(name for rows in answers.values() for name in rows):
        row = [rows.get(name, {}) for rows in answers.values()]
        found = [x.get(density, x.get(None)) for x in row]
        had = [x.kept for x in found if x]
        ends = "1" if name == DENSE else f"{min(had):.2f}–{max(had):.2f}"
        table.append([name, *map(said, found), ends])
    return ["row", *answers, "density"], table


def tasks_table(answers: Answers, density: float) -> tuple:
    """(header, rows): every row by task, in percent."""
    shares = {name: row for name, row in figures.data_tasks(answers, density).items() if row}
    table = [[name, *(f"{100 * x:.0f}" for x in row.values())] for name, row in shares.items()]
    return ["row", *shares[DENSE]], table


def said(found: Found | None) -> str:
    """Percent with interval; nothing for what was not run."""
    return "{:.0f} ({:.0f}–{:.0f})".format(*(100 * x for x in found[:3])) if found else ""


def draw(results: dict):
    """Answers of every row, and which tasks they come from."""
    from matplotlib import pyplot as plt

    use_style()
    length, rows = most_telling(data_answers(results["rows"]))
    of_length = densities(rows)
    widths = [2, *[1] * len(of_length)]
    figure, axes = plt.subplots(1, len(widths), figsize=(11, 6.4), width_ratios=widths)
    figures.draw_answers(rows, axes[0])
    axes[0].set_title(figures.draw_answers.__doc__, pad=22)
    for ax, density in zip(axes[1:], of_length, strict=True):
        figures.draw_tasks(figures.data_tasks(rows, density), ax)
        ax.set_title(f"{density:.0%} of the pairs", pad=22)
    caption(
        figure,
        f"Bundled model, N = {length}, every head and layer. Bars: 95 % Wilson intervals for as "
        "many trials as prompts.",
    )
    return figure


EXPERIMENT = Experiment(
    name="retrieval",
    about=measure.__doc__,
    measure=measure.run,
    page=page,
    file="retrieval/retrieval.json",
    draw=draw,
    options=measure.options,
)
