"""The texts of a call, looked at in the first layer and remembered for the others."""

from typing import NamedTuple
from weakref import ref

from torch import Tensor

from anchor_models.integration.sequences import (
    Tokens,
    from_segments,
    is_segments,
    packed,
    refuse_restarts,
    whole,
)
from anchor_ref.inputs import check_type


class _Seen(NamedTuple):
    """Texts, and what they were read from: later layers of the same pass may take them.

    Within a pass the configuration is one, and the index of the layer grows. Where it does not,
    the model reads anew, or another one reads from the same buffers, and what stands in them may
    have changed: tensors of inference mode, and whoever writes around autograd, count no writes.
    """

    config: ref | None
    layer: int
    sizes: tuple[int, ...]
    tensors: list[ref | None]
    versions: list[int | None]
    texts: list[Tokens]


_last = _Seen(None, 0, (), [], [], [])


def texts_of(
    query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict, module
) -> list[Tokens] | None:
    """The texts of a call; None when a mask of another kind says who sees whom.

    To read them the host waits for the GPU. The layers of a model are given the same tensors, so
    the first of them reads and the others do not wait.

    Args:
        query, key: of the layer; their sizes are looked at.
        mask: segments (see `sequences`), None, or a mask of another kind.
        kwargs: what else the model hands over: `position_ids`, `cu_seq_lens_q`, `cu_seq_lens_k`.
        module: the layer, with its `layer_idx` and `config`.

    Raises:
        TypeError: bounds are no tensor of integers.
        ValueError: mask, positions and bounds do not fit each other or the tensors.
    """
    global _last  # replaced as a whole: another thread sees the old one or the new
    names = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k")
    tensors = [mask, *(kwargs.get(name) for name in names)]
    for name, x in zip(names[1:], tensors[2:], strict=True):
        if x is not None:
            check_type(name, x, Tensor)
    sizes = (query.shape[0], query.shape[2], key.shape[2])
    versions = [None if x is None else _version(x) for x in tensors]
    last, config, layer = _last, module.config, module.layer_idx
    same = (sizes, versions) == (last.sizes, last.versions) and all(
        x is None or x is seen() for x, seen in zip(tensors, last.tensors, strict=True)
    )
    if same and last.config() is config and layer > last.layer:
        _last = last._replace(layer=layer)
        return last.texts
    texts = _read(query, key, *tensors)
    if texts is not None:
        seen = [None if x is None else ref(x) for x in tensors]
        _last = _Seen(ref(config), layer, sizes, seen, versions, texts)
    return texts


def _version(x: Tensor) -> int:
    """How often a tensor was written to; tensors of inference mode do not count it."""
    return 0 if x.is_inference() else x._version


def _read(query, key, mask, positions, bounds, key_bounds) -> list[Tokens] | None:
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
    if texts is not None:
        refuse_restarts(positions, texts)
    return texts
