"""Does a public benchmark's score survive? RULER, as lm-evaluation-harness asks and scores it.

    python -m anchor_lab benchmark                   writes benchmark.json and benchmark.md
    python -m anchor_lab benchmark --time-s 450      begins nothing later; the same call goes on
    python -m anchor_lab benchmark --lengths 4096 --tasks niah_single_1 --limit 10
    python -m anchor_lab benchmark --table           .md from benchmark.json

SmolLM2-135M-Instruct answers RULER's tasks, those that make their prompts without a network, with
dense attention and with AnchorAttention at θ = 12, without a tail and with the tail of 512 rows
that models have here. Prompts, chat template, writing and score are the harness's (harness.py);
only the attention differs. For one task it is what

    python -m anchor_models.lm_eval run --model hf --tasks niah_single_1 --limit 50 \\
        --metadata '{"max_seq_lengths": [4096]}' --apply_chat_template --tail 0 --batch_size 1 \\
        --model_args pretrained=smollm2,attn_implementation=anchor_attention,dtype=bfloat16

prints, but each prompt's score is kept, so that lost and won ones can be counted, and a run that
was stopped goes on; --limit may grow from call to call.

Dense attention comes first: where it finds less than half of a task's answers, nothing else is
asked. RULER counts a prompt and most answers in `length`, but not the chat template and the words
that begin an answer: 8064 leaves room for them in the model's 8192 positions. Longer ones are read
by YaRN.

On a CPU the reference runs, on a GPU the kernels. Expected on an H200, not measured: under an
hour; on two shared CPU cores, 10 to 90 s a prompt of 4096 tokens, most of them 15 to 30 s.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Collection, Iterator
from functools import cache
from itertools import product

import torch

from anchor_lab.experiments.answers.ask import DENSE, Way
from anchor_lab.experiments.answers.counts import ENOUGH
from anchor_lab.experiments.benchmark.harness import TASKS, Task, has_template
from anchor_lab.experiments.environment import cuda_facts, environment, kernels_version
from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.smollm2.measure import weights_hash
from anchor_lab.experiments.store import Store
from anchor_models.backend import TAIL
from anchor_models.models import load_pretrained
from anchor_models.smollm2 import NAME
from anchor_ref import AnchorConfig

KEY = ("length", "task", "prompt", "way")
GROUP = AnchorConfig().group_size
LENGTHS, PROMPTS = (4096, 8064), 50
MOST = 500  # prompts that RULER makes
QUICK_LENGTHS, QUICK_TASKS, QUICK_PROMPTS, QUICK_NEW_TOKENS = (2304,), ("niah_single_1",), 1, 4
WAYS = {
    "dense": DENSE,
    "tail 0": Way(AnchorConfig().theta, 0),
    f"tail {TAIL}": Way(AnchorConfig().theta, TAIL),
}


class OtherPromptsError(ValueError):
    """A prompt is another one than that which dense attention was asked."""


def options(parser: argparse.ArgumentParser) -> None:
    """--model, --lengths, --tasks, --limit, --time-s"""
    add = parser.add_argument
    add("--model", default=NAME, help=f"another causal model; default {NAME}")
    shown = " ".join(map(str, LENGTHS))
    add("--lengths", nargs="+", type=_length, help=f"above {GROUP}; default {shown}")
    add("--tasks", nargs="+", choices=TASKS, help="default all")
    add("--limit", type=_limit, help=f"prompts of a task, 1 to {MOST}; default {PROMPTS}")
    add("--time-s", type=float, default=float("inf"), help="begin nothing later")


def _length(word: str) -> int:
    if not word.isdecimal() or int(word) <= GROUP:
        raise argparse.ArgumentTypeError(
            f"must be longer than a group of {GROUP} tokens, of which nothing is skipped, "
            f"got {word}"
        )
    return int(word)


def _limit(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= MOST:
        raise argparse.ArgumentTypeError(f"must be in 1..{MOST}, got {word}")
    return int(word)


def measure(chosen: argparse.Namespace) -> int:
    """Ask what was not asked; 1 when the time was over before all was there, 2 without lm-eval."""
    if importlib.util.find_spec("lm_eval") is None:
        print("anchor_lab benchmark needs lm-eval: pip install '.[lm-eval]'", file=sys.stderr)
        return 2
    quick, cuda = chosen.quick, torch.device(chosen.device).type == "cuda"
    model, tokenizer = load_pretrained(chosen.model, torch.bfloat16, chosen.device)
    new_tokens = QUICK_NEW_TOKENS if quick else None
    settings = {
        "model": chosen.model,
        "weights": weights_hash(model),
        "dtype": "bfloat16",
        "theta": AnchorConfig().theta,
        "chat_template": has_template(tokenizer),
        "new_tokens": new_tokens,
        **environment(chosen.device, ("torch", "transformers", "lm_eval")),
        **(cuda_facts() if cuda else {}),
    }
    run = {"date": settings.pop("date"), "command": chosen.command}
    if cuda:  # elsewhere the reference runs
        run["kernels"] = kernels_version()
    store = Store(chosen.out, KEY, settings, run)
    lengths = chosen.lengths or (QUICK_LENGTHS if quick else LENGTHS)
    tasks = chosen.tasks or (QUICK_TASKS if quick else TASKS)
    count = chosen.limit or (QUICK_PROMPTS if quick else PROMPTS)
    made = cache(lambda length, name: Task(name, length, chosen.model, new_tokens))

    def ask(length: int, name: str, prompt: int, way: str) -> dict:
        return made(length, name).ask(model, tokenizer, prompt, WAYS[way])

    cells = list(product(lengths, tasks))
    enough = 0.0 if quick else ENOUGH  # a few tokens are no answer
    if fill(store, cells, count, ask, chosen.time_s, enough=enough):
        return 0
    print("not all is there: call again to go on, or --table for the page", file=sys.stderr)
    return 1


def fill(
    store: Store,
    cells: list[tuple[int, str]],
    prompts: int,
    ask: Callable[[int, str, int, str], dict],
    seconds: float,
    *,
    enough: float = ENOUGH,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Ask what is missing; whether all is there at the end.

    Args:
        store: gets a row for each prompt and way.
        cells: (length, task).
        prompts: of each cell.
        ask: "score", "hash" and what else is to be kept, of (length, task, prompt, way).
        seconds: nothing is begun later.
        enough: of the answers, that dense attention must find for another way to be asked.
        clock: in seconds.

    Raises:
        OtherPromptsError: a way was asked something else than dense attention.
    """
    started = clock()
    for key in progress(list(_missing(store, cells, prompts))):
        length, task, prompt, way = key
        dense = rows_of(store.rows, length, task, "dense")
        if way != "dense" and not answerable(dense.values(), enough):
            continue
        if clock() - started > seconds:
            return False
        found = ask(*key)
        if way != "dense" and found["hash"] != dense[prompt]["hash"]:
            raise OtherPromptsError(
                f"prompt {prompt} of {task} at {length} must be the one that dense attention was "
                f"asked, {dense[prompt]['hash']}, got {found['hash']}: another version of the "
                "harness or of the tokenizer draws others, give another file"
            )
        store.add([{**dict(zip(KEY, key, strict=True)), **found}])
    return True


def _missing(store: Store, cells, prompts: int) -> Iterator[tuple[int, str, int, str]]:
    """Dense attention first; then prompt by prompt, so that a stop leaves whole ones."""
    others = [way for way in WAYS if way != "dense"]
    for cell in cells:
        order = [(at, "dense") for at in range(prompts)]
        for key in (*order, *product(range(prompts), others)):
            if not store.holds(**dict(zip(KEY, (*cell, *key), strict=True))):
                yield *cell, *key


def rows_of(rows: list[dict], length: int, task: str, way: str) -> dict[int, dict]:
    """The rows of a way, by prompt."""
    key = length, task, way
    return {row["prompt"]: row for row in rows if (row["length"], row["task"], row["way"]) == key}


def answerable(dense: Collection[dict], enough: float = ENOUGH) -> bool:
    """Whether dense attention was asked, and found enough of the answers for a loss to show."""
    return len(dense) > 0 and sum(row["score"] for row in dense) >= enough * len(dense)
