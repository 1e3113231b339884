"""Real and planted activations: the bundled model, capture from any model, synthetic inputs."""

from anchor_ref.activations.bundled import bundled_model_path, load_bundled
from anchor_ref.activations.capture import Captured, capture_qkv, load_capture, save_capture
from anchor_ref.activations.documents import Document, make_document
from anchor_ref.activations.planted import Planted, planted_stripes

__all__ = [
    "Captured",
    "Document",
    "Planted",
    "bundled_model_path",
    "capture_qkv",
    "load_bundled",
    "load_capture",
    "make_document",
    "planted_stripes",
    "save_capture",
]
