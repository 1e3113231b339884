"""Which head of which model a figure shows."""

from anchor_models.capture import Captured
from anchor_ref.config import AnchorConfig

MODEL = "SmolLM2"


def name_of(x: Captured, place: int) -> str:
    """ "layer 3, head 2"; `place` counts the query heads in x."""
    return f"layer {x.layer}, head {x.query_heads[place]}"


def small_print(x: Captured, place: int | None = None, config: AnchorConfig | None = None) -> str:
    """ "SmolLM2, layer 3, head 2, N = 8192, θ = 9": what a caption ends with.

    Args:
        x: the layer.
        place: of the query head in x; None for all of them.
        config: whose θ, and whose tail where there is one; None where neither plays a part.
    """
    heads = f"layer {x.layer}, heads {', '.join(map(str, x.query_heads))}"
    words = [MODEL, heads if place is None else name_of(x, place), f"N = {x.q.shape[2]}"]
    if config is not None:
        words += [f"θ = {config.theta:g}"] + [f"tail {config.tail}"] * (config.tail > 0)
    return ", ".join(words)
