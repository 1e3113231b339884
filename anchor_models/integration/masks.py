"""The mask function of `attn_implementation="anchor_attention"`, which draws a matrix rarely."""

import sys

import torch
from torch import Tensor

from anchor_models.integration.mask_functions import Known, is_joined, known
from anchor_models.integration.sequences import HIDDEN, Segments, is_segments

STRIP = 2**24  # entries of a mask that are looked at together


def causal_segments(**asked) -> Tensor | None:
    """Mask function for transformers' `AttentionMaskInterface`.

    Args:
        asked: what transformers hands to its mask functions, the same as to `sdpa_mask`.

    Returns:
        Segments, `[B, 1, 2, Nk]` int32, where the mask is causal but for padding and packing; None
        where it is causal and the queries are all keys. What `sdpa_mask` returns for one or two
        queries, for sliding windows, and for every mask that segments cannot express.

    Raises:
        ValueError: the model does not call the attention function that goes with this mask.
    """
    from transformers.masking_utils import sdpa_mask

    config, local = type(asked["config"]), asked.get("local_size")
    if _has_its_own_attention(config):
        raise ValueError(
            "the model must compute attention through transformers' AttentionInterface, got one "
            f"with a {config.__name__}, which has an attention of its own"
        )
    # As long as the keys, a window or chunk hides nothing.
    if _query_length(asked) <= 2 or (local is not None and local < asked["kv_length"]):
        return sdpa_mask(**asked)
    if torch.compiler.is_compiling():  # which knows nothing of tensors that refuse
        return _traced_segments(asked)
    found = _segments_or_mask(asked)
    return Segments.of(found, config.__name__) if is_segments(found) else found


@torch.compiler.assume_constant_result
def _has_its_own_attention(config: type) -> bool:
    """transformers gives some models the mask that do not ask for the attention function."""
    modeling = sys.modules.get(config.__module__.replace(".configuration_", ".modeling_"))
    return modeling is not None and not hasattr(modeling, "ALL_ATTENTION_FUNCTIONS")


def _segments_or_mask(asked: dict) -> Tensor | None:
    from transformers.masking_utils import sdpa_mask

    found = known(asked["mask_function"])
    plain = found is not None and found.texts is None
    if _is_matrix(asked, plain):
        return sdpa_mask(**asked)
    n_queries, n_keys = _query_length(asked), asked["kv_length"]
    offset = int(_query_offset(asked))
    whole = offset == 0 and n_queries == n_keys
    if plain and whole and asked.get("attention_mask") is None:
        return None
    if plain:
        text_of = _one_text(asked)
    else:
        text_of = _packed_texts(asked, found) if whole else None
        if text_of is None:
            return sdpa_mask(**asked)
    text_of = _without_padding(text_of, asked)
    if whole and not text_of.any():
        return None
    return _segments(text_of, offset, n_queries)


def _traced_segments(asked: dict) -> Tensor | None:
    """The same by what the compiler knows: sizes and kinds of masks, but no numbers in tensors.

    Segments stand also where `_segments_or_mask` sees that there is nothing to leave out. Texts
    are taken as packed where transformers says so, which it does by `use_cache=False` alone: it
    does not look either.
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    n_queries, n_keys, offset = _query_length(asked), asked["kv_length"], _query_offset(asked)
    # With a static cache the offset is a tensor.
    whole = isinstance(offset, int) and offset == 0 and n_queries == n_keys
    function = asked["mask_function"]
    # What transformers joins itself are windows, chunks and packed texts, and these by index
    # arithmetic, without vmap; of packed texts the matrix may never be skipped.
    joined = is_joined(function) and not asked.get("use_vmap", True)
    packed = joined and whole and not asked.get("allow_is_causal_skip", True)
    one_text = joined and not packed and asked.get("local_size") is not None
    plain = function is causal_mask_function or one_text
    if _is_matrix(asked, plain) or not (plain or packed):
        return sdpa_mask(**asked)
    if plain and whole and asked.get("attention_mask") is None:
        return None
    text_of = _packed_where_cut(asked) if packed else _one_text(asked)
    return _segments(_without_padding(text_of, asked), offset, n_queries)


def _is_matrix(asked: dict, plain: bool) -> bool:
    # A model that will not have the matrix skipped wants to work on the matrix itself; in
    # transformers 4 it is the cache that will not, for the sake of compiling.
    wants_matrix = plain and "q_length" in asked and not asked.get("allow_is_causal_skip", True)
    return wants_matrix or int(asked.get("kv_offset", 0)) != 0


def _one_text(asked: dict) -> Tensor:
    device = asked.get("device") or asked["cache_position"].device
    return torch.zeros(asked["batch_size"], asked["kv_length"], dtype=torch.int32, device=device)


def _without_padding(text_of: Tensor, asked: dict) -> Tensor:
    padding = asked.get("attention_mask")
    if padding is None:
        return text_of
    return text_of.masked_fill(~_real(padding, text_of.shape[1]), HIDDEN)


def _segments(text_of: Tensor, offset: int | Tensor, n_queries: int) -> Tensor:
    """Segments of texts whose first query is key `offset`."""
    own = torch.arange(text_of.shape[1], device=text_of.device) - offset
    text_of = text_of.masked_fill(own >= n_queries, HIDDEN)  # no token has reached these places
    own = own.masked_fill((own < 0) | (own >= n_queries), HIDDEN).to(torch.int32)
    return torch.stack([text_of, own.expand_as(text_of)], 1)[:, None]


def _packed_where_cut(asked: dict) -> Tensor:
    """The text of each key under a mask that is known to pack: a token begins one where it does
    not see the token before it."""
    device = asked["device"]
    row = torch.arange(asked["batch_size"], device=device)[:, None]
    token = torch.arange(asked["kv_length"], device=device)[None]
    before = (token - 1).clamp(min=0)
    seen = asked["mask_function"](row, torch.zeros_like(row), token, before)
    return (~seen).cumsum(1).to(torch.int32)


def _packed_texts(asked: dict, found: Known | None) -> Tensor | None:
    """The text of each key, from 0; None where the mask hides more than padding and other texts.

    A mask that only its function knows is looked at whole, in strips of rows: each row must see
    its text from the first key to its own, padding left out, and nothing else.
    """
    if found is not None:
        return found.texts.to(torch.int32)
    from transformers.masking_utils import sdpa_mask

    batch, n_keys = asked["batch_size"], asked["kv_length"]
    rows, starts = max(1, STRIP // (batch * n_keys)), []
    padding = asked.get("attention_mask")
    for first in range(0, n_keys, rows):
        strip = sdpa_mask(**_strip(asked, first, min(first + rows, n_keys)))
        seen = strip[:, 0].expand(batch, -1, -1)  # [B, R, Nk]
        key = torch.arange(n_keys, device=seen.device)
        own = key[first : first + seen.shape[1], None]
        start = seen.int().argmax(-1, keepdim=True)  # the first key that the row sees
        real = torch.ones_like(seen[:, 0]) if padding is None else _real(padding, n_keys)
        expected = (start <= key) & (key <= own) & real[:, None]
        row_is_real = real[:, first : first + seen.shape[1], None]
        if ((seen != expected) & row_is_real).any():
            return None
        starts.append(start.squeeze(-1).masked_fill(~row_is_real.squeeze(-1), 0))
    start = torch.cat(starts, 1).cummax(1).values  # [B, Nk]
    changes = start.diff(dim=1, prepend=start.new_zeros(batch, 1)) != 0
    if (changes & (start != key)).any():  # a window that slides begins before its own key
        return None
    return start.to(torch.int32)


def _real(padding: Tensor, n_keys: int) -> Tensor:
    """Which keys are tokens, `[B, Nk]`; a key beyond the mask is none, as in transformers."""
    real = padding[:, :n_keys].bool()
    return torch.nn.functional.pad(real, (0, n_keys - real.shape[1]))


def _strip(asked: dict, first: int, end: int) -> dict:
    """The same request for some of the queries, and for the matrix in any case."""
    if "q_length" in asked:
        rows = {"q_length": end - first, "q_offset": first}
    else:  # transformers 4
        rows = {"cache_position": asked["cache_position"][first:end]}
    whole = {"allow_is_causal_skip": False}
    if "allow_is_bidirectional_skip" in asked:  # transformers 4 knows of none
        whole["allow_is_bidirectional_skip"] = False
    return asked | rows | whole


# transformers 4 names the places of the queries one by one.
def _query_length(asked: dict) -> int:
    return asked["q_length"] if "q_length" in asked else asked["cache_position"].shape[0]


def _query_offset(asked: dict) -> int | Tensor:
    return asked["q_offset"] if "q_length" in asked else asked["cache_position"][0]
