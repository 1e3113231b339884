"""What transformers' mask functions say, without drawing the matrix that they stand for.

transformers hands over a function of two places, put together from a few of its own. Those are
known by their code, and what they were made with lies in their closures: the text of each token,
the size of a window. A function with a part of another kind is not known, and must be drawn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import CodeType

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Known:
    """A causal mask, and what else it hides.

    Attributes:
        texts: of each token its packed text, `[B, N]`, ascending; None where all are of one.
        local: a window or the size of chunks: where there are no more keys, it hides none.
    """

    texts: Tensor | None = None
    local: int | None = None


def known(mask_function: Callable) -> Known | None:
    """What a mask function hides beside later keys; None when it is not of the known kinds."""
    parts = _parts(mask_function)
    if parts is None or "causal" not in parts:
        return None
    return Known(parts.get("texts"), parts.get("local"))


def is_joined(mask_function: Callable) -> bool:
    """Is it the intersection of several? torch.compile can tell no more: it reads no closures."""
    from transformers.masking_utils import and_masks

    code = getattr(mask_function, "__code__", None)
    return code is not None and code in and_masks.__code__.co_consts


def _parts(function: Callable) -> dict | None:
    from transformers.masking_utils import causal_mask_function

    if function is causal_mask_function:
        return {"causal": True}
    code = getattr(function, "__code__", None)
    maker = _makers().get(code)
    if maker is None:
        return None
    made_with = dict(
        zip(code.co_freevars, (x.cell_contents for x in function.__closure__), strict=True)
    )
    return _READ[maker](made_with)


def _together(made_with: Mapping) -> dict | None:
    """All parts of a mask that is the intersection of several."""
    found: dict = {}
    for function in made_with["mask_functions"]:
        parts = _parts(function)
        if parts is None or (found.keys() & parts.keys()) - {"causal"}:
            return None
        found |= parts
    return found


# Inside a packed text positions go up one by one: what they hide is what places hide.
_READ: dict[str, Callable[[Mapping], dict | None]] = {
    "and_masks": _together,
    "sliding_window_overlay": lambda made_with: {"local": made_with["sliding_window"]},
    "chunked_overlay": lambda made_with: {"local": made_with["chunk_size"]},
    "packed_sequence_mask_function": lambda made_with: {
        "texts": made_with["packed_sequence_mask"]
    },
    "remap_positions_for_packed_sequence": lambda made_with: _parts(made_with["mask_function"]),
}


@cache
def _makers() -> dict[CodeType, str]:
    """By the code of the function that each maker of mask functions returns, the maker's name."""
    from transformers import masking_utils

    makers = {name: getattr(masking_utils, name, None) for name in _READ}
    return {
        inner: name
        for name, maker in makers.items()
        if maker is not None  # transformers 4 has fewer
        for inner in maker.__code__.co_consts
        if isinstance(inner, CodeType) and inner.co_freevars
    }
