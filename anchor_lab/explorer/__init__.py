"""Look around in a head: any window of its map, any θ and step, fast enough for a slider."""

from anchor_lab.explorer.prepare import STEPS, PreparedHead, prepare_head
from anchor_lab.explorer.view import HeadSelection, View, Window, look, select
from anchor_lab.explorer.widget import Explorer, prepare_heads

__all__ = [
    "STEPS",
    "Explorer",
    "HeadSelection",
    "PreparedHead",
    "View",
    "Window",
    "look",
    "prepare_head",
    "prepare_heads",
    "select",
]
