"""Which heads of the real model come with the package, and why: chosen by measurement.

    python -m anchor_lab.experiments.smollm2.bundle

SmolLM2-135M-Instruct reads the course's own prose, 8192 tokens of it in a chat, with a number
hidden in it; the question stands at the end, and the answer has begun, so that the last row asks
for the number's first digit. Of several prompts the first is taken whose number the model then
writes. Every head is measured on the rows beyond the first group:

sink, window, far    dense mass on the initial region, on the window, on the candidates
top                  share of the far mass of the last group that its 1 % heaviest keys hold
fact                 most mass that one of the last rows gives to the hidden number

Three kv heads are kept whole, each with the query heads that read it: the one whose head finds the
number, the one whose heads keep most of their far mass in few keys, and the one with the most
diffuse head. Written are the queries, keys and values in bfloat16, the words, and every number.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from anchor_lab.analysis.curves import theta_curve
from anchor_lab.experiments.environment import environment
from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.smollm2.measure import weights_hash
from anchor_lab.experiments.smollm2.prompts import Needle, course_text, needle
from anchor_lab.experiments.store import write_whole
from anchor_models import Captured, capture_qkv, load_pretrained, save_capture
from anchor_models.heads import ABOUT, CAPTURE, bundled_heads_path
from anchor_models.smollm2 import NAME
from anchor_ref import AnchorConfig
from anchor_ref.measure import block_scores
from anchor_ref.regions import groups

LENGTH, SEEDS, THETAS = 8192, range(40), (9.0, 12.0)
ASKING_ROWS = 4  # at the end of the prompt: the rows that ask


@torch.no_grad()
def prompt_that_is_answered(model, tokenizer, body: Sequence[int], length: int) -> Needle:
    """The first prompt whose number the model writes with dense attention.

    Raises:
        ValueError: there is none among the seeds tried.
    """
    for seed in SEEDS:
        depth = random.Random(seed).uniform(0.1, 0.6)
        prompt = needle(tokenizer, body, length, seed, depth, start=0, begun=True)
        tokens = prompt.tokens.to(model.device)
        written = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=6, do_sample=False
        )
        if prompt.answer in tokenizer.decode(written[0, length:]):
            return prompt
    raise ValueError(f"the model must answer one of {len(SEEDS)} prompts, it answers none")


def of_layer(x: Captured, prompt: Needle) -> list[dict]:
    """What is measured of each head of a layer."""
    config, n = AnchorConfig(), x.q.shape[2]
    q, k = x.q.float(), x.k.float()
    layout = groups(config, n, n)
    mass = torch.zeros(3, q.shape[1], device=q.device)
    fact = torch.zeros(q.shape[1], device=q.device)
    columns = torch.zeros(q.shape[1], len(layout[-1].candidates), device=q.device)
    for group in layout[1:]:
        for rows, scores in block_scores(q, k, group, x.scaling):
            weights = scores.softmax(-1)[0]  # [Hq, b, M]
            far = weights[..., group.candidate_columns]
            first = weights[..., : len(group.init)].sum((1, 2))
            mass += torch.stack(
                [first, weights.sum((1, 2)) - first - far.sum((1, 2)), far.sum((1, 2))]
            )
            if group is layout[-1]:
                columns += far.sum(1)
                if rows.stop == n:
                    seen = weights[:, -ASKING_ROWS:, prompt.place.start : prompt.place.stop]
                    fact = seen.sum(-1).amax(-1)
    heaviest = columns.topk(columns.shape[1] // 100).values.sum(-1) / columns.sum(-1)
    mass /= sum(len(group.rows) for group in layout[1:])
    curve = theta_curve(q, k, config, THETAS, x.scaling)
    recall = curve.recall[:, 0, :, config.group_size :].mean(-1)
    return [
        {
            "layer": x.layer,
            "head": head,
            **{name: _digits(mass[i, head]) for i, name in enumerate(("sink", "window", "far"))},
            "top": _digits(heaviest[head]),
            "fact": _digits(fact[head]),
            **{
                f"{what} {theta:g}": _digits(table[i, head])
                for i, theta in enumerate(THETAS)
                for what, table in (("density", curve.density[:, 0]), ("recall", recall))
            },
        }
        for head in range(q.shape[1])
    ]


def _digits(x: torch.Tensor) -> float:
    return round(x.item(), 4)


def choose(rows: Sequence[dict], shared: int) -> dict[str, tuple[int, int]]:
    """(layer, kv head) by what it is kept for; no kv head is chosen twice.

    Args:
        rows: what `of_layer` measured, of all layers.
        shared: query heads that read a kv head.
    """
    chosen: dict[str, tuple[int, int]] = {}
    wanted = {
        "retrieval": lambda row: row["fact"],
        # Few far keys carry much mass, and the rest is dropped.
        "stripes": lambda row: row["far"] * row["top"] * (row["density 12"] < 0.5),
        "diffuse": lambda row: row["far"] * (1 - row["top"]),
    }
    for kind, value in wanted.items():
        for row in sorted(rows, key=value, reverse=True):
            place = row["layer"], row["head"] // shared
            if place not in chosen.values():
                chosen[kind] = place
                break
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status, 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"default here: {device}")
    parser.add_argument("--model", default=NAME, help=f"default {NAME}")
    parser.add_argument("--length", type=int, default=LENGTH, help=f"default {LENGTH}")
    parser.add_argument("--out", type=Path, default=bundled_heads_path(), help="folder")
    options = parser.parse_args(arguments)
    model, tokenizer = load_pretrained(options.model, torch.float32, options.device)
    body = tokenizer(course_text(Path()), verbose=False).input_ids
    prompt = prompt_that_is_answered(model, tokenizer, body, options.length)
    captured = capture_qkv(model, prompt.tokens.to(model.device))
    rows = []
    for layer in progress(sorted(captured)):
        rows += of_layer(captured[layer].to(options.device), prompt)
    config = model.config
    shared = config.num_attention_heads // config.num_key_value_heads
    chosen = choose(rows, shared)
    kept = {}
    for layer in sorted({layer for layer, _ in chosen.values()}):
        keys = sorted(key for other, key in chosen.values() if other == layer)
        kept[layer] = captured[layer].part(keys)
    options.out.mkdir(parents=True, exist_ok=True)
    save_capture(kept, options.out / CAPTURE)
    about = {
        "model": options.model,
        "weights": weights_hash(model),
        **environment(options.device, ("torch", "transformers")),
        "answer": prompt.answer,
        "fact": [prompt.place.start, prompt.place.stop],
        "chosen": {kind: list(place) for kind, place in chosen.items()},
        "words": [tokenizer.decode(token) for token in prompt.tokens[0].tolist()],
        "heads": rows,
    }
    write_whole(options.out / ABOUT, json.dumps(about, ensure_ascii=False, indent=None) + "\n")
    print(f"{options.out}: {chosen}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
