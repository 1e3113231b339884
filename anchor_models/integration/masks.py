"""The mask function of `attn_implementation="anchor_attention"`, which draws a matrix rarely."""

import sys
from functools import lru_cache

import torch
from torch import Tensor

from anchor_models.integration.mask_functions import Known, known
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

    if not torch.compiler.is_compiling():
        _refuse_other_models(type(asked["config"]))
    local = asked.get("local_size")  # of a window or chunk: it may hide nothing
    if _query_length(asked) <= 2 or (local is not None and local < asked["kv_length"]):
        return sdpa_mask(**asked)
    found = _segments_or_mask(asked)
    # torch.compile knows nothing of tensors that refuse.
    if torch.compiler.is_compiling() or not is_segments(found):
        return found
    return Segments.of(found, type(asked["config"]).__name__)


@lru_cache
def _refuse_other_models(config: type) -> None:
    """transformers gives some models the mask that do not ask for the attention function."""
    modeling = sys.modules.get(config.__module__.replace(".configuration_", ".modeling_"))
    if modeling is not None and not hasattr(modeling, "ALL_ATTENTION_FUNCTIONS"):
        raise ValueError(
            "the model must compute attention through transformers' AttentionInterface, got one "
            f"with a {config.__name__}, which has an attention of its own"
        )


@torch.compiler.disable
def _segments_or_mask(asked: dict) -> Tensor | None:
    from transformers.masking_utils import sdpa_mask

    found = known(asked["mask_function"])
    plain = found is not None and found.texts is None
    # A model that will not have the matrix skipped wants to work on the matrix itself; in
    # transformers 4 it is the cache that will not, for the sake of compiling.
    wants_matrix = plain and "q_length" in asked and not asked.get("allow_is_causal_skip", True)
    if wants_matrix or int(asked.get("kv_offset", 0)) != 0:
        return sdpa_mask(**asked)
    n_queries, n_keys, offset = _query_length(asked), asked["kv_length"], _query_offset(asked)
    padding, written = asked.get("attention_mask"), offset + n_queries
    if plain:
        device = asked.get("device") or asked["cache_position"].device
        text_of = torch.zeros(asked["batch_size"], n_keys, dtype=torch.int32, device=device)
    else:
        text_of = _packed_texts(asked, found) if written == n_queries == n_keys else None
        if text_of is None:
            return sdpa_mask(**asked)
    if padding is not None:
        text_of = text_of.masked_fill(~_real(padding, n_keys), HIDDEN)
    if written == n_queries == n_keys and not text_of.any():
        return None
    text_of[:, written:] = HIDDEN
    own = torch.arange(n_keys, device=text_of.device) - offset
    own = own.masked_fill((own < 0) | (own >= n_queries), HIDDEN).to(torch.int32)
    return torch.stack([text_of, own.expand_as(text_of)], 1)[:, None]


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


def _query_offset(asked: dict) -> int:
    return int(asked["q_offset"] if "q_length" in asked else asked["cache_position"][0])
