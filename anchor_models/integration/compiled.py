"""A layer's prefill as one operation that torch.compile puts into its graph and looks no further.

What a layer does depends on what the compiler cannot know: on the options and the record in force,
and on the numbers in its mask. So all of that is looked at when the operation runs, by the same
`prefill` that runs uncompiled, and a graph is good for whatever is asked of it later:

    anchor_models::prefill(query, key, value, mask, ..., layer) -> [B, Nq, Hq, D]

A graph holds tensors, numbers and words but no modules; the layer goes by a name, by which the
operation finds it again. Uncompiled models do not come here and pay nothing for it.
"""

import ctypes
from itertools import count
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

from anchor_models.integration.outputs import NO_WEIGHTS, weights_are_collected
from anchor_models.integration.prefill import in_autocast_dtype, prefill
from anchor_models.integration.sequences import Segments

# Where a gradient is asked for: it flows through dense parts alone, which the operation hides.
uncompiled_prefill = torch.compiler.disable(prefill)

# What a layer hands over besides q, k and v and is read when the operation runs.
TENSORS = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k")
NUMBERS = ("sliding_window",)

_layers: WeakValueDictionary = WeakValueDictionary()  # name: layer
_names: WeakKeyDictionary = WeakKeyDictionary()  # layer: name
_numbers = count()


def compiled_prefill(module, query, key, value, mask, given: dict, kwargs: dict, refused: str):
    """What `prefill` computes, for the compiler to trace.

    Args:
        module, query, key, value, mask, given, kwargs: as in `prefill`.
        refused: why the layer cannot be computed; the operation will raise a ValueError that says
            so, as the uncompiled layer does. Empty where nothing is wrong.

    Returns:
        `[B, Nq, Hq, D]`, contiguous.
    """
    # Inside a compiled graph autocast is off: what it would do to q, k and v is traced here.
    query, key, value = in_autocast_dtype(query, key, value)
    if isinstance(mask, Segments):  # where layers are compiled by themselves, their mask is not
        mask = mask.plain
    return torch.ops.anchor_models.prefill(
        query,
        key,
        value,
        mask,
        *(kwargs.get(name) for name in TENSORS + NUMBERS),
        given["dropout"],
        given["scaling"],
        _name_of(id(module)),
        refused,
    )


@torch.compiler.assume_constant_result
def _name_of(identity: int) -> str:
    """The name of the module with this `id`, which the compiler has in its hands.

    The compiler hands numbers to such a function, and since 2.13 modules, too. It guards the
    graph by the same `id`: the graph runs for this module and no other.
    """
    module = ctypes.cast(identity, ctypes.py_object).value
    if module not in _names:
        name = f"{type(module).__name__} {getattr(module, 'layer_idx', None)}, {next(_numbers)}"
        _names[module], _layers[name] = name, module
    return _names[module]


# The host reads masks, and for a record lists of stripes: no part of a CUDA graph.
@torch.library.custom_op(
    "anchor_models::prefill",
    mutates_args=(),
    schema=(
        "(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? position_ids, "
        "Tensor? cu_seq_lens_q, Tensor? cu_seq_lens_k, SymInt? sliding_window, float dropout, "
        "float? scaling, str layer, str refused) -> Tensor"
    ),
    tags=(torch.Tag.cudagraph_unsafe,),
)
def prefill_op(
    query,
    key,
    value,
    mask,
    position_ids,
    cu_seq_lens_q,
    cu_seq_lens_k,
    sliding_window,
    dropout,
    scaling,
    layer,
    refused,
):
    """See the head of this file; `prefill` says what is computed, and what is raised."""
    if weights_are_collected():  # by a model of which layers alone are compiled
        refused = NO_WEIGHTS
    if refused:
        raise ValueError(refused)
    module = _layers.get(layer)
    if module is None:
        raise RuntimeError(
            f"the model of a compiled graph must be there when it runs, got none for {layer!r}: "
            "compile it in the process that runs it"
        )
    handed = (position_ids, cu_seq_lens_q, cu_seq_lens_k, sliding_window)
    kwargs = dict(zip(TENSORS + NUMBERS, handed, strict=True))
    given = {"dropout": dropout, "scaling": scaling}
    return prefill(module, query, key, value, mask, given, kwargs).contiguous()


@prefill_op.register_fake
def _shape(query, key, value, *_):
    batch, heads, n_queries, _ = query.shape
    return query.new_empty(batch, n_queries, heads, value.shape[3])
