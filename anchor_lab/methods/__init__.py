"""Other ways to choose the keys, each behind the same call, and one evaluation for all.

what a method is             method.py, selection.py; what it is judged by: evaluate.py
what several share           ranking.py, scores.py, stripes.py
names, pictures              names.py, picture.py
in a whole model             in_a_model.py
no choice at all             dense.py, streaming.py
other sparse prefills        vertical_slash.py, flex_prefill.py, xattention.py, sparge.py,
                             flash_prefill.py, flash_prefill_v2.py, skip_softmax.py, sale.py,
                             pbs.py, moba.py, bfla.py
one method for each layer    triangle_mix.py
what is added to an output   corrections.py
upper bounds                 token_oracles.py, block_oracles.py, stripe_oracle.py
                             one_list.py
AnchorAttention              anchor.py; its choices replaced: anchors.py, budgets.py
beyond the paper             outliers.py: extensions, which no figure of the method shows
"""

from jaxtyping import Float
from torch import Tensor

from anchor_lab.methods.anchor import AnchorAttention, AnchorBlocks
from anchor_lab.methods.anchors import ConstantThreshold, PartialAnchor, PooledMaximum
from anchor_lab.methods.bfla import BFLA
from anchor_lab.methods.block_oracles import BlockTopCdf, BlockTopK
from anchor_lab.methods.budgets import PooledTopCdf, PooledTopK
from anchor_lab.methods.dense import Dense
from anchor_lab.methods.evaluate import evaluate, evaluate_all
from anchor_lab.methods.flash_prefill import FlashPrefill
from anchor_lab.methods.flash_prefill_v2 import FlashPrefillV2
from anchor_lab.methods.flex_prefill import FlexPrefill
from anchor_lab.methods.method import Method
from anchor_lab.methods.moba import MoBA
from anchor_lab.methods.one_list import HeadAveragedTopK
from anchor_lab.methods.outliers import (
    NearStripes,
    OutlierRows,
    SharedStripes,
    StripeBudget,
    TwoMeans,
)
from anchor_lab.methods.pbs import PBSAttention
from anchor_lab.methods.sale import SALE, SALEFloat
from anchor_lab.methods.selection import Selection
from anchor_lab.methods.skip_softmax import SkipSoftmax
from anchor_lab.methods.sparge import SpargeAttention
from anchor_lab.methods.streaming import StreamingLLM
from anchor_lab.methods.stripe_oracle import StripeOracle
from anchor_lab.methods.token_oracles import DifferenceOracle, TokenTopCdf, TokenTopK
from anchor_lab.methods.triangle_mix import Triangle, TriangleMix
from anchor_lab.methods.vertical_slash import VerticalSlash
from anchor_lab.methods.xattention import XAttention

METHODS: dict[str, type[Method]] = {
    method.__name__: method
    for method in (
        Dense,
        StreamingLLM,
        VerticalSlash,
        FlexPrefill,
        XAttention,
        SpargeAttention,
        FlashPrefill,
        FlashPrefillV2,
        SkipSoftmax,
        SALE,
        SALEFloat,
        PBSAttention,
        MoBA,
        BFLA,
        Triangle,
        TokenTopK,
        TokenTopCdf,
        DifferenceOracle,
        BlockTopK,
        BlockTopCdf,
        StripeOracle,
        HeadAveragedTopK,
        AnchorAttention,
        AnchorBlocks,
        PartialAnchor,
        ConstantThreshold,
        PooledMaximum,
        PooledTopK,
        PooledTopCdf,
    )
}

# Beyond the paper: chosen by name, never among the methods that are compared by default.
# SharedStripes is not here: a command that looks at some heads alone would tell nothing of it; nor
# is NearStripes, which is made of another one.
EXTENSIONS: dict[str, type[Method]] = {
    method.__name__: method for method in (OutlierRows, TwoMeans, StripeBudget)
}


def select(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    config: Method,
    scale: float | None = None,
) -> Selection:
    """The keys that any method keeps.

    Args:
        q, k, scale: as in `anchor_attention`, with as many queries as keys.
        config: a method with its knobs, such as `StreamingLLM(window=512)`.

    Raises:
        TypeError: `config` is no method; or see `inputs.check_inputs`.
        ValueError: see `method.check_prompt`.
    """
    if not isinstance(config, Method):
        raise TypeError(
            f"config must be one of the methods {', '.join(METHODS | EXTENSIONS)}, "
            f"got {type(config).__name__}"
        )
    return config.select(q, k, scale)


__all__ = [
    "EXTENSIONS",
    "METHODS",
    "Method",
    "NearStripes",
    "Selection",
    "SharedStripes",
    "TriangleMix",
    "evaluate",
    "evaluate_all",
    "select",
    *METHODS,
    *EXTENSIONS,
]
