"""AnchorAttention in plain PyTorch: a readable reference of each stage."""

from anchor_ref.anchor import compute_anchor
from anchor_ref.attention import anchor_attention
from anchor_ref.config import AnchorConfig
from anchor_ref.plan import AnchorTrace, StripePlan
from anchor_ref.sparse import attend_stripes
from anchor_ref.stripes import identify_stripes
from anchor_ref.tail import attend_tail

__all__ = [
    "AnchorConfig",
    "AnchorTrace",
    "StripePlan",
    "anchor_attention",
    "attend_stripes",
    "attend_tail",
    "compute_anchor",
    "identify_stripes",
]
