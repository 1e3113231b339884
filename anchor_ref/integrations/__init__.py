"""AnchorAttention where it is used: which implementation runs."""

from anchor_ref.integrations.backend import (
    BACKENDS,
    BackendChoice,
    anchor_attention,
    choose_backend,
)

__all__ = ["BACKENDS", "BackendChoice", "anchor_attention", "choose_backend"]
