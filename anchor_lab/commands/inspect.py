"""Report on the sparsity of a model on a text: one HTML page with every head, every θ.

Every head asked for is measured at all thresholds from 0 to 32. Then the whole model reads the
text with dense attention and with AnchorAttention, and a few facts are hidden in made-up prose and
asked for: what is lost here? Then the page is drawn. A run that was interrupted goes on where it
stopped when the same command is given again.

examples:
  anchor-ref inspect
  anchor-ref inspect --text book.txt --length 16384 --target-recall 0.98
  anchor-ref inspect --model meta-llama/Llama-3.2-1B --dtype bfloat16 --layers 4 8 --heads 0 1
"""

import argparse
import math
from dataclasses import astuple
from functools import partial
from pathlib import Path

from anchor_lab.commands import common, lost
from anchor_lab.experiments.experiment import progress, progress_by
from anchor_models.thresholds import check_target
from anchor_ref.config import AnchorConfig

LENGTH = 8192
NEEDED = ("transformers", "tqdm", "matplotlib", "nbclient", "nbconvert", "latex2mathml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to look at, on which text, and where the report goes."""
    common.add_input(parser, "retrieval", f"tokens of the text (default: {LENGTH})")
    parser.set_defaults(length=LENGTH, seed=None)  # None: not given
    add = parser.add_argument
    add("--heads", nargs="+", type=int, metavar="H", help="query heads (default: all)")
    add("--theta", type=float, help="threshold to show (default: the target's)")
    add(
        "--target-recall",
        type=float,
        default=0.95,
        metavar="R",
        help="mean recall beyond the first group that θ is recommended for (default: 0.95)",
    )
    add(
        "--rates",
        metavar="FILE",
        help="what `python -m anchor_lab.experiments.crossover.fit` wrote for your GPU, for the "
        "expected times (default: measured here, in seconds, and the project's own GPU)",
    )
    add(
        "--answers",
        type=int,
        default=lost.PROMPTS,
        metavar="N",
        help=f"prompts of each of the tasks {', '.join(lost.TASKS)} of `anchor-ref answers` to "
        f"ask as well; 0 asks none (default: {lost.PROMPTS})",
    )
    add(
        "--no-losses",
        action="store_true",
        help="do not read the text with the whole model, once dense and once for each θ, for what "
        "its predictions lose",
    )
    add("--out", type=Path, default=Path("report"), help="folder (default: ./report)")


def run(options: argparse.Namespace) -> int:
    """Load, measure what is missing, draw the page."""
    common.need("inspect", NEEDED)
    from anchor_lab.analysis.curves import THETAS
    from anchor_lab.experiments.environment import peak_memory
    from anchor_lab.report import inspect, inspected, rates, render
    from anchor_lab.report.forecast import forecast
    from anchor_models.integration.cost import read_values
    from anchor_models.probe import attention_calls

    _check(options)
    options.seed = options.seed or 0
    costs = [] if options.rates is None else [read_values(options.rates)]
    thetas = THETAS if options.theta is None else sorted({*THETAS, options.theta})
    check_target(options.target_recall)
    model, tokenizer, text = common.load_input(options)
    # Its sizes are those of layers that attend.
    attention_calls(model, text.tokens.to(model.device))
    n, folder = text.tokens.shape[1], options.out / "results"
    config = model.config.get_text_config()
    head_dim = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    working = inspect.working_bytes(n, head_dim, len(thetas))
    print(f"{options.model}, {text.name}, {n} tokens; results in {folder}")
    print(f"memory beside the model: {_mib(working)} for a head, and one captured layer")
    inspect.inspect_layers(
        model, tokenizer, options.model, text, folder,
        layers=options.layers, heads=options.heads, thetas=thetas,
        progress=partial(progress_by, part=str, desc="layers"),
    )  # fmt: skip
    found = inspected.load_inspected(folder)
    recommended = inspected.recommended_theta(found, options.target_recall)
    theta = recommended if options.theta is None else options.theta
    told = lost.what_is_lost(model, tokenizer, text, theta, options, found.settings)
    del model
    inspected.calibration(found, options.target_recall).save(options.out / "calibration.json")
    costs = costs or rates.known_here(options.device, **found.sizes)
    page = render.render_report(
        options.out,
        f"AnchorAttention on {options.model}",
        partial(progress, desc="page"),
        FOLDER=folder.name,
        THETA=theta,
        TARGET=options.target_recall,
        COSTS=costs,
        LOST=list(map(astuple, told.said)),
        ANSWERS=told.answers,
    )
    at = found.thetas.index(theta)
    for values in costs:
        print("\n" + "\n".join(forecast(found, theta, values).lines()))
    print(
        f"\nθ = {theta:g}: recall beyond the first group {found.recall[at].mean():.3f}, "
        f"density {found.density[at].mean():.3f} with a floor of {found.floor:.3f}; "
        f"recommended for a recall of {options.target_recall:g}: θ = {recommended:g}"
    )
    print("\n" + "\n".join(one.words for one in told.said) + "\n")
    print(f"peak memory {_mib(peak_memory())}\n{page}: open it in any browser")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, what needs no model to be seen as wrong."""
    group = AnchorConfig().group_size
    if options.theta is not None and not math.isfinite(options.theta):
        raise ValueError(f"theta must be finite, got {options.theta}")
    if options.length <= group:
        raise ValueError(
            f"length must be longer than a group of {group} tokens, of which nothing is skipped, "
            f"got {options.length}"
        )
    if options.seed is not None and options.text not in common.MADE_UP:
        common.refuse_unused({"seed"}, f"--text {options.text}")
    if options.rates is not None:
        common.check_file("rates", options.rates, "a file of anchor_lab.experiments.crossover.fit")
    if options.answers < 0:
        raise ValueError(f"answers must be at least 0, got {options.answers}")
    common.check_folder("out", options.out)


def _mib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:,.0f} MiB"
