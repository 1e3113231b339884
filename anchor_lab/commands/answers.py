"""Hide facts in long prompts and ask for them: which answers does AnchorAttention lose?

Made-up prose with a fact in it, a question about the fact, and the answer that the model then
writes, greedily: once after a dense prefill, once after one with AnchorAttention. Writing is dense
in both. Questions are put through the tokenizer's chat template, if it has one; the answer has
begun, and the model goes on with it. A run that was interrupted goes on where it stopped when the
same command is given again, and more tasks, placements or prompts add to it.

exit status: 0 when as many answers are found as with dense attention, 2 % of the prompts aside;
1 when fewer are; 2 when something was refused, or dense attention finds too few to tell.

examples:
  anchor-ref answers
  anchor-ref answers --model smollm2 --length 8000 --tail 128 --prompts 20
  anchor-ref answers --model Qwen/Qwen3-8B --dtype bfloat16 --device cuda --theta calibration.json
  anchor-ref answers --tail 0 --retrieval-heads
"""

import argparse
import json
from functools import partial
from pathlib import Path

from anchor_lab.commands import common
from anchor_models.backend import TAIL
from anchor_ref.config import AnchorConfig

DTYPES = ("float32", "bfloat16", "float16")
THETA = AnchorConfig().theta
HEADS = "retrieval_heads.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, what is asked of it, and how it reads."""
    from anchor_lab.experiments.answers import run as answers
    from anchor_lab.experiments.answers.ask import NEW_TOKENS
    from anchor_lab.experiments.answers.prompts import PLACEMENTS, SHORT, TASKS

    add = parser.add_argument
    add(
        "--model",
        default=common.BUNDLED,
        help="a folder, smollm2, or a name on the hub (default: bundled)",
    )
    add(
        "--dtype",
        "--model-dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help=f"of the weights (default: {DTYPES[0]})",
    )
    add("--device", default="cpu", help="as PyTorch names it (default: cpu)")
    add(
        "--length",
        type=int,
        default=answers.LENGTH,
        help=f"tokens of a prompt, more than a group of 2048 (default: {answers.LENGTH})",
    )
    add(
        "--theta",
        default=f"{THETA:g}",
        metavar="θ",
        help=f"a number, or the file of a calibration (default: {THETA:g})",
    )
    add("--tail", type=int, default=TAIL, help=f"rows that see every key (default: {TAIL})")
    tasks, short = ", ".join(TASKS), ", ".join(SHORT)
    told = f"of {tasks}; default: {short}"
    add("--tasks", nargs="+", metavar="TASK", default=list(SHORT), help=told)
    add(
        "--placements",
        nargs="+",
        metavar="PLACE",
        default=["end"],
        help=f"of the question: {', '.join(PLACEMENTS)} (default: end)",
    )
    add(
        "--prompts",
        type=int,
        default=answers.PROMPTS,
        help=f"of each task and placement (default: {answers.PROMPTS})",
    )
    add("--seed", type=int, default=0, help="of the first prompt (default: 0)")
    add(
        "--new-tokens",
        type=int,
        default=NEW_TOKENS,
        help=f"that the model may write (default: {NEW_TOKENS})",
    )
    add(
        "--retrieval-heads",
        action="store_true",
        help="first look for the heads that fetch the facts, keep those dense, and write the "
        f"thresholds to {HEADS}",
    )
    add("--out", type=Path, default=Path("answers"), help="folder (default: ./answers)")


def run(options: argparse.Namespace) -> int:
    """Ask what was not asked yet, say what came of it."""
    common.need("answers", ("transformers", "tqdm"))
    from anchor_lab.experiments.answers import run
    from anchor_lab.experiments.answers.prompts import PLACEMENTS, TASKS, check_names
    from anchor_lab.experiments.experiment import progress_by
    from anchor_lab.sources import check_length
    from anchor_models.models import load_pretrained

    check_names("tasks", options.tasks, TASKS)
    check_names("placements", options.placements, PLACEMENTS)
    AnchorConfig(tail=options.tail)
    common.check_folder("out", options.out)
    theta, shown_theta = _theta(options.theta)
    model, tokenizer = load_pretrained(
        options.model, common.dtype_of(options.dtype), options.device
    )
    check_length(model, options.length + options.new_tokens)
    if options.retrieval_heads:
        theta, said = _retrieval_heads(model, tokenizer, theta, options)
        print(said)
        shown_theta = f"{shown_theta}, retrieval heads dense"
    store = run.open_store(options.out, settings(model, theta, options))
    print(
        f"{options.model}, {options.length} tokens, θ = {shown_theta}, a tail of {options.tail}; "
        f"answers in {store.path}"
    )
    found = run.short_answers(
        model,
        tokenizer,
        length=options.length,
        theta=theta,
        tail=options.tail,
        tasks=options.tasks,
        placements=options.placements,
        prompts=options.prompts,
        seed=options.seed,
        new_tokens=options.new_tokens,
        store=store,
        progress=partial(progress_by, part=cell, desc="answers"),
    )
    header = ("task", "question", "dense", "AnchorAttention", "lost", "won", "")
    print()
    for task, place, dense, ours, lost, won, few in (header, *rows(found)):
        print(f"{task:14}{place:14}{dense:>22}{ours:>22}{lost:>6}{won:>6}   {few}".rstrip())
    print(f"\n{conclusion(found)}")
    all_of_them = telling(found)
    if not all_of_them.says_something:
        return 2
    return 0 if all_of_them.keeps() else 1


def rows(found: dict) -> list[list[str]]:
    """Of each task and placement what was found, in words; what `short_answers` returned."""
    from anchor_lab.experiments.answers.counts import shown

    return [
        [
            task,
            placement,
            *(shown(x, one.prompts) for x in (one.dense, one.ours)),
            *map(str, (one.lost, one.won)),
            "" if one.says_something else "dense finds too few",
        ]
        for (task, placement), one in found.items()
    ]


def conclusion(found: dict) -> str:
    """All of it in a sentence; tasks that dense attention cannot do play no part."""
    from anchor_lab.experiments.answers.counts import in_words

    return in_words(telling(found))


def cell(key: tuple) -> str:
    """Of something that is asked, what the log calls it: its task and placement."""
    return ", ".join(key[:2])


def telling(found: dict):
    """Counts of the tasks together that dense attention can do; of all, where it can do none."""
    from anchor_lab.experiments.answers.counts import together

    telling = [one for one in found.values() if one.says_something]
    return together(telling or list(found.values()))


def _theta(word: str) -> tuple[object, str]:
    """(θ for `options`, what to call it): a number, or the path of a calibration."""
    try:
        number = float(word)
    except ValueError:
        common.check_file("theta", word, "a number or the file of a calibration")
    else:
        return AnchorConfig(theta=number).theta, word
    from anchor_models.calibration import Calibration

    return Calibration.load(word), word


def _retrieval_heads(model, tokenizer, theta: object, options) -> tuple[dict, str]:
    """(θ by layer and head, what was found), written into the folder."""
    from anchor_lab.analysis.retrieval_heads import find_retrieval_heads, thetas_for
    from anchor_lab.experiments.answers.prompts import make_prompt
    from anchor_lab.experiments.store import write_whole

    # Others than those asked afterwards: seeds below the first one.
    prompts = [
        make_prompt(tokenizer, task, options.length, options.seed - 1, "end")
        for task in options.tasks
    ]
    found = find_retrieval_heads(model, prompts)
    thetas = thetas_for(model, theta, found.heads)
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({str(layer): list(row) for layer, row in thetas.items()}, indent=1)
    write_whole(options.out / HEADS, text + "\n")
    return thetas, f"{found.in_words()}; θ by head in {options.out / HEADS}"


def settings(model, theta: object, options: argparse.Namespace) -> dict:
    """What all answers in a folder share; tasks, placements and prompts may be added."""
    from importlib.metadata import version

    from anchor_lab.sources import fingerprint
    from anchor_models.calibration import Calibration

    if isinstance(theta, Calibration):
        theta = {layer: list(heads) for layer, heads in theta.thetas.items()}
    if isinstance(theta, dict):
        theta = {str(layer): list(map(str, heads)) for layer, heads in theta.items()}
    return {
        "model": options.model,
        "weights": fingerprint(model.parameters()),
        "dtype": options.dtype,
        "length": options.length,
        "theta": theta if isinstance(theta, dict) else str(theta),
        "tail": options.tail,
        "new_tokens": options.new_tokens,
        "versions": {name: version(name) for name in ("anchor-attention", "transformers")},
    }
