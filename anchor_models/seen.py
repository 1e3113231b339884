"""Who sees whom in a layer, read from the values of the mask that the layer is given.

Names of models and of their layers say little: a layer with a window in its configuration may have
none, a mask may carry a bias. What a causal model may hide beyond later tokens is padding, other
texts of a packed row, and keys behind a window; everything else is said to be something else.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from anchor_models.integration.sequences import HIDDEN, Segments, is_segments
from anchor_models.interface import implementation_of

STRIP = 2**24  # entries of a mask that are looked at together
# Additive masks hide by numbers from -10000 to the least of their dtype, or twice that.
HIDING = -1e4
# What each implementation does where it is given no mask. Others, as flash attention, read windows
# and positions themselves.
CAUSAL_UNMASKED = frozenset({"sdpa", "anchor_attention"})
OPEN_UNMASKED = frozenset({"eager", "flex_attention"})
BOTH_WAYS = "attention in both directions"


class OtherMaskError(ValueError):
    """The mask does more than what `Seen` can tell; the message says what, in a few words."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A causal mask in two numbers for each key.

    Attributes:
        texts: of each token the text that it belongs to, from 0 in each row; HIDDEN for padding,
            `[B, N]` int32. None where every row is one text and nothing is padded.
        window: how many keys a query sees, itself among them; None where none is hidden for being
            too far away.
    """

    texts: Int[Tensor, "B N"] | None = None
    window: int | None = None


def read_mask(
    module,
    query: Tensor,
    key: Tensor,
    mask: object,
    kwargs: Mapping[str, object],
    padding: Tensor | None = None,
    positions: Tensor | None = None,
) -> Seen:
    """What a layer's queries see of its keys, the whole prompt being at hand.

    Args:
        module: the attention layer, with its `config`.
        query, key: of the layer, `[B, H, N, D]`.
        mask: as the layer gets it: None, a matrix of booleans or of what is added to the scores,
            a row for each prompt, segments (see `integration.sequences`), or flex attention's.
        kwargs: what else the layer gets; `sliding_window` and `position_ids` count for
            implementations without a mask of their own.
        padding: the caller's attention mask, `[B, N]`; rows of padding are nobody's.
        positions: the caller's position_ids, `[B, N]`; texts begin where they do not go on.

    Raises:
        OtherMaskError: who sees whom is not causal, or not causal alone.
    """
    implementation, n = implementation_of(module.config), query.shape[2]
    if key.shape[2] != n:
        raise OtherMaskError(f"{key.shape[2] - n} keys before its first query")
    if mask is None and implementation in OPEN_UNMASKED and n > 1:
        raise OtherMaskError(BOTH_WAYS)
    if mask is None and implementation in CAUSAL_UNMASKED:
        return Seen()
    if (
        mask is None or len(mask.shape) == 2
    ):  # flash attention, or one that transformers does not know
        found = kwargs.get("position_ids")
        # Of several rows flash attention takes each for one text.
        restarts = mask is None and "flash" in implementation and len(query) == 1
        starts = _breaks(found) if restarts and found is not None else None
        real = mask if mask is None else mask[:, -n:].bool()
        window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
        return Seen(_texts(real, starts), window if window is not None and window < n else None)
    if isinstance(mask, Tensor) and is_segments(mask):
        text_of = (mask.plain if isinstance(mask, Segments) else mask)[:, 0, 0]
        return Seen(text_of if text_of.any() else None)
    real = torch.ones_like(query[:, 0, :, 0], dtype=torch.bool)
    if padding is not None:
        real = padding.to(real.device).bool()
    return _read_matrix(_strips(mask, query), real, positions)


def _read_matrix(strips: Iterator[Tensor], real: Tensor, positions: Tensor | None) -> Seen:
    """Each row must see the tokens from one of them on to its own, and nothing else.

    Args:
        strips: of consecutive rows what they see, `[B, R, N]`.
        real: which tokens are no padding, `[B, N]`.
        positions: as in `read_mask`.
    """
    key, firsts, rows = torch.arange(real.shape[1], device=real.device), [], 0
    for seen in strips:
        own = key[rows : rows + seen.shape[1], None]
        row_is_real = real[:, own.flatten(), None]
        first = seen.int().argmax(-1, keepdim=True)
        expected = (first <= key) & (key <= own) & real[:, None]
        if ((seen != expected) & row_is_real).any():
            later = (seen & (key > own) & row_is_real).any()
            raise OtherMaskError(BOTH_WAYS if later else "a mask of its own")
        firsts.append(first.squeeze(-1))
        rows += seen.shape[1]
    first = torch.cat(firsts, 1)
    starts = (first == key) & real  # of a text: it sees itself alone
    begun = torch.where(starts, key, 0).cummax(1).values  # where each token's text began
    behind = (first > begun) & real
    window = None
    if behind.any():
        window = int((key - first + 1)[real].max())
        before = torch.where(real, key, -1).cummax(1).values.roll(1, 1)  # the last token before
        before = before.gather(1, first)
        if ((before > key - window) & behind).any():
            raise OtherMaskError("a mask of its own")
    allowed = real.cumsum(1) == 1  # a row's first token
    if positions is not None:
        allowed |= _breaks(positions.to(real.device))
    # Without padding between, a text that begins where positions go on is a chunk.
    follows = real & real.roll(1, 1)
    if (starts & follows & ~allowed).any():
        raise OtherMaskError("attention within chunks")
    return Seen(_texts(real, starts), window)


def _texts(real: Tensor | None, starts: Tensor | None) -> Tensor | None:
    """The text of each token; None where all are of one."""
    if real is None and starts is None:
        return None
    starts = torch.zeros_like(real) if starts is None else starts
    real = torch.ones_like(starts) if real is None else real
    number = (starts.cumsum(1) - 1).clamp(min=0).masked_fill(~real, HIDDEN)
    return number.to(torch.int32) if number.any() else None


def _breaks(positions: Tensor) -> Tensor:
    """Where positions do not go on from the token before; true of the first."""
    return positions.diff(dim=1, prepend=positions[:, :1]) != 1


def _strips(mask, query: Tensor) -> Iterator[Tensor]:
    """What consecutive rows see, `[B, R, N]`, a strip at a time.

    Raises:
        OtherMaskError: the mask adds to scores, or differs between heads.
    """
    n = query.shape[2]
    heads = mask.shape[1]
    rows = max(1, STRIP // (len(query) * heads * n))
    part = _matrix(mask, query)
    for first in range(0, n, rows):
        strip = part(first, min(first + rows, n))  # [B or 1, 1 or Hq, R, N]
        seen = strip if strip.dtype == torch.bool else strip == 0
        if strip.dtype != torch.bool and not (seen | (strip <= HIDING)).all():
            raise OtherMaskError("a bias of its scores")
        if heads > 1 and (seen != seen[:, :1]).any():
            raise OtherMaskError("a mask of each head")
        yield seen[:, 0].expand(len(query), -1, -1)


def _matrix(mask, query: Tensor) -> Callable[[int, int], Bool[Tensor, "B H R N"] | Tensor]:
    """Rows of a mask, from the first to before the last asked for."""
    n = query.shape[2]
    if isinstance(mask, Tensor):
        if mask.shape[2] != n:
            raise OtherMaskError(f"a mask of shape {tuple(mask.shape)}")
        return lambda first, end: mask[:, :, first:end, :n]
    from torch.nn.attention.flex_attention import create_mask

    batch, heads, function = mask.shape[0], mask.shape[1], mask.mask_mod

    def rows(first: int, end: int) -> Tensor:
        # A lambda, since its four arguments are counted, which a check of annotations would hide.
        shifted = lambda b, h, q, k: function(b, h, q + first, k)  # noqa: E731
        return create_mask(shifted, batch, heads, end - first, n, query.device)

    return rows
