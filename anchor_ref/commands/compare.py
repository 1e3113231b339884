"""Compare what sparse attention methods keep, lose and cost on a model's own activations.

Every method is run over its own knobs on every head asked for. The table grows after each layer
and method; the same command goes on where an interrupted one stopped, and more methods, layers or
heads add to it.

examples:
  anchor-ref compare
  anchor-ref compare --text book.txt --length 8192 --methods AnchorAttention XAttention
  anchor-ref compare --model meta-llama/Llama-3.2-1B --dtype bfloat16 --layers 4 8 --heads 0 1
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from anchor_ref.commands import common

LEVEL = 0.5  # of each budget, in the summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to compare, on what, and where to."""
    length = "tokens (default: all of a file, 4096 of what is made up)"
    common.add_input(parser, "document", length, (*common.DTYPES, "float64"))
    add = parser.add_argument
    add("--methods", nargs="+", metavar="NAME", help="default: all; a wrong name lists them")
    add(
        "--heads",
        nargs="+",
        type=_head,
        metavar="H",
        help="query heads, or all (default: the first of each key head)",
    )
    add(
        "--group",
        type=int,
        metavar="S",
        help="queries that share their stripes; default: 2048 as published, "
        "a quarter of prompts shorter than 8192",
    )
    add("--out", type=Path, default=Path("comparison"), help="folder (default: ./comparison)")
    add("--parquet", action="store_true", help="write compare.parquet beside compare.csv")


def run(options: argparse.Namespace) -> int:
    """Load, measure what is missing, write table and figure, print who is ahead."""
    common.need("compare", ("tqdm", "pandas", "matplotlib", *["pyarrow"] * options.parquet))
    from anchor_ref.figures.compare import comparison_figure, data_budgets
    from anchor_ref.lab.compare import group_for, sweeps
    from anchor_ref.lab.equal import mean_curves
    from anchor_ref.lab.results import Results
    from anchor_ref.lab.runs import describe_run, run_comparison

    sweeps(options.methods)  # a wrong name is refused before anything is loaded
    model, _, text = common.load_input(options)
    group = group_for(text.tokens.shape[1]) if options.group is None else options.group
    if text.tokens.shape[1] <= group:
        raise ValueError(
            f"text must have more tokens than a group, {group}, got {text.tokens.shape[1]}: "
            "one group is dense with any threshold"
        )
    chosen = sweeps(options.methods, group)
    heads = chosen_heads(options.heads, model.config.get_text_config())
    results = Results(options.out, describe_run(model, options.model, text, group))
    frame = run_comparison(model, text, results, chosen, options.layers, heads, _bar)
    if options.parquet:
        results.frame.to_parquet(options.out / "compare.parquet", index=False)
    curves = mean_curves(frame)
    about = (
        f"{options.model}, {text.name}, {text.tokens.shape[1]} tokens, groups of {group}, "
        f"{curves['heads'].iloc[0]} heads"
    )
    print(f"{about}. Mean recall where {LEVEL:.0%} of dense attention is spent:\n")
    print(_summary(data_budgets(curves, LEVEL)))
    figure = comparison_figure(curves, LEVEL, about)
    figure.savefig(options.out / "compare.png")
    print(f"\n{options.out}: compare.csv, compare.png, settings.json")
    return 0


def _head(word: str) -> int | str:
    return word if word == "all" else int(word)


def chosen_heads(asked: list[int | str] | None, config) -> list[int] | None:
    """The query heads to look at; None for all.

    Args:
        asked: what --heads was given.
        config: of the language model.
    """
    if asked is None:
        heads = config.num_attention_heads
        shared = heads // (getattr(config, "num_key_value_heads", None) or heads)
        return list(range(0, heads, shared))
    return None if "all" in asked else asked


def _bar(left: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    with common.bar(left, unit="method") as bar:
        for layer, method in bar:
            bar.set_postfix_str(f"layer {layer}, {method}")
            yield layer, method


def _summary(points: dict[str, dict[str, tuple[float, float]]]) -> str:
    """A line for each method: mean recall at each budget."""
    methods = list(points["density"])
    width = max(map(len, methods))
    lines = [" ".join([" " * width, *(f"{name:>16}" for name in points)])]
    for method in methods:
        means = (points[budget][method][0] for budget in points)
        shown = (f"{mean:16.4f}" if mean == mean else f"{'out of reach':>16}" for mean in means)
        lines.append(" ".join([f"{method:{width}}", *shown]))
    return "\n".join(lines)
