"""An answer that stands in the prompt, or is written after it: which does the model find?

    python -m anchor_lab written            writes generated.json and .md
    python -m anchor_lab written --table    .md from generated.json

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

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import count, islice
from math import inf
from pathlib import Path

import torch

from anchor_lab.experiments import command
from anchor_lab.experiments.attention.page import markdown
from anchor_lab.experiments.retrieval.measure import environment
from anchor_lab.experiments.retrieval.prompts import Prompt, make_retrieval
from anchor_lab.experiments.retrieval.score import wilson
from anchor_lab.experiments.store import write_whole
from anchor_models import choose_backend, load_bundled
from anchor_models.transformers import options, record
from anchor_ref import AnchorConfig
from anchor_ref.regions import groups

HERE = Path("results") / "retrieval"
LENGTHS, PROMPTS = (4096, 8192, 16384), 50
THETAS = (None, 12.0, 9.0, 6.0, -inf)  # None is dense attention
ROWS = [range(start, start + 32) for start in range(1, 129, 32)]  # of a block of 128


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
    tokens = prompt.tokens[None].to(model.device)
    question, digits = tokens[:, : place.start], tokens[:, place.start : place.stop]
    logits = model(tokens[:, : place.stop], use_cache=False, logits_to_keep=len(place) + 1).logits
    written = model.generate(
        question,
        attention_mask=torch.ones_like(question),
        max_new_tokens=len(place),
        do_sample=False,
    )
    return (
        torch.equal(logits[:, :-1].argmax(-1), digits),
        torch.equal(written[:, place.start :], digits),
    )


def backend_of(model) -> str:
    """What runs AnchorAttention on the model's device."""
    heads, dim = model.config.num_attention_heads, model.config.head_dim
    name, _ = choose_backend(torch.empty(1, heads, 1, dim, dtype=model.dtype, device=model.device))
    return {"triton": "the kernels", "torch": "the reference"}[name]


def measure(model, prompts: list[Prompt], theta: float | None, config: AnchorConfig) -> dict:
    """Answers read and written, and the mean density, of prompts of about one length."""
    sizes = {"block_size": config.block_size, "step": config.step}
    model.set_attn_implementation("sdpa" if theta is None else "anchor_attention")
    found, densities = [], []
    for prompt in prompts:
        with nullcontext() if theta is None else options(theta=theta, **sizes), record() as stats:
            found.append(answers(model, prompt))
        densities.append(1.0 if theta is None else stats.density)
    read, written = zip(*found, strict=True)
    return {
        "theta": None if theta is None else str(theta),
        "read": read,
        "written": written,
        # Of the last block of either prompt, as far as it goes.
        "rows": {
            "read": [_rows(prompt.answers[0].stop, config) for prompt in prompts],
            "written": [_rows(prompt.answers[0].start, config) for prompt in prompts],
        },
        "density": sum(densities) / len(densities),
    }


def _rows(tokens: int, config: AnchorConfig) -> int:
    """How many rows the last block of so many tokens has."""
    return (tokens - 1) % config.block_size + 1


def page(results: dict) -> str:
    """The results as Markdown."""
    found, by_rows = [], []
    for cell in results["cells"]:
        prefill = "dense" if cell["theta"] is None else f"θ = {_number(cell['theta'])}"
        start = [str(cell["length"]), prefill]
        shares = [_share(cell["read"]), _share(cell["written"])]
        found.append([*start, f"{cell['density']:.2f}", *shares])
        by_rows.append([*start, *(_counts(cell, rows) for rows in ROWS)])
    start = ["tokens", "prefill"]
    row_header = [*start, *(f"{rows[0]}–{rows[-1]} rows" for rows in ROWS)]
    versions = f"torch {results['torch']}, transformers {results['transformers']}"
    (prompts,) = {len(cell["read"]) for cell in results["cells"]}
    return f"""# {__doc__.splitlines()[0]}

Made by `python -m anchor_lab written` on {results["date"]}, {results["device"]}, {versions}.
One fact in made-up prose, one question at its end; the bundled model in {results["dtype"]}.
AnchorAttention in every layer, published sizes, does the prefill ({results["backend"]});
decoding is dense. All rows of a length have the same {prompts} prompts.

- **Read**: the right answer stands in the prompt, and each of its five digits is the most likely
  token after those before it. Every digit is asked for by a row of the prefill.
- **Written**: the prompt ends with the question. The first digit is asked for by the last row of
  the prefill, each other one by a query of its own. So a guess of the first, one in ten, may be
  enough.

Only facts among the candidates of the question's group count: others are always seen. In brackets
95 % Wilson intervals. Density is the mean over layers and both prefills.

{markdown([*start, "density", "read", "written"], found)}

## By how many rows the last block has

The mean query of a block is over the rows that it has. In a prompt that ends early in a block of
128 the rows that ask for the fact are a large part of them, in one that ends with the block a few
of 128. A prompt to be read is longer by the answer. Answers read, of the prompts with so many
rows; answers written, of those with so many rows:

{markdown(row_header, by_rows)}
"""


def _number(theta: str) -> str:
    return f"{float(theta):g}".replace("-inf", "−∞")


def _counts(cell: dict, rows: range) -> str:
    """Read and written, each of the prompts whose last block has that many rows."""
    counts = []
    for way in ("read", "written"):
        ends = zip(cell[way], cell["rows"][way], strict=True)
        chosen = [right for right, n in ends if n in rows]
        counts.append(f"{sum(chosen)} of {len(chosen)}")
    return "; ".join(counts)


def _share(right: list[bool]) -> str:
    share = sum(right) / len(right)
    low, high = wilson(share, len(right))
    return f"{share:.0%} ({low:.0%}–{high:.0%})"


def main() -> None:
    chosen = command.parser(__doc__, HERE / "written.json").parse_args()
    if not chosen.table:
        model, tokenizer = load_bundled(device=chosen.device)
        results = {
            "date": time.strftime("%Y-%m-%d"),
            **environment(chosen.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "backend": backend_of(model),
            "cells": [],
        }
        config = AnchorConfig()
        for length in LENGTHS:
            prompts = list(islice(asked(tokenizer, length, config), PROMPTS))
            for theta in THETAS:
                cell = {"length": length, **measure(model, prompts, theta, config)}
                print(length, theta, sum(cell["read"]), sum(cell["written"]), flush=True)
                results["cells"].append(cell)
        write_whole(chosen.out, json.dumps(results, indent=1) + "\n")
    results = json.loads(chosen.out.read_text())
    write_whole(chosen.out.with_suffix(".md"), page(results))
    print(page(results))


if __name__ == "__main__":
    main()
