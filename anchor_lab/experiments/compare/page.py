"""All methods on every head of the bundled model, on prose and on a retrieval prompt.

    python -m anchor_lab compare               writes compare.csv.gz, .json, .md and .png
    python -m anchor_lab compare --table       .md and .png from compare.csv.gz and .json

Then, in compare_planted.csv, on planted stripes: two heads of which everything is known.

The work is that of `anchor-ref compare`, once for each input; its folders lie in build/compare,
and an interrupted run goes on. Minutes on a GPU; a processor, which sorts every row for the
oracles of single keys, takes hours.
"""

import gzip
import json
from math import isnan
from pathlib import Path

from anchor_lab import cli
from anchor_lab.experiments import command
from anchor_lab.experiments.attention.page import markdown
from anchor_lab.experiments.compare.equal import BUDGETS, at_equal, budget_for, mean_curves
from anchor_lab.experiments.compare.figure import LABELS, comparison_figure
from anchor_lab.experiments.store import ABOUT, TABLE, read_table, to_csv

HERE = Path("results") / "compare"
TEXTS = {"document": "made-up prose", "retrieval": "prose with three numbers and a question"}
PLANTED = "planted"
LENGTH = 8192  # the shortest prompt that has four groups of the published size
LEVEL, RECALL = 0.5, 0.95
NAMES = {budget: label.split(":")[0] for budget, label in LABELS.items()}
REMARKS = """\
Recall and budgets are means over these heads, with one configuration for all of them; between two
configurations of a sweep the line is read off. "–": out of reach, every configuration takes more
(left) or has less recall (right). Oracles look at all scores first, half of dense attention, and
save nothing: they show what could be had. Each is the best for its own rule, in each row or group;
with one setting for all heads another rule may still do better. Executed density counts whole
tiles; the oracles of single keys have none, so theirs is what they keep.

A prompt of 8192 tokens has four groups of 2048. A quarter of all pairs lies in their windows, so
AnchorAttention and its variants cannot keep less here; methods without groups can. Longer prompts
lower that floor. These are heads of a model of 8 million parameters: which method is ahead may be
another on yours, and `anchor-ref compare --model` is there to find out.

Planted stripes are the input that AnchorAttention was made for: single keys, heavy for every
query. Its initial region and windows are 0.27 of the pairs there, and it needs little more; a
method that keeps blocks pays for all keys around a heavy one.
"""


def table(results: dict, frame, planted) -> str:
    """The results as Markdown.

    Args:
        results: settings of each input.
        frame: rows of the texts.
        planted: rows of the planted stripes.
    """
    about = results["document"]
    heads = frame.groupby("text")[["layer", "head"]].apply(lambda x: len(x.drop_duplicates()))
    lines = [
        "# All methods on the bundled model",
        "",
        f"![{in_words(frame)}](compare.png)",
        "",
        f"Made by `python -m anchor_lab compare`, {about['device']}, torch "
        f"{about['versions']['torch']}, transformers {about['versions']['transformers']}, "
        f"{about['dtype']}: {heads.iloc[0]} heads, all of the model, groups of "
        f"{about['group_size']}. Every row of every head and configuration: `compare.csv.gz`.",
    ]
    for text, what in TEXTS.items():
        curves = mean_curves(frame[frame["text"] == text])
        ahead = {budget: at_equal(curves, budget, LEVEL) for budget in BUDGETS}
        needed = {budget: budget_for(curves, budget, RECALL) for budget in BUDGETS}
        found = {f"recall at {NAMES[b]} {LEVEL:g}": (ahead[b], 4) for b in BUDGETS}
        found |= {f"{NAMES[b]} for recall {RECALL:g}": (needed[b], 3) for b in BUDGETS}
        lines += ["", f"## {what.capitalize()}, {results[text]['length']} tokens", ""]
        lines.append(methods_table(found, ahead["density"].index))
    lines += ["", *planted_table(results[PLANTED], planted)]
    return "\n".join([*lines, "", "## How to read it", "", REMARKS])


def planted_table(about: dict, planted) -> list[str]:
    """What a recall costs where 3 % of the keys hold nearly all of it."""
    curves = mean_curves(planted)
    needed = {budget: budget_for(curves, budget, RECALL) for budget in BUDGETS}
    found = {f"{NAMES[b]} for recall {RECALL:g}": (needed[b], 3) for b in BUDGETS}
    return [
        f"## Planted stripes, {about['length']} tokens",
        "",
        f"{about['planted']['density']:.0%} of the keys hold nearly all mass, in every row; no "
        f"model. {curves['heads'].iloc[0]} heads, {about['device']}, torch "
        f"{about['versions']['torch']}; every row: `compare_planted.csv`.",
        "",
        methods_table(found, needed["total_cost"].index),
    ]


def methods_table(columns: dict, methods) -> str:
    """A line for each method: what it reaches in each column, {heading: (by method, digits)}."""
    rows = [
        [method, *(reached(found[method], digits) for found, digits in columns.values())]
        for method in methods
    ]
    return markdown(["method", *columns], rows)


def reached(value: float, digits: int) -> str:
    """A number, or a dash for the NaN of what no configuration reaches."""
    return "–" if isnan(value) else f"{value:.{digits}f}"


def in_words(frame) -> str:
    """What the picture shows, for those who cannot see it."""
    means = at_equal(mean_curves(frame[frame["text"] == "document"]), "total_cost", LEVEL)
    told = ", ".join(f"{method} {recall:.2f}" for method, recall in means.dropna().items())
    return (
        f"Recall at {LEVEL:g} of dense attention, for three ways to count it, and recall over "
        f"density, a panel for each method. When all that is computed counts: {told}."
    )


def gather(work: Path, out: Path) -> None:
    """One table, and what it was made with, from the folders that `anchor-ref compare` filled."""
    import pandas as pd

    folders = [work / text for text in TEXTS]
    frame = pd.concat([read_table(folder / TABLE) for folder in folders])
    # No time of its own in the file: the same rows are the same bytes.
    out.write_bytes(gzip.compress(to_csv(frame).encode(), mtime=0))
    beside(out, "_planted.csv").write_text((work / PLANTED / TABLE).read_text())
    folders.append(work / PLANTED)
    settings = {folder.name: json.loads((folder / ABOUT).read_text()) for folder in folders}
    beside(out, ".json").write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n")


def beside(table: Path, ending: str) -> Path:
    """The file of another kind beside compare.csv.gz."""
    return table.with_name(table.name.removesuffix(".csv.gz") + ending)


def draw(results: dict, frame, path: Path) -> None:
    """All methods on the prose."""
    from matplotlib import pyplot as plt

    curves = mean_curves(frame[frame["text"] == "document"])
    note = (
        f"Bundled model, {TEXTS['document']}, N = {LENGTH}, groups of "
        f"{results['document']['group_size']}; {curves['heads'].iloc[0]} heads."
    )
    figure = comparison_figure(curves, LEVEL, note)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = command.parser(__doc__, HERE / "compare.csv.gz")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "compare")
    options = parser.parse_args()
    if not options.table:
        inputs = {text: ["--text", text, "--heads", "all"] for text in TEXTS}
        for name, what in {**inputs, PLANTED: ["--planted"]}.items():
            asked = ["compare", *what, "--length", str(LENGTH)]
            asked += ["--device", options.device, "--out", str(options.work / name)]
            if status := cli.main(asked):
                raise SystemExit(status)
        gather(options.work, options.out)
    frame = read_table(options.out)
    results = json.loads(beside(options.out, ".json").read_text())
    planted = read_table(beside(options.out, "_planted.csv"))
    beside(options.out, ".md").write_text(table(results, frame, planted))
    draw(results, frame, beside(options.out, ".png"))


if __name__ == "__main__":
    main()
