"""The paper's ablations: one choice of AnchorAttention replaced at a time, all else as it was.

    granularity    stripes, or whole blocks around them
    test           the difference test, or a budget: top-k, top-cdf
    anchor         the anchor from both regions, from one of them, the largest pooled score, none
    theta          the method itself, at each θ
    step           query blocks that share their stripes
    block          queries that are pooled, in groups of the same size

Every variant is a sweep of a method of `anchor_lab.methods` over its own knob, so that variants
can be compared at equal recall or equal budget (`lab.equal`).
"""

from collections.abc import Sequence
from dataclasses import replace

from anchor_lab.experiments.compare.measure import compare_layer
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
from anchor_models.capture import Captured
from anchor_ref.config import AnchorConfig

THETAS = (1.0, 3.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 15.0, 17.0)
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
) -> list[dict[str, str | int | float]]:
    """Every ablation on the heads of a layer; a sweep that several share is run once.

    Args:
        captured: one prompt in one layer.
        config: as in `variants`.
        heads: the model's indices of query heads; None for all that were captured.
        text: what to call the prompt.

    Returns:
        Rows with "ablation" and the columns of `lab.compare`; "method" is the variant.

    Raises:
        ValueError: as in `variants` and `lab.compare.compare_layer`.
    """
    measured: dict[tuple[Method, ...], list[dict]] = {}
    rows = []
    for ablation, sweeps in variants(config).items():
        for variant, sweep in sweeps.items():
            if tuple(sweep) not in measured:
                measured[tuple(sweep)] = compare_layer(captured, variant, sweep, heads, text)
            rows += [
                {**row, "ablation": ablation, "method": variant} for row in measured[tuple(sweep)]
            ]
    return rows


def _over_theta(kind: type[Method], config: AnchorConfig, shift: float = 0.0) -> list[Method]:
    """One configuration for each θ; `shift` puts the sweep where the variant's curve is."""
    return [kind(replace(config, theta=theta + shift)) for theta in THETAS]


def _with(sweep: list[Method], config: AnchorConfig) -> list[Method]:
    return [replace(method, config=config) for method in sweep]
