"""Why needles are lost under AnchorAttention: the row wants the key, the block's mean does not.

    python -m anchor_lab.experiments.model.explain --corpus books.jsonl.xz --out results/model/retrieval.json

For every head, on the rows that are about to say a digit of the answer:

    row difference       a_i − s_ij          of the row i itself and its digit's key j
    pooled difference    min_t ā_t − s̄_tj    of the best block t of the last group

A key is kept when its pooled difference is at most θ. A row difference far below θ beside a pooled
one above it says that pooling loses the key, not the threshold.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from anchor_lab.experiments.model.measure import Needles, _needle_pairs
from anchor_models.bundled import bundled_model_path
from anchor_models.capture import Captured, capture_qkv
from anchor_ref import AnchorConfig, compute_anchor
from anchor_ref.regions import groups
from anchor_ref.stripes import pooled_difference
from training.corpus import load_corpus

BLOCKS = (
    128,
    32,
    16,
    8,
    1,
)  # queries pooled into one; 128 is the method's default, 1 is no pooling


def differences(captured: Captured, pairs: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Mass and differences of the needle's keys, each `[Hq]`, natural-log units.

    Args:
        captured: one layer, a batch of one, a multiple of the group size long.
        pairs: (row, key) of every digit; the rows lie in the last group, the keys before it.

    Returns:
        mass: attention on the digit's own key, mean over digits; row: largest row difference of
        a digit; pooled_b for each b of `BLOCKS`: largest pooled difference of a digit.
    """
    config = AnchorConfig()
    q, k = captured.q[0].float(), captured.k[0].float()
    k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)  # [Hq, N, D]
    anchor = compute_anchor(captured.q, captured.k, captured.v, config, captured.scaling).max[0]
    rows, keys = torch.tensor(pairs, device=q.device).T
    scores = q[:, rows] @ k.mT * captured.scaling  # [Hq, digits, N]
    later = torch.arange(k.shape[1], device=q.device) > rows[:, None]
    digit = torch.arange(len(rows), device=q.device)
    mass = scores.masked_fill(later, -torch.inf).softmax(-1)[:, digit, keys]
    found = {
        "mass": mass.mean(-1),
        "row": (anchor[:, rows] - scores[:, digit, keys]).amax(-1),
    }
    for size in BLOCKS:
        group = groups(AnchorConfig(size, config.group_size // size), k.shape[1], k.shape[1])[-1]
        pooled = pooled_difference(q[None], k[None], anchor[None], group, captured.scaling)[0]
        found[f"pooled_{size}"] = pooled[..., keys - group.candidates.start].amin(1).amax(-1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=bundled_model_path())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--length", type=int, default=4096, help="a multiple of 2048")
    parser.add_argument("--prompts", type=int, default=10)
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    file = options.model / "tokenizer.json"
    corpus = load_corpus(options.corpus, file, processes=2)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model = model.to(device).eval()
    needles = Needles(corpus, Tokenizer.from_file(str(file)), seed=5)
    sums: dict[tuple[int, str], Tensor] = {}
    for _ in range(options.prompts):
        tokens, kinds = needles.prompt(options.length, 0.25, 1, 1)
        ids = torch.from_numpy(tokens.astype(np.int64))[None].to(device)
        for layer, captured in capture_qkv(model, ids, dtype=torch.float32).items():
            for name, values in differences(captured, _needle_pairs(tokens, kinds)).items():
                sums[layer, name] = sums.get((layer, name), 0) + values / options.prompts
    names = ("mass", "row", *(f"pooled_{size}" for size in BLOCKS))
    rows = [
        {"layer": layer, "head": head}
        | {name: round(float(sums[layer, name][head]), 3) for name in names}
        for layer in range(model.config.num_hidden_layers)
        for head in range(model.config.num_attention_heads)
    ]
    about = {"length": options.length, "prompts": options.prompts, "depth": 0.25, "device": device}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**about, "heads": rows}, indent=1) + "\n")
    for row in sorted(rows, key=lambda row: -row["mass"])[:8]:
        print(row)


if __name__ == "__main__":
    main()
