"""What the lab's questions find out about the heads of the bundled model.

    python -m anchor_lab questions               writes questions.json, .md and .png
    python -m anchor_lab questions --table       .md and .png from questions.json

One text of the bundled model; of every head: where the largest scores lie, what each approximation
of the difference test costs, and how much recall a certificate promises at which cost. Then
thresholds by head, by layer and for all, calibrated on two texts and judged on a third.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from anchor_lab.analysis import (
    TESTS,
    THETAS,
    average_curves,
    certificate_cost,
    certify,
    choose_thetas,
    compare_tests,
    locate_maxima,
    theta_curve,
)
from anchor_lab.experiments.questions.page import draw, table
from anchor_models import Captured, capture_qkv, load_bundled, make_document
from anchor_ref import AnchorConfig, compute_anchor, identify_stripes
from anchor_ref.measure import recall

HERE = Path("results") / "questions"
CONFIG = AnchorConfig(theta=9.0)
RANKS = (0, 8, 16, 24, 32)  # of the certificate; at the head's dimension it is exact
TARGETS = (0.9, 0.95, 0.98, 0.99)
CALIBRATION_SEEDS, HELD_OUT_SEED = (1, 2), 3


def capture(n: int, seed: int) -> dict[int, Captured]:
    """All layers of the bundled model on a made-up document."""
    model, tokenizer = load_bundled()
    document = make_document(5 * n, seed=seed, depths=(0.1, 0.3, 0.55))
    tokens = tokenizer(document.text, return_tensors="pt").input_ids[:, :n]
    if tokens.shape[1] < n:
        raise ValueError(f"the document has {tokens.shape[1]} tokens, {n} are needed")
    return capture_qkv(model, tokens, dtype=torch.float32)


def look(layer: int, x: Captured, ranks: tuple[int, ...] = RANKS) -> list[dict]:
    """One row for each head of a layer."""
    n = x.q.shape[2]
    maxima = locate_maxima(x.q, x.k, CONFIG, x.scaling)
    tests = compare_tests(x.q, x.k, CONFIG, x.scaling)
    anchor = compute_anchor(x.q, x.k, x.v, CONFIG, x.scaling).max
    stripes = identify_stripes(x.q, x.k, anchor, CONFIG, x.scaling)
    exact = recall(x.q, x.k, stripes, CONFIG, x.scaling)
    dim = x.q.shape[3]
    promises = {rank: certify(x.q, x.k, stripes, CONFIG, x.scaling, rank=rank) for rank in ranks}
    promises[dim] = exact
    costs = {rank: certificate_cost(stripes, CONFIG, n, n, dim, rank=rank) for rank in promises}
    return [
        {
            "layer": layer,
            "head": head,
            "maxima": [round(share, 4) for share in maxima.shares[0, head].tolist()],
            "tests": {
                name: {
                    "recall": round(tests[name].recall[0, head].double().mean().item(), 4),
                    "density": round(tests[name].density[0, head].item(), 4),
                }
                for name in TESTS
            },
            "certificate": [
                {
                    "rank": rank,
                    "cost": round(costs[rank][0, head].item(), 4),
                    "promised": round(promised[0, head].double().mean().item(), 4),
                }
                for rank, promised in promises.items()
            ],
        }
        for head in range(x.q.shape[1])
    ]


def calibration(n: int) -> list[dict]:
    """Recall and density on the held-out text, for thresholds by head, by layer and for all."""
    curves = average_curves((capture(n, seed) for seed in CALIBRATION_SEEDS), CONFIG, THETAS)
    held_out = {
        layer: theta_curve(x.q, x.k, CONFIG, THETAS, x.scaling)
        for layer, x in capture(n, HELD_OUT_SEED).items()
    }
    rows = []
    for target in TARGETS:
        for per in ("head", "layer"):
            found = choose_thetas(curves, target, per)
            rows.append({"target": target, "per": per, **judge(held_out, found.thetas)})
    single = [
        {layer: [theta] * curve.density.shape[2] for layer, curve in held_out.items()}
        for theta in THETAS
    ]
    rows += [
        {"target": None, "per": "all", "theta": theta, **judge(held_out, thetas)}
        for theta, thetas in zip(THETAS, single, strict=True)
    ]
    return rows


def judge(curves: dict, thetas: dict) -> dict[str, float]:
    """Over all heads: mean recall, the least recall of a head, mean density."""
    recalls, densities = [], []
    for layer, curve in curves.items():
        for head, theta in enumerate(thetas[layer]):
            at = curve.thetas.index(theta)
            recalls.append(curve.recall[at, 0, head].double().mean().item())
            densities.append(curve.density[at, 0, head].item())
    return {
        "recall": round(sum(recalls) / len(recalls), 4),
        "least": round(min(recalls), 4),
        "density": round(sum(densities) / len(densities), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--table", action="store_true", help="no measuring, only table and figure")
    parser.add_argument("--out", type=Path, default=HERE / "questions.json")
    options = parser.parse_args()
    if options.n <= CONFIG.group_size:
        parser.error(f"--n must be above {CONFIG.group_size}, or nothing is chosen from")
    if not options.table:
        rows = []
        for layer, x in capture(options.n, seed=0).items():
            rows += look(layer, x)
            print(f"layer {layer} done", file=sys.stderr, flush=True)
        results = {
            "date": time.strftime("%Y-%m-%d"),
            "torch": str(torch.__version__),
            "n": options.n,
            "theta": CONFIG.theta,
            "heads": rows,
            "calibration": calibration(options.n),
        }
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    results = json.loads(options.out.read_text())
    options.out.with_suffix(".md").write_text(table(results))
    draw(results, options.out.with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    main()
