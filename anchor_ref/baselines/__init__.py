"""Other ways to choose the keys, each behind the same call, and one evaluation for all."""

from jaxtyping import Float
from torch import Tensor

from anchor_ref.baselines.anchor import (
    AnchorAttention,
    AnchorBlocks,
    ConstantThreshold,
    PartialAnchor,
    PooledMaximum,
    PooledTopCdf,
    PooledTopK,
)
from anchor_ref.baselines.dense import Dense
from anchor_ref.baselines.evaluate import Evaluation, evaluate
from anchor_ref.baselines.oracles import (
    BlockTopCdf,
    BlockTopK,
    DifferenceOracle,
    StripeOracle,
    TokenTopCdf,
    TokenTopK,
)
from anchor_ref.baselines.selection import Selection
from anchor_ref.baselines.streaming import StreamingLLM

METHODS: dict[str, type] = {
    method.__name__: method
    for method in (
        Dense,
        StreamingLLM,
        TokenTopK,
        TokenTopCdf,
        DifferenceOracle,
        BlockTopK,
        BlockTopCdf,
        StripeOracle,
        AnchorAttention,
        PartialAnchor,
        ConstantThreshold,
        PooledMaximum,
        PooledTopK,
        PooledTopCdf,
        AnchorBlocks,
    )
}


def select(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    config: object,
    scale: float | None = None,
) -> Selection:
    """The keys that any method keeps.

    Args:
        q, k, scale: as in `anchor_attention`, with as many queries as keys.
        config: an instance of one of `METHODS`.

    Raises:
        TypeError: `config` is no method; or see `inputs.check_inputs`.
        ValueError: see `selection.check_prompt`.
    """
    if type(config) not in METHODS.values():
        raise TypeError(
            f"config must be one of the methods {', '.join(METHODS)}, got {type(config).__name__}"
        )
    return config.select(q, k, scale)


__all__ = ["METHODS", "Evaluation", "Selection", "evaluate", "select", *METHODS]
