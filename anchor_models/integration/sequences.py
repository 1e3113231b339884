"""Which keys go with which queries: transformers' causal masks, as sequences of tokens.

Causal attention with padding and packed texts needs no matrix of Nq x Nk: two numbers for each key
say it all. Under `attn_implementation="anchor_attention"` the place of the mask is taken by

    segments[b, 0, 0, j] = the packed text that key j belongs to, from 0; HIDDEN where nobody sees
                           it: padding, and places of a static cache that no token has reached
    segments[b, 0, 1, j] = the query that is key j's own token; HIDDEN where there is none

Two rows fit no scores of three queries or more: code that takes segments for a matrix will fail.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anchor_ref.inputs import check_cu_seqlens

HIDDEN = -1

_ACROSS = (
    "cu_seq_lens_q {} must bound the texts of the attention mask, got a mask by which they see "
    "each other: pass position_ids that begin again with each text, use_cache=False and no "
    "attention_mask"
)


class Segments(Tensor):
    """Segments that refuse to be computed with: some models' attention works on its mask.

    They may be sliced, moved and looked at like other tensors, as long as they stay segments.

    Attributes:
        plain: the same numbers in a tensor that may be computed with, which is also what
            torch.compile takes into a graph.
        model: the name of the configuration that they were made for.
    """

    plain: Int[Tensor, "B 1 2 Nk"]
    model: str

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        try:
            with torch._C.DisableTorchFunctionSubclass():
                found = func(*args, **(kwargs or {}))
        except (RuntimeError, IndexError, TypeError) as error:
            raise _computed_with(args) from error
        if not isinstance(found, Tensor) or isinstance(found, Segments):
            return found
        if func == Tensor._base.__get__:  # torch.compile asks a view for it
            return found
        if not is_segments(found):
            raise _computed_with(args)
        return Segments.of(found, _model(args))

    @staticmethod
    def of(segments: Int[Tensor, "B 1 2 Nk"], model: str) -> "Segments":
        """These segments, made for the configuration of that name."""
        found = segments.as_subclass(Segments)
        found.plain, found.model = segments, model
        return found


def _model(args: object) -> str:
    """The name that the segments among some arguments carry; they may lie in a list."""
    for x in args if isinstance(args, list | tuple) else ():
        found = vars(x).get("model") if isinstance(x, Segments) else _model(x)
        if found:
            return found
    return ""


def _computed_with(args: tuple) -> ValueError:
    return ValueError(
        "the attention of a model must hand its mask on as it is, got one with a "
        f"{_model(args) or 'configuration unknown'} that computes with it, unless a hook changed "
        "the mask on its way: padded and packed prompts need another attn_implementation there, "
        "such as 'sdpa' or 'eager'"
    )


@dataclass(frozen=True, eq=False)
class Tokens:
    """One text, in one row of the batch or, when they are alike, in all.

    Attributes:
        rows: the rows of the batch.
        keys: its places among the keys, ascending.
        queries: its places among the queries: those of its last keys.
    """

    rows: slice
    keys: slice | Int[Tensor, "n"]
    queries: slice | Int[Tensor, "m"]


def is_segments(mask: Tensor | None) -> bool:
    """Does the mask come from `causal_segments`, as segments?"""
    return mask is not None and mask.dtype == torch.int32 and tuple(mask.shape[1:-1]) == (1, 2)


def from_segments(segments: Int[Tensor, "B 1 2 Nk"]) -> list[Tokens]:
    """The texts that hold at least one query, row by row."""
    segments = segments.plain if isinstance(segments, Segments) else segments
    table = segments[:, 0].cpu()  # [B, 2, Nk]
    if (table == table[:1]).all():
        return list(_texts(slice(0, len(table)), *table[0]))
    return [text for b, row in enumerate(table) for text in _texts(slice(b, b + 1), *row)]


def whole(batch: int, n_tokens: int) -> list[Tokens]:
    """One text in every row, nothing padded, every key a query."""
    every = slice(0, n_tokens)
    return [Tokens(slice(0, batch), every, every)]


def packed(
    bounds: Int[Tensor, "S"],
    key_bounds: Int[Tensor, "S"] | None,
    query: Float[Tensor, "B Hq Nq D"],
    key: Float[Tensor, "B Hkv Nk D"],
    mask: Tensor | None,
    texts: list[Tokens] | None,
) -> list[Tokens] | None:
    """The texts that flash attention's `cu_seq_lens_q` bounds.

    Args:
        bounds, key_bounds: `cu_seq_lens_q` and `cu_seq_lens_k`, which must agree.
        query, key: of the layer, one row.
        mask: the layer's mask.
        texts: what the mask says, or None when it is of another kind.

    Returns:
        The texts between the bounds; None where the mask is of another kind.

    Raises:
        TypeError, ValueError: the bounds do not fit the tensors or each other, the mask lets one
            text see another, or it hides tokens within the bounds.
    """
    if query.shape[0] != 1:
        raise ValueError(f"cu_seq_lens_q needs a batch of 1, got {query.shape[0]} rows")
    if key_bounds is not None and not torch.equal(key_bounds, bounds):
        raise ValueError(
            f"cu_seq_lens_k must equal cu_seq_lens_q {bounds.tolist()}, got {key_bounds.tolist()}"
        )
    ends = check_cu_seqlens(bounds, query.shape[2], key.shape[2])
    spans = [slice(start, end) for start, end in pairwise(ends) if end > start]
    if texts is None:
        text_of = torch.bucketize(torch.arange(ends[-1]), bounds.cpu(), right=True)
        across = (text_of[:, None] != text_of).to(query.device)
        seen = mask if mask is None or mask.dtype == torch.bool else mask == 0
        if mask is None or (seen & across).any():
            raise ValueError(_ACROSS.format(ends))
        return None
    seen = [text.keys for text in texts]
    if seen == [slice(0, query.shape[2])]:  # the mask tells no texts apart: the bounds do
        return [Tokens(slice(0, 1), span, span) for span in spans]
    if len(texts) <= 1:
        raise ValueError(
            f"cu_seq_lens_q {ends} must come without padding, got an attention_mask that hides "
            "tokens: leave the padding out of the row, or pass no cu_seq_lens_q"
        )
    if seen != spans:
        raise ValueError(_ACROSS.format(ends))
    return [Tokens(slice(0, 1), span, span) for span in spans]


def goes_on(positions: Tensor | None, texts: list[Tokens]) -> Bool[Tensor, ""] | None:
    """Do positions never begin again at 0 where the mask knows of one text only?

    transformers' sdpa then reads one text, its flash attention several.

    Args:
        positions: `position_ids` as the layer got them, `[B or 1, Nq]`; others are not judged.
        texts: what the mask says.

    Returns:
        On the device of the positions, which nothing waits for; None where nothing is judged. Of
        one text it takes one launch: where prompts are short, a pass would feel more.
    """
    if positions is None or positions.ndim != 2 or not texts:
        return None
    found = [
        positions[text.rows if len(positions) > 1 else slice(0, 1), text.queries][:, 1:].all()
        for text in texts
    ]
    return found[0] if len(found) == 1 else torch.stack(found).all()


def refuse_restarts(all_go_on: bool) -> None:
    """Refuse positions that do not go on, see `goes_on`, with a ValueError."""
    if not all_go_on:
        raise ValueError(
            "position_ids must not begin again inside a text, got packed texts that the "
            "attention mask does not know of: pass use_cache=False and no attention_mask; "
            "where that was so, the model tells its mask nothing of positions: pass "
            "cu_seq_lens_q and cu_seq_lens_k, or each text by itself"
        )


def _texts(rows: slice, text_of: Tensor, query_of: Tensor) -> Iterator[Tokens]:
    # The numbers of the texts ascend: no sorting of all keys to find them.
    for number in text_of[text_of != HIDDEN].unique_consecutive().tolist():
        keys = (text_of == number).nonzero().flatten()
        queries = query_of[keys]
        queries = queries[queries != HIDDEN].long()
        if len(queries):
            yield Tokens(rows, _range(keys), _range(queries))


def _range(places: Tensor) -> slice | Tensor:
    """Places in a row as a slice, which copies nothing."""
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first + 1 == len(places) else places
