"""A model that reads long prompts with any method: `method_attention`, in larger pieces.

The same keys and the same sums but for rounding. What differs is how many rows go at once, 512 in
place of 128, and that the query heads of a key head are rows of that head: no key is copied for
them, and on CUDA PyTorch has a fused kernel for float32 with a mask, which it has not for grouped
heads. Dense attention, which copies the keys, is that of a fused kernel, too: scores of all pairs
are 116 GB for three texts of 32 768 tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from anchor_lab.methods import Method, Selection, TriangleMix
from anchor_lab.methods.in_a_model import in_every_layer, method_in
from anchor_lab.methods.selection import token_blocks
from anchor_ref.heads import stack_heads, unstack_heads
from anchor_ref.regions import causal_pairs

ROWS = 512


def attend(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    v: Float[Tensor, "B Hkv N Dv"],
    selection: Selection,
    scale: float | None = None,
    rows: int = ROWS,
) -> tuple[Float[Tensor, "B Hq N Dv"], float]:
    """Attention to the kept keys alone, as `in_a_model.attend` without a correction.

    Args:
        q, k, v, scale: as in `anchor_attention`, with as many queries as keys.
        selection: what any method's `select` returned for q and k.
        rows: of queries at once, at least 1.

    Returns:
        (out, density): the output in q's dtype, and the share of the causal pairs that is kept,
        mean over batch and heads.
    """
    batch, heads, n = selection.shape
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    pairs = torch.zeros((), dtype=torch.float64, device=q.device)
    for part in token_blocks(n, rows):
        block, mask = slice(part.start, part.stop), selection.rows(part)
        found = scaled_dot_product_attention(
            stack_heads(q[:, :, block], k.shape[1]),  # [B, Hkv, r·R, D]
            *(k[:, :, : part.stop], v[:, :, : part.stop]),
            attn_mask=mask.unflatten(1, (k.shape[1], -1)).flatten(2, 3),  # stacked likewise
            scale=scale,
        )
        out[:, :, block] = unstack_heads(found, heads)
        pairs += mask.sum()
    return out, pairs.item() / (batch * heads * causal_pairs(n))


def attend_densely(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    v: Float[Tensor, "B Hkv N Dv"],
    scale: float | None = None,
) -> Float[Tensor, "B Hq N Dv"]:
    """Attention to every key up to the query's own, without scores of all pairs in memory."""
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


@contextmanager
def reading(model, method: Method | TriangleMix | None, rows: int = ROWS) -> Iterator[list[float]]:
    """Inside the `with`, every layer of `model` attends to what `method` keeps and no more.

    Args:
        model: a transformers model of plain causal attention, called with whole prompts: no
            padding, and no cache that holds earlier tokens.
        method: in every layer, or what says which method stands in which layer; None keeps all.
        rows: as in `attend`.

    Yields:
        A list that gets the density of each layer of each call.
    """

    def in_layer(module, q, k, v, _attention_mask, scale, _kwargs):
        with torch.no_grad():
            if method is None:
                return attend_densely(q, k, v, scale), 1.0
            selection = method_in(method, module).select(q, k, scale)
            return attend(q, k, v, selection, scale, rows)

    with in_every_layer(model, in_layer) as densities:
        yield densities
