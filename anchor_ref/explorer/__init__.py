"""Look around in a head: any window of its map, any θ and step, fast enough for a slider."""

from anchor_ref.explorer.prepare import STEPS, PreparedHead, prepare_head
from anchor_ref.explorer.view import Selection, View, Window, look, select

__all__ = [
    "STEPS",
    "PreparedHead",
    "Selection",
    "View",
    "Window",
    "look",
    "prepare_head",
    "select",
]
