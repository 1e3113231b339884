"""The paper's ablations: one choice of AnchorAttention replaced at a time, all else as it was.

    granularity    stripes, or whole blocks around them
    test           the difference test, or a budget: top-k, top-cdf
    anchor         the anchor from both regions, from one of them, the largest pooled score, none
    theta          the method itself, at each θ
    step           query blocks that share their stripes
    block          queries that are pooled, in groups of the same size

Every variant is a sweep of a method of `anchor_lab.methods` over its own knob, so that variants
can be compared at equal recall or equal budget. The published sizes, blocks of 128 and groups of
2048, on 16384 tokens of made-up prose: steps of 32, groups of 4096, leave something to choose from
there. Every other layer, and the first head of each key head. Two minutes on an H100.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from anchor_lab.experiments.compare.equal import mean_curves
from anchor_lab.experiments.compare.measure import compare_layer
from anchor_lab.experiments.environment import environment
from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.store import Store
from anchor_lab.methods import (
    AnchorAttention,
    AnchorBlocks,
    ConstantThreshold,
    Method,
    PartialAnchor,
    PooledMaximum,
    PooledTopCdf,
    PooledTopK,
)
from anchor_models import Captured, capture_qkv, load_bundled
from anchor_models.texts import read_text
from anchor_ref import AnchorConfig

LENGTH = 16_384
ABLATED_THETAS = (1.0, 3.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 15.0, 17.0)
STEPS = (1, 4, 16, 32)
QUESTIONS = {
    "granularity": "Stripes or whole blocks?",
    "test": "The difference test or a budget?",
    "anchor": "What should the anchor be?",
    "theta": "How far below the anchor?",
    "step": "How many blocks share their stripes?",
    "block": "How many queries are pooled?",
}


def variants(config: AnchorConfig | None = None) -> dict[str, dict[str, list[Method]]]:
    """The sweeps of each ablation, around one configuration.

    Args:
        config: the method as it is; its θ plays no part. An even block size, and a step of at
            least 1; None takes the published sizes. `step` and `block` keep the initial region as
            long as `config` has it, and `block` the group too.

    Returns:
        {ablation: {variant: configurations, from the sparsest to the densest}}.

    Raises:
        ValueError: the block size is odd.
    """
    config = AnchorConfig() if config is None else config
    if config.block_size % 2:
        raise ValueError(f"block_size must be even, to be halved, got {config.block_size}")
    full = _over_theta(AnchorAttention, config)
    half = replace(
        config,
        block_size=config.block_size // 2,
        step=2 * config.step,
        init_blocks=2 * config.init_blocks,
        window_blocks=2 * config.window_blocks,
    )
    return {
        "granularity": {"stripes": full, "blocks": _over_theta(AnchorBlocks, config, -3.0)},
        "test": {
            "difference": full,
            "top-k": _with(PooledTopK.sweep(), config),
            "top-cdf": _with(PooledTopCdf.sweep(), config),
        },
        "anchor": {
            "both regions": full,
            "initial region": [PartialAnchor("init", x.config) for x in full],
            "window": [PartialAnchor("window", x.config) for x in full],
            "largest pooled score": _over_theta(PooledMaximum, config, -1.0),
            "none: a constant": _with(ConstantThreshold.sweep(), config),
        },
        "theta": {"AnchorAttention": full},
        "step": {
            f"step {step}": _over_theta(AnchorAttention, replace(config, step=step))
            for step in STEPS
        },
        "block": {
            f"block {config.block_size}": full,
            f"block {half.block_size}": _over_theta(AnchorAttention, half),
        },
    }


def ablate_layer(
    captured: Captured,
    config: AnchorConfig | None = None,
    heads: Sequence[int] | None = None,
    text: str = "document",
    ablations: Sequence[str] = tuple(QUESTIONS),
    measured: dict[tuple[Method, ...], list[dict]] | None = None,
) -> list[dict[str, str | int | float]]:
    """Ablations on the heads of a layer; a sweep that several share is run once.

    Args:
        captured: one prompt in one layer.
        config: as in `variants`.
        heads: the model's indices of query heads; None for all that were captured.
        text: what to call the prompt.
        ablations: some of `QUESTIONS`.
        measured: sweeps that were run on these heads before; this call's are added.

    Returns:
        Rows with "ablation" and the columns of `compare_layer`; "method" is the variant.

    Raises:
        ValueError: as in `variants` and `compare_layer`.
    """
    measured = {} if measured is None else measured
    rows, sweeps = [], variants(config)
    for ablation in ablations:
        for variant, sweep in sweeps[ablation].items():
            if tuple(sweep) not in measured:
                measured[tuple(sweep)] = compare_layer(captured, variant, sweep, heads, text)
            rows += [
                {**row, "ablation": ablation, "method": variant} for row in measured[tuple(sweep)]
            ]
    return rows


def measure(options: argparse.Namespace) -> int:
    """Means over heads of every configuration, one ablation after the other."""
    import pandas as pd

    if options.quick:
        length, layers, heads, config = 1024, [1], [0, 4], AnchorConfig(32, 4)
    else:
        length, layers, heads, config = LENGTH, [1, 3, 5, 7], [0, 4], AnchorConfig()
    settings = {"n": length, "layers": layers, "heads": heads, "config": asdict(config)}
    run = {**environment(options.device), "command": options.command}
    key = ("ablation", "method", "configuration")
    store = Store(options.out, key, settings, run)
    done = {row["ablation"] for row in store.rows}
    if left := [name for name in QUESTIONS if name not in done]:
        model, tokenizer = load_bundled(device=options.device)
        tokens = read_text("document", tokenizer, length).tokens.to(options.device)
        captured = capture_qkv(model, tokens, layers, dtype=None)
        measured = {layer: {} for layer in captured}
        for ablation in progress(left, unit="ablation"):
            rows = []
            for layer, x in captured.items():
                x = x.to(torch.device(options.device))
                rows += ablate_layer(
                    x, config, heads, ablations=[ablation], measured=measured[layer]
                )
            means = mean_curves(pd.DataFrame(rows)).round(6).to_dict("records")
            store.add({"ablation": ablation, **row} for row in means)
    return 0


def _over_theta(kind: type[Method], config: AnchorConfig, shift: float = 0.0) -> list[Method]:
    """One configuration for each θ; `shift` puts the sweep where the variant's curve is."""
    return [kind(replace(config, theta=theta + shift)) for theta in ABLATED_THETAS]


def _with(sweep: list[Method], config: AnchorConfig) -> list[Method]:
    return [replace(method, config=config) for method in sweep]
