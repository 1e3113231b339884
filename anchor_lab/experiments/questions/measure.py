"""Three questions about the heads of the bundled model.

One text of the bundled model; of every head: where the largest scores lie, and what each
approximation of the difference test costs. Then thresholds by head, by layer and for all,
calibrated on two texts and judged on a third.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

import torch

from anchor_lab.analysis import (
    TESTS,
    THETAS,
    ThetaCurve,
    average_curves,
    choose_thetas,
    compare_tests,
    locate_maxima,
    theta_curve,
)
from anchor_lab.experiments.environment import environment
from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.store import Store
from anchor_models import Captured, capture_qkv, load_bundled, make_document
from anchor_ref import AnchorConfig

LENGTH, CONFIG = 8192, AnchorConfig(theta=9.0)
TARGETS = (0.9, 0.95, 0.98, 0.99)
CALIBRATION_SEEDS, HELD_OUT_SEED = (1, 2), 3


def capture(
    n: int, seed: int, layers: Sequence[int] | None = None, device: str = "cpu"
) -> dict[int, Captured]:
    """Layers of the bundled model on a made-up document, on the device."""
    model, tokenizer = load_bundled(device=device)
    document = make_document(5 * n, seed=seed, depths=(0.1, 0.3, 0.55))
    tokens = tokenizer(document.text, return_tensors="pt").input_ids[:, :n].to(device)
    if tokens.shape[1] < n:
        raise ValueError(f"the document has {tokens.shape[1]} tokens, {n} are needed")
    captured = capture_qkv(model, tokens, layers, dtype=torch.float32)
    return {layer: x.to(device) for layer, x in captured.items()}


def look(x: Captured, config: AnchorConfig = CONFIG) -> list[dict[str, object]]:
    """One row for each head of a layer."""
    maxima = locate_maxima(x.q, x.k, config, x.scaling)
    tests = compare_tests(x.q, x.k, config, x.scaling)
    return [
        {
            "layer": x.layer,
            "head": head,
            "maxima": [round(share, 4) for share in maxima.shares[0, head].tolist()],
            "tests": {
                name: {
                    "recall": round(tests[name].recall[0, head].double().mean().item(), 4),
                    "density": round(tests[name].density[0, head].item(), 4),
                }
                for name in TESTS
            },
        }
        for head in range(x.q.shape[1])
    ]


def calibration(config: AnchorConfig, n: int, layers: Sequence[int] | None, device: str):
    """Rows of recall and density on the held-out text: thresholds by head, by layer, for all."""
    texts = (capture(n, seed, layers, device) for seed in CALIBRATION_SEEDS)
    curves = average_curves(texts, config, THETAS)
    held_out = {
        layer: theta_curve(x.q, x.k, config, THETAS, x.scaling)
        for layer, x in capture(n, HELD_OUT_SEED, layers, device).items()
    }
    rows = [
        {
            "target": target,
            "per": per,
            **judge(held_out, choose_thetas(curves, target, per).thetas),
        }
        for target in TARGETS
        for per in ("head", "layer")
    ]
    for theta in THETAS:
        single = {layer: [theta] * curve.density.shape[2] for layer, curve in held_out.items()}
        rows.append({"target": None, "per": "all", "theta": theta, **judge(held_out, single)})
    return rows


def judge(curves: dict[int, ThetaCurve], thetas: dict[int, Sequence[float]]) -> dict[str, float]:
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


def options(parser: argparse.ArgumentParser) -> None:
    """--n"""
    parser.add_argument("--n", type=int, help=f"tokens (default: {LENGTH})")


def measure(options: argparse.Namespace) -> int:
    """A row for each head, layer by layer, then those of the calibration.

    Raises:
        ValueError: the text is no longer than a group: nothing would be chosen from.
    """
    config, n, layers = CONFIG, LENGTH, None
    if options.quick:
        config, n, layers = AnchorConfig(32, 4, CONFIG.theta), 512, [0, 1]
    n = n if options.n is None else options.n
    if n <= config.group_size:
        raise ValueError(f"n must be above {config.group_size}, got {n}")
    key = ("layer", "head", "per", "target", "theta")
    run = {**environment(options.device), "command": options.command}
    settings = {"n": n, "config": asdict(config)}
    store = Store(options.out, key, settings, run)
    captured = capture(n, 0, layers, options.device)
    left = [layer for layer in captured if not store.holds(layer=layer, head=0)]
    for layer in progress(left, unit="layer"):
        store.add(look(captured[layer], config))
    if not any("per" in row for row in store.rows):
        store.add(calibration(config, n, layers, options.device))
    return 0
