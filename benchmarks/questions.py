"""What the lab's questions find out about the heads of the bundled model.

    python -m benchmarks.questions               writes questions.json, .md and .png
    python -m benchmarks.questions --table       .md and .png from questions.json

One text of the bundled model; of every head: where the largest scores lie, what each approximation
of the difference test costs, and how much recall a certificate can promise. Then thresholds by
head, by layer and for all, calibrated on two texts and judged on a third.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from anchor_ref import AnchorConfig, compute_anchor, identify_stripes
from anchor_ref.activations import Captured, capture_qkv, load_bundled, make_document
from anchor_ref.figures import lab as figures
from anchor_ref.figures.style import caption, use_style
from anchor_ref.lab import (
    REGIONS,
    TESTS,
    THETAS,
    calibrate,
    certificate_cost,
    certify,
    compare_tests,
    locate_maxima,
    theta_curve,
)
from anchor_ref.measure import recall

HERE = Path(__file__).parent
CONFIG = AnchorConfig(theta=9.0)
EFFORTS = ((128, 0), (32, 0), (8, 0), (8, 3), (8, 7))  # rows, directions
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


def look(layer: int, x: Captured) -> list[dict]:
    """One row for each head of a layer."""
    n = x.q.shape[2]
    maxima = locate_maxima(x.q, x.k, CONFIG, x.scaling)
    tests = compare_tests(x.q, x.k, CONFIG, x.scaling)
    anchor = compute_anchor(x.q, x.k, x.v, CONFIG, x.scaling).max
    stripes = identify_stripes(x.q, x.k, anchor, CONFIG, x.scaling)
    exact = recall(x.q, x.k, stripes, CONFIG, x.scaling)
    efforts = [{"rows": rows, "directions": directions} for rows, directions in EFFORTS]
    costs = [certificate_cost(CONFIG, n, n, **effort) for effort in efforts]
    promises = [certify(x.q, x.k, stripes, CONFIG, x.scaling, **effort) for effort in efforts]
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
            "recall": round(exact[0, head].double().mean().item(), 4),
            "certificate": [
                {**effort, "cost": cost, "promised": round(found[0, head].mean().item(), 4)}
                for effort, cost, found in zip(efforts, costs, promises, strict=True)
            ],
        }
        for head in range(x.q.shape[1])
    ]


def calibration(n: int) -> list[dict]:
    """Recall and density on the held-out text, for thresholds by head, by layer and for all."""
    texts = [capture(n, seed) for seed in CALIBRATION_SEEDS]
    held_out = {
        layer: theta_curve(x.q, x.k, CONFIG, THETAS, x.scaling)
        for layer, x in capture(n, HELD_OUT_SEED).items()
    }
    rows = []
    for target in TARGETS:
        for per in ("head", "layer"):
            found = calibrate(texts, target, CONFIG, per=per)
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


def table(results: dict) -> str:
    """The results as Markdown."""
    rows = results["heads"]
    mean = lambda values: sum(values) / len(rows)  # noqa: E731
    lines = [
        "# What the lab finds out about the bundled model",
        "",
        f"Made by `python -m benchmarks.questions` on {results['date']} with torch "
        f"{results['torch']}: {results['n']} tokens, θ = {CONFIG.theta:g}, all {len(rows)} heads. "
        "Definitions: `anchor_ref/lab`.",
        "",
        "## Where do the largest scores lie?",
        "",
        "Of the rows that have candidates, mean over heads.",
        "",
        "| " + " | ".join(REGIONS) + " |",
        "|" + " --- |" * len(REGIONS),
        "| " + " | ".join(f"{mean(r['maxima'][i] for r in rows):.1%}" for i in range(3)) + " |",
        "",
        "## What does each approximation cost?",
        "",
        "| test | what is compared with θ, and who keeps the key | recall | density |",
        "| --- | --- | --- | --- |",
    ]
    for name, what in TESTS.items():
        found = {x: mean(r["tests"][name][x] for r in rows) for x in ("recall", "density")}
        lines.append(f"| {name} | {what} | {found['recall']:.4f} | {found['density']:.3f} |")
    lines += [
        "",
        "## What can be promised without a score of any dropped key?",
        "",
        f"Mean recall is {mean(r['recall'] for r in rows):.4f}. Cost in all causal pairs.",
        "",
        "| queries pooled | directions | cost | promised, mean | heads promised 0.9 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for i in range(len(EFFORTS)):
        efforts = [row["certificate"][i] for row in rows]
        enough = sum(effort["promised"] >= 0.9 for effort in efforts)
        lines.append(
            f"| {efforts[0]['rows']} | {efforts[0]['directions']} | {efforts[0]['cost']:.3f} | "
            f"{mean(e['promised'] for e in efforts):.3f} | {enough} of {len(rows)} |"
        )
    lines += [
        "",
        "## Is a threshold for each head worth it?",
        "",
        "Calibrated on two texts, judged on a third. Beside each the single θ that reaches the "
        "same mean recall there.",
        "",
        "| target | θ for each | recall | least of a head | density | single θ | its least | its "
        "density |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    single = [row for row in results["calibration"] if row["per"] == "all"]
    for row in results["calibration"]:
        if row["per"] != "all":
            same = next((x for x in single if x["recall"] >= row["recall"]), single[-1])
            lines.append(
                f"| {row['target']} | {row['per']} | {row['recall']:.4f} | {row['least']:.4f} | "
                f"{row['density']:.3f} | {same['theta']:g} | {same['least']:.4f} | "
                f"{same['density']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def draw(results: dict, path: Path) -> None:
    """Three questions in one picture."""
    from matplotlib import pyplot as plt

    use_style()
    rows = results["heads"]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.9), width_ratios=[1.15, 1, 1])
    panels = (
        (figures.data_maxima, figures.draw_maxima),
        (figures.data_tests, figures.draw_tests),
        (figures.data_certificate, figures.draw_certificate),
    )
    for ax, (data, draw_one) in zip(axes, panels, strict=True):
        draw_one(data(rows), ax)
        ax.set_title(draw_one.__doc__, fontsize=9)
    caption(figure, f"Bundled model, all heads, N = {results['n']}, θ = {CONFIG.theta:g}.")
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--table", action="store_true", help="no measuring, only table and figure")
    parser.add_argument("--out", type=Path, default=HERE / "questions.json")
    options = parser.parse_args()
    if not options.table:
        rows = []
        for layer, x in capture(options.n, seed=0).items():
            rows += look(layer, x)
            print(f"layer {layer} done", file=sys.stderr, flush=True)
        results = {
            "date": time.strftime("%Y-%m-%d"),
            "torch": str(torch.__version__),
            "n": options.n,
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
