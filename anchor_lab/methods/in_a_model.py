"""Any method in the place of a transformers model's attention, for whole prompts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from anchor_lab.methods.method import Method
from anchor_lab.methods.selection import Selection
from anchor_models.interface import BEYOND_QKV, beyond_causal, replaced_attention
from anchor_ref.regions import causal_pairs

# What a layer may be given besides q, k and v, and no method knows of.
_BEYOND = {"sliding_window": "a sliding window", **BEYOND_QKV}


def attend(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    v: Float[Tensor, "B Hkv N Dv"],
    selection: Selection,
    scale: float | None = None,
) -> tuple[Float[Tensor, "B Hq N Dv"], float]:
    """Attention to the kept keys alone, a few query rows at a time.

    out_i = softmax over kept j of s_ij, times v_j

    Args:
        q, k, v, scale: as in `anchor_attention`, with as many queries as keys.
        selection: what any method's `select` returned for q and k.

    Returns:
        (out, density): the output in q's dtype, and the share of the causal pairs that was kept,
        mean over batch and heads.
    """
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    kept = torch.zeros((), dtype=torch.int64, device=q.device)
    for rows, mask in selection:
        block = slice(rows.start, rows.stop)
        out[:, :, block] = scaled_dot_product_attention(
            q[:, :, block],
            k[:, :, : rows.stop],
            v[:, :, : rows.stop],
            attn_mask=mask,
            scale=scale,
            enable_gqa=True,
        )
        kept += mask.sum()
    batch, heads, n = selection.shape
    return out, kept.item() / (batch * heads * causal_pairs(n))


@contextmanager
def method_attention(model, method: Method, *, tail: int = 0) -> Iterator[list[float]]:
    """Inside the `with`, every layer of `model` attends to what `method` keeps and no more.

    Args:
        model: a transformers model of plain causal attention, called with whole prompts: no
            padding, and no cache that holds earlier tokens.
        method: of `METHODS`.
        tail: last queries that keep every key besides, see `Method.select`.

    Yields:
        A list that gets the density of each layer of each call, mean over batch and heads.

    Raises:
        ValueError: see `replaced_attention`; or, when the model is called, a prompt is padded or
            continues a cache, a layer is no plain causal attention, or `tail` is out of range.
    """
    densities: list[float] = []

    def make(_original):
        def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
            _refuse_other(module, attention_mask, kwargs)
            with torch.no_grad():
                selection = method.select(query, key, scaling, tail=tail)
            out, density = attend(query, key, value, selection, scaling)
            densities.append(density)
            return out.transpose(1, 2).contiguous(), None  # [B, N, Hq, Dv]

        return attention

    with replaced_attention(model, make):
        yield densities


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
