"""Table, findings and picture of `anchor_lab.experiments.retrieval.measure`; every word follows from its numbers."""

from collections.abc import Sequence
from pathlib import Path

from anchor_lab.drawing.style import caption, use_style
from anchor_lab.experiments.retrieval import figure as figures

Found = tuple[float, float, float]  # share of the answers, and the ends of its interval
Answers = dict[str, dict[float | None, Found]]

GOOD, BAD = 0.9, 0.5  # of what dense attention finds
REGIONS = "AnchorAttention, θ = −∞"
PUBLISHED = "AnchorAttention, θ = 12"


def table(results: dict) -> str:
    """The results as Markdown."""
    cells, settings = list(results["cells"].values()), results["settings"]
    lengths = sorted({cell["length"] for cell in cells})
    answers = {length: figures.data_answers(cells, length) for length in lengths}
    lines = [
        "# Does the bundled model still answer when a method chooses its keys?",
        "",
        f"![{in_words(answers)}](retrieval.png)",
        "",
        f"Made by `python -m anchor_lab retrieval` on {results['date']}, {settings['device']}, "
        f"torch {settings['torch']}, transformers {settings['transformers']}, float32. Seeds, "
        "settings and every count: `retrieval.json`. Tasks: `anchor_lab/experiments/retrieval/prompts.py`; methods: "
        "`anchor_lab/methods`; how densities are matched: `anchor_lab/experiments/retrieval/matching.py`.",
        "",
        "An answer is five digits, all right. It stands in the prompt, whose last block is full: "
        "the harder case at 4096 and 8192 tokens ([generated.md](generated.md)). Percent of the "
        "answers with 95 % Wilson intervals for as many trials as there are prompts: answers of "
        "one prompt are not independent.",
        "",
        "## What it shows",
        "",
        *findings(cells, answers),
        "",
        "## Can the model do it at all?",
        "",
        *dense_table(cells, lengths),
    ]
    for density in densities(answers):
        lines += [
            "",
            f"## Answers found with {density:.0%} of the pairs, mean over tasks",
            "",
            *answers_table(cells, answers, density),
        ]
        length = fullest(answers, density)
        lines += ["", f"By task, at {length} tokens:", ""]
        lines += tasks_table(cells, answers[length], length, density)
    return "\n".join(lines) + "\n"


def in_words(answers: dict[int, Answers]) -> str:
    """What the picture shows, for those who cannot see it."""
    length, rows = pictured(answers)
    most = [f"{name}: {round(100 * best_of(row))}" for name, row in rows.items()]
    return (
        f"Who still answers at {length} tokens: the percentage of answers that each method finds, "
        f"with its interval, at the better of its densities: {'; '.join(most)}. Beside it the "
        "same by task, for each density."
    )


def pictured(answers: dict[int, Answers]) -> tuple[int, Answers]:
    """The length that the picture is about, and its rows, those that find most first."""
    length = fullest(answers, densities(answers)[-1])
    rows = answers[length]
    return length, {name: rows[name] for name in sorted(rows, key=lambda n: -best_of(rows[n]))}


def best_of(row: dict[float | None, Found]) -> float:
    """Share of the answers at the density where most are found."""
    return max(share for share, *_ in row.values())


def densities(answers: dict[int, Answers]) -> list[float]:
    """All that rows were set to."""
    return sorted({d for rows in answers.values() for row in rows.values() for d in row} - {None})


def fullest(answers: dict[int, Answers], density: float) -> int:
    """The longest of the lengths with the most rows of a density, rounding a few away."""
    counts = {n: sum(density in row for row in rows.values()) for n, rows in answers.items()}
    return max(n for n, count in counts.items() if count >= 0.8 * max(counts.values()))


def findings(cells: Sequence[dict], answers: dict[int, Answers]) -> list[str]:
    """What the numbers say, in sentences."""
    lines = []
    for density in densities(answers):
        length = fullest(answers, density)
        rows = answers[length]
        most = rows["Dense"][None][0]
        good = [n for n, row in rows.items() if density in row and row[density][0] >= GOOD * most]
        bad = [n for n, row in rows.items() if density in row and row[density][0] <= BAD * most]
        lines += [
            f"**{density:.0%} of the pairs, {length} tokens.** Dense attention finds "
            f"{said(rows['Dense'][None])}. At least nine tenths of that: {listed(good)}. At most "
            f"half of it: {listed(bad)}. AnchorAttention's initial region and window alone, "
            f"θ = −∞, hold {said(rows[REGIONS][None])}; no better than that are "
            f"{listed(no_better(rows, density))}.",
            "",
        ]
    return [*lines, *why(cells, answers)]


def no_better(rows: Answers, density: float) -> list[str]:
    """Rows whose interval reaches down to what the regions alone find."""
    floor = rows[REGIONS][None][0]
    return [name for name, row in rows.items() if density in row and row[density][1] <= floor]


def why(cells: Sequence[dict], answers: dict[int, Answers]) -> list[str]:
    """Which of AnchorAttention's choices loses the answers: one is replaced at a time."""
    density = densities(answers)[0]
    length = fullest(answers, density)
    rows = {name: row[density] for name, row in answers[length].items() if density in row}
    own = rows["AnchorAttention"]

    def verdict(name: str, replaced: str, blamed: str, cleared: str) -> str:
        found = rows[name]
        word = blamed if found[1] > own[2] else cleared
        return f"- {replaced} (`{name}`): {said(found)}. {word}"

    lines = [
        f"**Why AnchorAttention finds {said(own)} there.** Its choices, replaced one at a time at "
        "the same density:",
        "",
        verdict(
            "PooledMaximum",
            "the largest of a block's own pooled scores in place of its mean anchor",
            "The mean anchor is what loses them.",
            "Replacing the mean anchor alone does not bring them back.",
        ),
        verdict(
            "StripeOracle",
            "the same groups and regions, but stripes chosen by their true mass",
            "Sharing one list of keys in a group is not what loses them.",
            "Sharing one list of keys in a group loses them already.",
        ),
        verdict(
            "DifferenceOracle",
            "the difference test on each row's own scores, nothing pooled and nothing shared",
            "The test on each row's own scores does not lose them.",
            "The test itself loses them already.",
        ),
        verdict(
            "ConstantThreshold",
            "the same pooled scores, compared with one constant instead of the mean anchor",
            "So the pooled scores still tell where many of the answers are, and a threshold that "
            "moves with each block loses what one constant keeps.",
            "The pooled scores alone do not tell.",
        ),
    ]
    lines += smaller_means(answers, density)
    published = [
        f"{said(rows[PUBLISHED][None])} at {n} tokens and density {kept(cells, n, PUBLISHED):.2f}"
        for n, rows in answers.items()
        if PUBLISHED in rows
    ]
    return [*lines, "", f"With the published θ = 12 and groups of 2048: {'; '.join(published)}."]


def smaller_means(answers: dict[int, Answers], density: float) -> list[str]:
    """One line about means of fewer queries, at the longest prompts that they were run with."""
    lengths = [n for n, rows in answers.items() if any("means of" in name for name in rows)]
    if not lengths:
        return []
    rows = answers[max(lengths)]
    own = rows["AnchorAttention"][density]
    fewer = {name: row[density] for name, row in rows.items() if "means of" in name}
    better = [name for name, found in fewer.items() if found[1] > own[2]]
    list_of = ", ".join(f"{name.split(', ')[1]} {said(found)}" for name, found in fewer.items())
    word = (
        f"With {density:.0%} of the pairs {listed(better)} finds more."
        if better
        else f"With {density:.0%} of the pairs they find no more."
    )
    return [f"- means of fewer queries, at {max(lengths)} tokens: {list_of}. {word}"]


def dense_table(cells: Sequence[dict], lengths: Sequence[int]) -> list[str]:
    """Dense attention by task and length, and which tasks the methods are asked."""
    dense = {(c["task"], c["length"]): c for c in cells if c["row"] == "Dense"}
    tasks = list(dict.fromkeys(task for task, _ in dense))
    can = {task for length in lengths for task in figures.answerable_tasks(cells, length)}
    lines = head(["task", *lengths])
    for task in tasks:
        found = [dense.get((task, length)) for length in lengths]
        shown = [said((c["right"] / c["asked"], c["low"], c["high"])) if c else "" for c in found]
        lines.append(f"| {' | '.join([task, *shown])} |")
    cannot = [task for task in tasks if task not in can]
    words = f"below half everywhere, so no method is asked: {listed(cannot)}." if cannot else ""
    prompts = {cell["length"]: cell["prompts"] for cell in dense.values()}
    counts = [f"{prompts[length]} at {length}" for length in lengths]
    return [*lines, "", f"Prompts: {', '.join(counts)}. {words.capitalize()}".rstrip()]


def answers_table(cells: Sequence[dict], answers: dict[int, Answers], density: float) -> list[str]:
    """Every row by length, and the densities that it had."""
    lengths = [n for n, rows in answers.items() if any(density in row for row in rows.values())]
    lines = head(["row", *lengths, "density"])
    for name in dict.fromkeys(name for n in lengths for name in answers[n]):
        rows = [answers[n].get(name, {}) for n in lengths]
        shown = [row.get(density, row.get(None)) for row in rows]
        had = [kept(cells, n, name, density) for n in lengths if name in answers[n]]
        had = [share for share in had if share is not None]
        ends = f"{min(had):.2f}–{max(had):.2f}" if had else "1"
        lines.append(f"| {' | '.join([name, *map(said, shown), ends])} |")
    return lines


def tasks_table(cells: Sequence[dict], rows: Answers, length: int, density: float) -> list[str]:
    """Every row by task, in percent."""
    names = [name for name, row in rows.items() if density in row or None in row]
    shares = figures.data_tasks(cells, length, density, names)
    lines = head(["row", *shares])
    for name, row in zip(names, zip(*shares.values(), strict=True), strict=True):
        lines.append(f"| {' | '.join([name, *(f'{100 * share:.0f}' for share in row)])} |")
    return lines


def kept(
    cells: Sequence[dict], length: int, row: str, density: float | None = None
) -> float | None:
    """Density that a row had, mean over tasks; None for dense attention."""
    had = [
        cell["kept"]
        for cell in cells
        if (cell["length"], cell["row"]) == (length, row) and cell["density"] in (density, None)
    ]
    return None if None in had else sum(had) / len(had)


def head(titles: Sequence) -> list[str]:
    """First two lines of a table."""
    return [f"| {' | '.join(map(str, titles))} |", "|" + " --- |" * len(titles)]


def said(found: Found | None) -> str:
    """Percent with interval; nothing for what was not run."""
    if found is None:
        return ""
    share, low, high = (f"{100 * x:.0f}" for x in found)
    return f"{share} ({low}–{high})"


def listed(names: Sequence[str]) -> str:
    """Names in a row."""
    return ", ".join(names) or "none"


def draw(results: dict, path: Path) -> None:
    """Answers of every row, and which tasks they come from."""
    from matplotlib import pyplot as plt

    use_style()
    cells = list(results["cells"].values())
    lengths = {cell["length"] for cell in cells}
    answers = {length: figures.data_answers(cells, length) for length in sorted(lengths)}
    all_densities = densities(answers)
    length, rows = pictured(answers)
    figure, axes = plt.subplots(
        1, 1 + len(all_densities), figsize=(11, 6.4), width_ratios=[2, *[1] * len(all_densities)]
    )
    figures.draw_answers(rows, axes[0])
    axes[0].set_title(figures.draw_answers.__doc__, pad=22)
    for ax, density in zip(axes[1:], all_densities, strict=True):
        figures.draw_tasks(figures.data_tasks(cells, length, density, list(rows)), ax)
        ax.set_ylim(axes[0].get_ylim())
        ax.set_title(f"{density:.0%} of the pairs", pad=22)
    caption(
        figure,
        f"Bundled model, N = {length}, every head and layer. Bars: 95 % Wilson intervals for as "
        "many trials as prompts.",
    )
    figure.savefig(path)
    plt.close(figure)
