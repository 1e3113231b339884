"""AnchorAttention inside real models: activations to look at, and the attention to run.

Activations come from the bundled model, from any transformers model, or are planted. The attention
is `anchor_attention` here, which chooses between kernels and reference, or
`attn_implementation="anchor_attention"` after `import anchor_models.transformers`.
"""

from anchor_models.backend import BACKENDS, BackendChoice, anchor_attention, choose_backend
from anchor_models.bundled import bundled_model_path, load_bundled
from anchor_models.calibration import Calibration
from anchor_models.capture import Captured, capture_qkv, load_capture, save_capture
from anchor_models.documents import Document, make_document
from anchor_models.heads import BundledHeads, load_bundled_heads
from anchor_models.models import load_pretrained
from anchor_models.planted import Planted, planted_stripes

__all__ = [
    "BACKENDS",
    "BackendChoice",
    "BundledHeads",
    "Calibration",
    "Captured",
    "Document",
    "Planted",
    "anchor_attention",
    "bundled_model_path",
    "capture_qkv",
    "choose_backend",
    "load_bundled",
    "load_bundled_heads",
    "load_capture",
    "load_pretrained",
    "make_document",
    "planted_stripes",
    "save_capture",
]
