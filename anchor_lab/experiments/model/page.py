"""Write the model card from the log and the evaluation, so that no number in it is typed.

    python -m anchor_lab.experiments.model.page --log training/logs/full.jsonl \\
        --evaluation results/model/evaluation.json --out anchor_models/model/README.md
"""

import argparse
import hashlib
import json
from pathlib import Path

RETRIEVES = 0.5  # mass on the needle from which a head is called a retrieval head


def read_log(path: Path) -> tuple[list[dict], int]:
    """Entries that led to the final weights, and how often the run was resumed.

    A run that is resumed goes back to its last checkpoint. What the log holds of the time after
    that checkpoint belongs to steps that were lost, and is left out.
    """
    kept: list[dict] = []
    resumed = 0
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry.get("event") == "resumed":
            resumed += 1
            kept = [old for old in kept if old.get("step", 0) <= entry["step"]]
            kept = [old for old in kept if old["clock"] <= entry["clock"]]
        kept.append(entry)
    return kept, resumed


def table(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def stages(log: list[dict]) -> str:
    """Tokens, speed and last losses of each stage."""
    rows = []
    for stage in sorted({entry["stage"] for entry in log if "shape" in entry}):
        steps = [entry for entry in log if "shape" in entry and entry["stage"] == stage]
        lengths = sorted({entry["shape"][1] - 1 for entry in steps})
        speeds = sorted(entry["tokens_per_second"] for entry in steps)
        first, last = steps[0], steps[-1]
        rows.append(
            [
                stage,
                ", ".join(map(str, lengths)),
                f"{first['clock']:.0f}-{last['clock']:.0f}",
                f"{(last['tokens'] - first['tokens']) / 1e6:.0f} M",
                f"{speeds[len(speeds) // 2] / 1e6:.2f} M",
                last["text"],
                last["answer"],
            ]
        )
    header = ["stage", "lengths", "seconds", "tokens", "tokens/s (median)", "text", "answer"]
    return table(header, rows)


def curves(log: list[dict]) -> str:
    """The probes, in order of time."""
    names = ["bits_per_byte", "recall_pairs", "copies", "needle_digits", "key_value_digits"]
    rows = [
        [f"{entry['clock']:.0f}", entry["stage"], entry["length"]]
        + [entry.get(name, "") for name in names]
        for entry in log
        if entry.get("event") == "probe"
    ]
    return table(["seconds", "stage", "length", *names], rows)


def accuracy(cells: list[dict]) -> str:
    """One line a task, one column a length: share right with its 95 % interval, in percent."""
    lengths = sorted({cell["length"] for cell in cells})
    found = {(cell["task"], cell["length"]): cell for cell in cells}
    rows = []
    for task in dict.fromkeys(cell["task"] for cell in cells):
        row = [task]
        for length in lengths:
            cell = found.get((task, length))
            low, high = cell["interval"] if cell else (0, 0)
            share = f"{100 * cell['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f})"
            row.append(share if cell else "")
        rows.append(row)
    return table(["task", *map(str, lengths)], rows)


def against_dense(cells: list[dict], trials: int) -> str:
    """AnchorAttention beside dense on the same prompts, by depth of the needle."""
    depths = list(cells[0]["by_depth"])
    rows = [
        [cell["task"], cell["length"], f"{100 * cell['dense_accuracy']:.0f}"]
        + [f"{100 * cell['accuracy']:.0f}"]
        + [f"{100 * cell['by_depth'][depth]:.0f}" for depth in depths]
        for cell in cells
    ]
    header = ["task", "length", "dense", "anchor", *(f"depth {depth}" for depth in depths)]
    return table(header, rows) + f"\n\n{trials} prompts a depth."


def causes(cells: list[dict]) -> str:
    """Accuracy by where AnchorAttention runs and with which configuration."""
    rows = [
        [cell["sparse"], f"{100 * cell['accuracy']:.0f}", f"{cell['density']:.2f}"]
        for cell in cells
    ]
    return table(["AnchorAttention in", "found, %", "density of these heads"], rows)


def heads(rows: list[dict]) -> str:
    """What the heads do, counted."""
    strongest = max(rows, key=lambda row: row["sink"])
    retrieval = [row for row in rows if row["needle"] >= RETRIEVES]
    names = ", ".join(
        f"layer {row['layer']} head {row['head']} ({row['needle']:.2f})" for row in retrieval
    )
    inside = sum(row["max_anchor"] for row in rows) / len(rows)
    recall = sum(row["recall@12"] for row in rows) / len(rows)
    density = sum(row["density@12"] for row in rows) / len(rows)
    sinks = sum(row["sink"] > 0.3 for row in rows)
    return table(
        [f"{len(rows)} heads at {rows[0]['length']} tokens", ""],
        [
            ["heads with more than 0.3 of their mass on key 0", sinks],
            [
                "strongest sink",
                f"layer {strongest['layer']} head {strongest['head']}: {strongest['sink']:.2f}",
            ],
            ["rows whose largest score lies in initial region or window, mean", f"{inside:.3f}"],
            [f"retrieval heads (mass on the needle at least {RETRIEVES})", names or "none"],
            ["recall at θ = 12, mean", f"{recall:.4f}"],
            ["density at θ = 12, mean", f"{density:.3f}"],
        ],
    )


def card(log_file: Path, evaluation_file: Path, weights: Path) -> str:
    """The text of the model card."""
    log, resumed = read_log(log_file)
    found = json.loads(evaluation_file.read_text())
    beyond, single = found["beyond"], found["beyond"]["single"]
    start = next(entry for entry in log if entry.get("event") == "start")
    end = [entry for entry in log if "tokens" in entry][-1]
    longest = max(int(name.removeprefix("heads_")) for name in found if name.startswith("heads_"))
    position = table(
        list(found["text"]["nats"]), [[f"{x:.3f}" for x in found["text"]["nats"].values()]]
    )
    induction = table(
        list(found["induction"]), [[f"{x:.3f}" for x in found["induction"].values()]]
    )
    pauses = (
        "in one go"
        if not resumed
        else f"resumed {resumed} time(s) from a checkpoint; lost steps are not counted below"
    )
    return f"""# The bundled model

A Llama of {start["parameters"]:,} parameters, made to have real attention to look at: it reads
English prose and finds facts in it, up to {longest} tokens back. It is no assistant: it answers
no question but the one kind it was taught, and writes no sensible text.

This file is written by `anchor_lab/experiments/model/page.py`; every number in it comes from the log and the
evaluation.

## How it was made

    python -m training.train --corpus books.jsonl.xz --run training/runs/{start["preset"]} \\
        --preset {start["preset"]} --seconds {start["seconds"]:.0f} --seed {start["seed"]} \\
        --export training/runs/export

{
        table(
            ["", ""],
            [
                ["hardware", start["device"]],
                ["torch", start["torch"]],
                ["training time", f"{end['clock']:.0f} s, {pauses}"],
                ["steps, tokens", f"{end['step']}, {end['tokens'] / 1e6:.0f} M"],
                ["corpus", f"{start['train_tokens'] / 1e6:.1f} M tokens of books"],
                ["SHA-256 of the corpus", f"`{start['corpus_sha256']}`"],
                [
                    "SHA-256 of model.safetensors",
                    f"`{hashlib.sha256(weights.read_bytes()).hexdigest()}`",
                ],
            ],
        )
    }

The schedule runs on a clock, so another machine takes other steps: the command repeats the
method, not the bits.

{stages(log)}

Losses are those of the stage's last logged step, in nats. Probes on held-out books and key words:

{curves(log)}

## What it can do

Measured on {found["device"]} in {found["dtype"].removeprefix("torch.")}, on books and key words
that training never used.

Bits per byte of held-out books, {found["text"]["windows"]} windows of {found["text"]["length"]}
tokens: **{found["text"]["bits_per_byte"]:.3f}**. Loss by position, nats a token:

{position}

Induction (share of a repeated random block that is predicted), by length:

{induction}

Needles: all five digits right, percent with 95 % Wilson interval. {found["trials"]} prompts a
depth, five depths.

{accuracy(found["needles"])}

Controls, which must fail:

{accuracy(found["controls"])}

## What its heads do

{heads(found[f"heads_{longest}"])}

## With AnchorAttention, θ = 12, in every layer

{against_dense(found["anchor"], found["anchor_trials"])}

A needle is lost where it is neither in the initial region nor in the window. What it takes to lose
it, or to keep it ({found["causes"][0]["asked"]} prompts of {
        found["causes"][0]["length"]
    } tokens for
each line, needle at a quarter and at half of the text; dense attention in all other heads):

{causes(found["causes"])}

So the retrieval heads lose it, they alone, and pooling is the cause: few rows of a block ask, and
the test looks at the mean of the block's queries. `anchor_lab/experiments/model/explain.py` measures the same from the
other side: how far the needle's score lies from the anchor for the row, and for the mean.

This is a hard case: the answer stands in the prompt, and the prompt ends with a full block. In
made-up prose that ends anywhere in a block more is found, and more still when the answer is
generated, since decoding is dense: `results/retrieval/written.md`.

## Limits

One seed. The needle sentences and the question come from a handful of templates. The books are
English novels and long non-fiction from before 1929. At {
        beyond["length"]
    } tokens, twice the longest
length above, there is a glance only, on {beyond["device"]}: {beyond["bits_per_byte"]:.3f} bits per
byte in {beyond["windows"]} window(s), {100 * single["accuracy"]:.0f} % of {
        single["asked"]
    } needles found.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = Path("anchor_models/model")
    parser.add_argument("--log", type=Path, default=Path("training/logs/full.jsonl"))
    parser.add_argument("--evaluation", type=Path, default=Path("results/model/evaluation.json"))
    parser.add_argument("--weights", type=Path, default=model / "model.safetensors")
    parser.add_argument("--out", type=Path, default=model / "README.md")
    options = parser.parse_args()
    options.out.write_text(card(options.log, options.evaluation, options.weights))


if __name__ == "__main__":
    main()
