"""Any method in the place of a transformers model's attention, for whole prompts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from anchor_lab.methods.corrections import Correction, MeanCorrection
from anchor_lab.methods.evaluate import weighted_sum
from anchor_lab.methods.method import Method
from anchor_lab.methods.selection import Selection, causal_mask
from anchor_lab.methods.triangle_mix import TriangleMix
from anchor_models.interface import BEYOND_QKV, beyond_causal, replaced_attention
from anchor_ref.heads import causal_scores
from anchor_ref.inputs import check_compute_dtype
from anchor_ref.regions import causal_pairs

# What a layer may be given besides q, k and v, and no method knows of.
_BEYOND = {"sliding_window": "a sliding window", **BEYOND_QKV}


def attend(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    v: Float[Tensor, "B Hkv N Dv"],
    selection: Selection,
    scale: float | None = None,
    correction: Correction | None = None,
) -> tuple[Float[Tensor, "B Hq N Dv"], float]:
    """Attention to the kept keys alone, a few query rows at a time.

    out_i = softmax over kept j of s_ij, times v_j

    Args:
        q, k, v, scale: as in `anchor_attention`, with as many queries as keys.
        selection: what any method's `select` returned for q and k.
        correction: what stands for the dropped keys; None for nothing.

    Returns:
        (out, density): the output in q's dtype, and the share of the causal pairs that it was
        formed from, mean over batch and heads: those kept, and with a correction its pseudo-keys,
        a pair each, or its dense rows.
    """
    correction = correction or Correction()
    batch, heads, n = selection.shape
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    dense_rows = correction.dense_rows(n).to(q.device)
    densely = bool(dense_rows.any())
    if densely:
        dense = torch.zeros_like(out)
        exact = torch.empty(q.shape[:3], dtype=torch.bool, device=q.device)
    pairs = torch.zeros((), dtype=torch.float64, device=q.device)
    for rows, mask in selection:
        block = slice(rows.start, rows.stop)
        one = q[:, :, block], k[:, :, : rows.stop], v[:, :, : rows.stop]
        causal = causal_mask(rows, q.device)
        if isinstance(correction, MeanCorrection):
            out[:, :, block] = _by_weights(*one, mask, scale, correction)
        else:
            out[:, :, block] = _masked(*one, mask, scale)
        pairs += correction.pairs(mask, causal).sum()
        if densely:
            exact[:, :, block] = (mask | ~causal).all(-1)
            some = dense_rows[block].nonzero().flatten()
            if len(some):
                alone = _masked(one[0][:, :, some], *one[1:], causal[some], scale)
                dense[:, :, rows.start + some] = alone
            mask = mask | (dense_rows[block, None] & causal)
        pairs += mask.sum()
    if densely:
        out = correction.correct(out, dense, exact)
    return out, pairs.item() / (batch * heads * causal_pairs(n))


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


def _by_weights(q, k, v, mask, scale, correction: Correction) -> Tensor:
    """The same by weights that no fused attention knows of, in float32 or better."""
    dtype = check_compute_dtype(None, q.dtype)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = causal_scores(q.to(dtype), k.to(dtype), scale)
    return weighted_sum(correction.weights(scores, mask), v.to(dtype)).to(q.dtype)


@contextmanager
def method_attention(
    model, method: Method | TriangleMix, *, tail: int = 0, correction: Correction | None = None
) -> Iterator[list[float]]:
    """Inside the `with`, every layer of `model` attends to what `method` keeps and no more.

    Args:
        model: a transformers model of plain causal attention, called with whole prompts: no
            padding, and no cache that holds earlier tokens.
        method: of `METHODS`, in every layer; or what says which method stands in which layer.
        tail: last queries that keep every key besides, see `Method.select`.
        correction: what stands for the dropped keys in every layer; None for nothing.

    Yields:
        A list that gets the density of each layer of each call, see `attend`.

    Raises:
        ValueError: see `replaced_attention`; or, when the model is called, a prompt is padded or
            continues a cache, a layer is no plain causal attention, or `tail` is out of range.
    """

    def in_layer(module, q, k, v, attention_mask, scale, kwargs):
        _refuse_other(module, attention_mask, kwargs)
        with torch.no_grad():
            selection = method_in(method, module).select(q, k, scale, tail=tail)
        return attend(q, k, v, selection, scale, correction)

    with in_every_layer(model, in_layer) as densities:
        yield densities


@contextmanager
def in_every_layer(model, attention: Callable[..., tuple[Tensor, float]]) -> Iterator[list[float]]:
    """Inside the `with`, a function stands in the place of every layer's attention.

    Args:
        model: as in `method_attention`.
        attention: of (module, q, k, v, attention_mask, scale, further arguments by name); q, k
            and v as in `attend`, and so is what it returns.

    Yields:
        A list that gets the density of each layer of each call.

    Raises:
        ValueError: see `replaced_attention`.
    """
    densities: list[float] = []

    def make(_original):
        def replaced(module, query, key, value, attention_mask, scaling=None, **kwargs):
            out, density = attention(module, query, key, value, attention_mask, scaling, kwargs)
            densities.append(density)
            return out.transpose(1, 2).contiguous(), None  # [B, N, Hq, Dv]

        return replaced

    with replaced_attention(model, make):
        yield densities


def method_in(method: Method | TriangleMix, module) -> Method:
    """The method that stands in a transformers layer."""
    if isinstance(method, Method):
        return method
    return method.in_layer(module.layer_idx, module.config.num_hidden_layers)


def _refuse_other(module, attention_mask, kwargs: dict) -> None:
    """Refuse a call whose attention is more, or less, than all earlier keys."""
    layer = getattr(module, "layer_idx", None)
    if attention_mask is not None:
        raise ValueError(
            f"attention_mask must be None in layer {layer}: methods choose the keys of whole, "
            "unpadded prompts, of a model with 'sdpa' attention; "
            f"got one of shape {tuple(attention_mask.shape)}"
        )
    if found := beyond_causal(module, kwargs, masked=False, table=_BEYOND):
        raise ValueError(
            f"model must have plain causal attention, got {found[0]} in layer {layer}"
        )
