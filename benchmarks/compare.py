"""All methods on heads of the bundled model, on prose and on a retrieval prompt.

    python -m benchmarks.compare               writes compare.csv, .json, .md and .png
    python -m benchmarks.compare --table       .md and .png from compare.csv and .json

The work is that of `anchor-ref compare`, once for each text; its folders lie in build/compare, and
an interrupted run goes on. Every other layer and the first query head of each key head, 8 of 64
heads: on all of them the oracles of single keys, which sort every row, would take hours.
"""

import argparse
import json
from pathlib import Path

from anchor_ref import cli
from anchor_ref.figures.compare import LABELS, comparison_figure
from anchor_ref.lab.equal import BUDGETS, at_equal, budget_for, mean_curves
from anchor_ref.lab.results import ABOUT, TABLE, read_table, to_csv

HERE = Path(__file__).parent
TEXTS = {"document": "made-up prose", "retrieval": "prose with three numbers and a question"}
LENGTH, LAYERS = 4096, (1, 3, 5, 7)
LEVEL, RECALL = 0.5, 0.95
REMARKS = """\
Recall and budgets are means over these heads, with one configuration for all of them; between two
configurations of a sweep the line is read off. "–": out of reach, every configuration takes more
(left) or has less recall (right). Oracles look at all scores first, half of dense attention, and
save nothing: they show what could be had. Each is the best for its own rule, in each row or group;
with one setting for all heads another rule may still do better. Executed density counts whole
tiles; the oracles of single keys have none, so theirs is what they keep.

A prompt of 4096 tokens in groups of 1024 (published: 2048) has four groups, as one of 8192 has. A
quarter of all pairs lies in their windows, so AnchorAttention and its variants cannot keep less
here; methods without groups can. Longer prompts lower that floor. These are heads of a model of 8
million parameters: which method is ahead may be another on yours, and `anchor-ref compare --model`
is there to find out.
"""


def table(results: dict, frame) -> str:
    """The results as Markdown."""
    about = results["document"]
    heads = frame.groupby("text")[["layer", "head"]].apply(lambda x: len(x.drop_duplicates()))
    lines = [
        "# All methods on the bundled model",
        "",
        "Made by `python -m benchmarks.compare` with torch "
        f"{about['versions']['torch']}, transformers {about['versions']['transformers']}, "
        f"{about['dtype']}: {heads.iloc[0]} heads (the first of each key head in layers "
        f"{', '.join(map(str, LAYERS))}), groups of {about['group_size']}. Every row of every "
        "head and configuration: `compare.csv`. Figure: `compare.png`.",
    ]
    for text, what in TEXTS.items():
        curves = mean_curves(frame[frame["text"] == text])
        ahead = {budget: at_equal(curves, budget, LEVEL) for budget in BUDGETS}
        needed = {budget: budget_for(curves, budget, RECALL) for budget in BUDGETS}
        names = [LABELS[budget].split(":")[0] for budget in BUDGETS]
        lines += [
            "",
            f"## {what.capitalize()}, {results[text]['length']} tokens",
            "",
            "| method | "
            + " | ".join(f"recall at {name} {LEVEL:g}" for name in names)
            + " | "
            + " | ".join(f"{name} for recall {RECALL:g}" for name in names)
            + " |",
            "| --- |" + " --- |" * (2 * len(BUDGETS)),
        ]
        for method in ahead["density"].index:
            cells = [f"{ahead[budget][method]:.4f}" for budget in BUDGETS]
            cells += [f"{needed[budget][method]:.3f}" for budget in BUDGETS]
            cells = ["–" if cell == "nan" else cell for cell in cells]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "## How to read it", "", REMARKS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="no measuring")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "compare")
    parser.add_argument("--out", type=Path, default=HERE / "compare.csv")
    options = parser.parse_args()
    import pandas as pd
    from matplotlib import pyplot as plt

    about = options.out.with_suffix(".json")
    if not options.table:
        for text in TEXTS:
            asked = ["compare", "--text", text, "--length", str(LENGTH), "--layers"]
            asked += [*map(str, LAYERS), "--out", str(options.work / text)]
            if status := cli.main(asked):
                raise SystemExit(status)
        folders = [options.work / text for text in TEXTS]
        frame = pd.concat([read_table(folder / TABLE) for folder in folders])
        options.out.write_text(to_csv(frame[frame["layer"].isin(LAYERS)]))
        settings = {folder.name: json.loads((folder / ABOUT).read_text()) for folder in folders}
        about.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
    frame, results = read_table(options.out), json.loads(about.read_text())
    options.out.with_suffix(".md").write_text(table(results, frame))
    curves = mean_curves(frame[frame["text"] == "document"])
    note = (
        f"Bundled model, {TEXTS['document']}, N = {LENGTH}, groups of "
        f"{results['document']['group_size']}; {curves['heads'].iloc[0]} heads."
    )
    figure = comparison_figure(curves, LEVEL, note)
    figure.savefig(options.out.with_suffix(".png"))
    plt.close(figure)


if __name__ == "__main__":
    main()
