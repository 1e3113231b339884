"""Compare what sparse attention methods keep, lose and cost, on activations real or made up.

Every method is run over its own knobs on every head asked for. The table grows after each layer
and method; the same command goes on where an interrupted one stopped, and more methods, layers or
heads add to it. They run on what a model's attention is given while it reads a text, on what was
captured from any model and saved, or on made-up queries and keys of which a known share is heavy.

examples:
  anchor-ref compare
  anchor-ref compare --text book.txt --length 8192 --methods AnchorAttention XAttention
  anchor-ref compare --model meta-llama/Llama-3.2-1B --dtype bfloat16 --layers 4 8 --heads 0 1
  anchor-ref compare --capture captured.safetensors --device cuda
  anchor-ref compare --planted 0.05 --length 16384 --seed 1
"""

import argparse
import math
from pathlib import Path

from anchor_lab.commands import common
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import density_floor

LEVEL = 0.5  # of each budget, in the summary, where that is enough for first group and windows
GROUP = AnchorConfig().group_size
RECALL = "recall_beyond"  # rows of the first group keep everything, and flatter every mean
DENSITY = 0.03  # of planted keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to compare, on what, and where to."""
    length = "tokens (default: all of a file or capture, 4096 of what is made up)"
    common.add_input(parser, "document", length, (*common.DTYPES, "float64"))
    # None is what was not given: what was, but would not be used, is refused.
    defaults = {name: parser.get_default(name) for name in ("model", "text", "dtype", "seed")}
    parser.set_defaults(defaults=defaults, **dict.fromkeys(defaults))
    add = parser.add_argument
    add(
        "--capture",
        type=Path,
        metavar="PATH",
        help="in place of a model: what save_capture wrote into a file, or "
        "capture_qkv(save_to=) into a folder",
    )
    add(
        "--planted",
        type=float,
        nargs="?",
        const=DENSITY,
        metavar="DENSITY",
        help=f"in place of a model: made up, with this share of the keys heavy ({DENSITY})",
    )
    add(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="default: all; MInference is VerticalSlash; a wrong name lists them",
    )
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
        default=GROUP,
        help="queries that share their stripes, a multiple of 128 (default: 2048, as in models)",
    )
    add(
        "--tail",
        type=int,
        default=0,
        metavar="ROWS",
        help="last queries that keep every key with any method (default: 0, each as published)",
    )
    add(
        "--correction",
        choices=("mean", "delta"),
        help="with any method: a pseudo-key for what is dropped of each block, or what every 64th "
        "row misses added to those behind it (default: neither)",
    )
    add("--out", type=Path, default=Path("comparison"), help="folder (default: ./comparison)")
    add("--parquet", action="store_true", help="write compare.parquet beside compare.csv")


def run(options: argparse.Namespace) -> int:
    """Load, measure what is missing, write table and figure, print who is ahead."""
    common.need("compare", ("tqdm", "pandas", "matplotlib", *["pyarrow"] * options.parquet))
    import pandas as pd

    from anchor_lab.experiments.compare.equal import mean_curves
    from anchor_lab.experiments.compare.figure import comparison_figure, data_budgets
    from anchor_lab.experiments.compare.measure import sweeps
    from anchor_lab.experiments.compare.runs import describe, open_table, run_comparison, shown

    sweeps(options.methods)  # a wrong name is refused before anything is loaded
    AnchorConfig(tail=options.tail)
    common.check_folder("out", options.out)
    source = read_source(options)
    group = options.group
    if source.length <= group:
        raise ValueError(
            f"prompt must have more tokens than a group, {group}, got {source.length}: one group "
            "is dense with any threshold; take a longer one, or smaller groups with --group"
        )
    chosen = sweeps(options.methods, group)
    heads = chosen_heads(options.heads, source)
    added = options.correction
    about = describe(source, group, options.tail, added)
    table = open_table(options.out / "compare.csv", about)
    frame = run_comparison(
        source, table, chosen, options.layers, heads, shown, options.tail, group, added
    )
    if options.parquet:
        pd.DataFrame(table.rows).to_parquet(options.out / "compare.parquet", index=False)
    curves = mean_curves(frame)
    about = (
        f"{source.title}, {source.length} tokens, groups of {group}, "
        f"{curves['heads'].iloc[0]} heads"
        + f", a tail of {options.tail}" * bool(options.tail)
        + f", {added} correction" * bool(added)
    )
    floor = least_density(source.length, group, options.tail)
    level = level_above(floor)
    print(
        f"{about}. First group and windows alone are {floor:.3f} of the pairs.\n"
        f"Mean recall beyond the first group where {level:.0%} of dense attention is spent:\n"
    )
    means = {
        budget: {method: mean for method, (mean, _) in found.items()}
        for budget, found in data_budgets(curves, level, RECALL).items()
    }
    shape = {"float_format": "{:.4f}".format, "na_rep": "out of reach", "col_space": 16}
    print(pd.DataFrame(means).to_string(**shape))
    figure = comparison_figure(curves, level, about, RECALL)
    figure.savefig(options.out / "compare.png")
    print(f"\n{options.out}: compare.csv, compare.png, settings.json")
    return 0


def least_density(length: int, group: int, tail: int = 0) -> float:
    """Density of AnchorAttention in groups of so many queries where no candidate is kept.

    Raises:
        ValueError: `group` is no multiple of the block size.
    """
    block = AnchorConfig().block_size
    return float(density_floor(AnchorConfig(step=group // block, tail=tail), length, length))


def level_above(floor: float) -> float:
    """`LEVEL`; where the floor is above, the next tenth, which tiles and choosing fit below."""
    return max(LEVEL, min(1.0, math.ceil(10 * floor + 0.2) / 10))


def read_source(options: argparse.Namespace):
    """The `Source` asked for; options that were not given get their defaults.

    Raises:
        ValueError: an option was given that would not be used; or see `common.load_input` and
            `anchor_lab.sources`.
    """
    from anchor_lab import sources

    names = (*options.defaults, "planted")
    given = {name for name in names if getattr(options, name) is not None}
    if options.capture is not None:
        common.refuse_unused(given, f"--capture {options.capture}")
    elif options.planted is not None:
        common.refuse_unused(given - {"planted", "seed"}, f"--planted {options.planted:g}")
    elif options.text not in (None, *common.MADE_UP):
        common.refuse_unused(given & {"seed"}, f"--text {options.text}")
    for name in options.defaults.keys() - given:
        setattr(options, name, options.defaults[name])
    if options.capture is not None:
        common.need("compare --capture", ["safetensors"])
        return sources.saved_capture(options.capture, options.length, options.device)
    if options.planted is not None:
        return sources.planted(options.length, options.planted, options.seed, options.device)
    model, _, text = common.load_input(options)
    return sources.read_by_model(model, options.model, text)


def _head(word: str) -> int | str:
    if word == "all":
        return word
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or all, got {word!r}") from None


def chosen_heads(asked: list[int | str] | None, source) -> list[int] | None:
    """The query heads to look at; None for all.

    Args:
        asked: what --heads was given.
        source: which heads there are, and how many key heads.

    Raises:
        ValueError: all stands beside numbers.
    """
    if asked is None:
        return source.first_readers()
    if "all" not in asked:
        return asked
    if others := sorted(set(asked) - {"all"}):
        raise ValueError(f"heads must be numbers, or all alone, got all beside {others[0]}")
    return None
