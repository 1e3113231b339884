"""The texts of a call, looked at in the first layer of a pass and remembered for the others."""

from collections.abc import Mapping

from torch import Tensor

from anchor_models.integration.later import Later, may_come_later
from anchor_models.integration.passes import Pass
from anchor_models.integration.sequences import (
    Tokens,
    from_segments,
    goes_on,
    is_segments,
    packed,
    refuse_restarts,
    whole,
)


def texts_of(
    read: Pass, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: Mapping
) -> list[Tokens] | None:
    """The texts of a call; None when a mask of another kind says who sees whom.

    To read a mask or bounds the host waits for the GPU. The layers of a model are given the same
    tensors, so the first of them reads and the others do not wait. Positions are asked one
    question, whose answer a later layer hears.

    Args:
        read: the pass of this call, which remembers them.
        query, key: of the layer; their sizes are looked at.
        mask: segments (see `sequences`), None, or a mask of another kind.
        kwargs: what else the model hands over: `position_ids`, `cu_seq_lens_q`, `cu_seq_lens_k`.

    Raises:
        ValueError: mask, positions and bounds do not fit each other or the tensors.
    """
    if read.texts is None:
        names = ("cu_seq_lens_q", "cu_seq_lens_k")
        read.texts = _read(query, key, mask, *map(kwargs.get, names))
        if read.texts is not None and kwargs.get("cu_seq_lens_q") is None:
            _ask_positions(read, kwargs.get("position_ids"))
    return read.texts


def _ask_positions(read: Pass, positions: Tensor | None) -> None:
    found = goes_on(positions, read.texts or [])
    if found is None:
        return
    if may_come_later(found.is_cuda, read.config, read.layer):
        read.positions_go_on = Later(found)
    else:
        refuse_restarts(bool(found))


def _read(query, key, mask, bounds, key_bounds) -> list[Tokens] | None:
    n_queries, n_keys = query.shape[2], key.shape[2]
    texts = None
    if is_segments(mask):
        texts = from_segments(mask)
    elif mask is not None and mask.shape[2] != n_queries:
        raise ValueError(
            f"attention_mask must have a row for each of the {n_queries} queries, got shape "
            f"{tuple(mask.shape)} {mask.dtype}: did the model change the mask on its way?"
        )
    elif mask is None and n_queries == n_keys:
        texts = whole(query.shape[0], n_keys)
    if bounds is not None:
        return packed(bounds, key_bounds, query, key, mask, texts)
    return texts
