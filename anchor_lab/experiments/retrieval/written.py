"""An answer that stands in the prompt, or is written after it: which does the model find?

    python -m anchor_lab written            writes written.json and .md
    python -m anchor_lab written --table    .md from written.json

One fact in a text of the bundled model, one question at its end. AnchorAttention in every layer,
with the published sizes, does the prefill; decoding is dense.

read       the right answer stands in the prompt, and each of its five digits is the most likely
           token after those before it: every digit is asked for by a row of the prefill
written    the prompt ends with the question, and five tokens are generated: the first is asked
           for by the last row of the prefill, each other one by a query of its own

Only facts among the candidates of the question's group count: a fact in the initial region or in
the window is always seen. Prompts end at any row of their last block, and its mean query is over
the rows that it has.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import count, islice
from math import inf
from pathlib import Path

import torch

from anchor_lab.analysis.intervals import wilson
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import render
from anchor_lab.experiments.retrieval.measure import surroundings
from anchor_lab.experiments.retrieval.prompts import Prompt, make_retrieval
from anchor_lab.experiments.retrieval.score import run_prompts
from anchor_lab.experiments.store import Store
from anchor_models import choose_backend, load_bundled
from anchor_ref import AnchorConfig
from anchor_ref.regions import groups

PROMPTS = {4096: 50, 8192: 50, 16384: 50}  # by length
QUICK = {2560: 2}
THETAS = (None, 12.0, 9.0, 6.0, -inf)  # None is dense attention
QUICK_THETAS = (None, -inf)
ROWS = [range(start, start + 32) for start in range(1, 129, 32)]  # of a block of 128
WAYS = ("read", "written")


def run(chosen: argparse.Namespace) -> int:
    """Measure the lengths and thresholds that are missing."""
    plan, thetas = (QUICK, QUICK_THETAS) if chosen.quick else (PROMPTS, THETAS)
    model, tokenizer = load_bundled(device=chosen.device)
    settings, own = surroundings(chosen.device)
    settings = {
        "prompts": plan,
        "dtype": str(model.dtype).removeprefix("torch."),
        "backend": backend_of(model),
        **settings,
    }
    store, config = Store(chosen.out, ("length", "theta"), settings, own), AnchorConfig()
    for length, prompts in plan.items():
        drawn = list(islice(asked(tokenizer, length, config), prompts))
        for theta in thetas:
            if not store.holds(length=length, theta=_name(theta)):
                row = {"length": length, **measure(model, drawn, theta, config)}
                print(length, theta, sum(row["read"]), sum(row["written"]), flush=True)
                store.add([row])
    return 0


def asked(tokenizer, length: int, config: AnchorConfig) -> Iterator[Prompt]:
    """Prompts of up to a block less than `length` tokens whose fact lies among candidates."""
    for seed in count():
        prompt = make_retrieval(tokenizer, "single", length - 37 * seed % config.block_size, seed)
        last = groups(config, len(prompt.tokens), len(prompt.tokens))[-1]
        (fact,) = prompt.sources
        if fact.start in last.candidates and fact.stop - 1 in last.candidates:
            yield prompt


@torch.no_grad()
def answers(model, prompt: Prompt) -> tuple[bool, bool]:
    """Whether the model reads the answer in the prompt, and whether it writes it."""
    (place,) = prompt.answers
    [[read]], _ = run_prompts(model, [replace(prompt, tokens=prompt.tokens[: place.stop])])
    question = prompt.tokens[None, : place.start].to(model.device)
    written = model.generate(
        question,
        attention_mask=torch.ones_like(question),
        max_new_tokens=len(place),
        do_sample=False,
    )
    digits = prompt.tokens[place.start : place.stop]
    return read, torch.equal(written[0, place.start :].cpu(), digits)


def backend_of(model) -> str:
    """What runs AnchorAttention on the model's device, as `choose_backend` names it."""
    heads, dim = model.config.num_attention_heads, model.config.head_dim
    q = torch.empty(1, heads, 1, dim, dtype=model.dtype, device=model.device)
    return choose_backend(q).name


def measure(model, prompts: Sequence[Prompt], theta: float | None, config: AnchorConfig) -> dict:
    """Answers read and written, and the mean density, of prompts of about one length."""
    from anchor_models.transformers import options, record  # makes "anchor_attention" known

    # The stages alone: inside models the last rows would be dense.
    sizes = {"block_size": config.block_size, "step": config.step, "tail": config.tail}
    sizes["when"] = "always"  # the method answers, also where dense attention would be as fast
    model.set_attn_implementation("sdpa" if theta is None else "anchor_attention")
    found, densities = [], []
    for prompt in prompts:
        with nullcontext() if theta is None else options(theta=theta, **sizes), record() as stats:
            found.append(answers(model, prompt))
        densities.append(1.0 if theta is None else stats.density)
    read, written = zip(*found, strict=True)
    return {
        "theta": _name(theta),
        "read": read,
        "written": written,
        # Of the last block of either prompt, as far as it goes.
        "rows": {
            "read": [_rows(prompt.answers[0].stop, config) for prompt in prompts],
            "written": [_rows(prompt.answers[0].start, config) for prompt in prompts],
        },
        "density": sum(densities) / len(densities),
    }


def _name(theta: float | None) -> str | None:
    """A threshold in the results: JSON has no infinity."""
    return None if theta is None else str(theta)


def _rows(tokens: int, config: AnchorConfig) -> int:
    """How many rows the last block of so many tokens has."""
    return (tokens - 1) % config.block_size + 1


def page(results: dict, path: Path) -> str:
    """The results as Markdown."""
    return render(
        "retrieval/written.md.j2",
        title=EXPERIMENT.title,
        dates=list(dict.fromkeys(run["date"] for run in results["runs"])),
        settings=results["settings"],
        prompts=sorted({len(row["read"]) for row in results["rows"]}),
        shares=[
            [*_start(row), f"{row['density']:.2f}", *(_share(row[way]) for way in WAYS)]
            for row in results["rows"]
        ],
        by_rows=[
            [*_start(row), *("; ".join(_count(row, way, n) for way in WAYS) for n in ROWS)]
            for row in results["rows"]
        ],
        parts=[f"{rows[0]}–{rows[-1]} rows" for rows in ROWS],
    )


def _start(row: dict) -> tuple[int, str]:
    """Tokens and prefill."""
    if row["theta"] is None:
        return row["length"], "dense"
    return row["length"], f"θ = {float(row['theta']):g}".replace("-inf", "−∞")


def _count(row: dict, way: str, rows: range) -> str:
    """Answers found of the prompts whose last block has that many rows."""
    ends = zip(row[way], row["rows"][way], strict=True)
    chosen = [right for right, n in ends if n in rows]
    return f"{sum(chosen)} of {len(chosen)}"


def _share(right: Sequence[bool]) -> str:
    share = sum(right) / len(right)
    low, high = wilson(share, len(right))
    return f"{share:.0%} ({low:.0%}–{high:.0%})"


EXPERIMENT = Experiment(
    name="written", about=__doc__, measure=run, page=page, file="retrieval/written.json"
)
