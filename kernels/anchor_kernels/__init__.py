"""AnchorAttention as Triton kernels: the stages of `anchor_ref`, name for name."""

try:
    import triton  # noqa: F401
except ImportError:
    raise ImportError(
        "anchor_kernels needs Triton (`pip install triton`, Linux only); "
        "anchor_ref computes the same without it"
    ) from None

from anchor_kernels.anchor import AnchorState, compute_anchor
from anchor_kernels.attention import anchor_attention
from anchor_kernels.sparse import attend_stripes
from anchor_kernels.stripes import identify_stripes
from anchor_kernels.support import UnsupportedError, why_unsupported
from anchor_kernels.tail import attend_tail

__all__ = [
    "AnchorState",
    "UnsupportedError",
    "anchor_attention",
    "attend_stripes",
    "attend_tail",
    "compute_anchor",
    "identify_stripes",
    "why_unsupported",
]
