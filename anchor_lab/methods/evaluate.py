"""What a selection keeps, costs and loses, in the terms of `anchor_ref.measure`.

One dense and one masked softmax over the same scores, `ROWS` query rows at a time; only the mask
differs from method to method.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.methods.method import check_prompt
from anchor_lab.methods.selection import Selection, causal_mask
from anchor_ref.heads import causal_scores, product, stack_heads, unstack_heads
from anchor_ref.inputs import check_compute_dtype, check_inputs, check_type
from anchor_ref.measure import Evaluation, kept_mass, output_error
from anchor_ref.regions import causal_pairs


def evaluate(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    v: Float[Tensor, "B Hkv N D"],
    selection: Selection,
    scale: float | None = None,
) -> Evaluation:
    """Attend to the kept keys alone, to all keys, and compare.

    recall_i = Σ_{j kept} softmax_i(s)_j,   out_i = softmax over kept j of s_ij, times v_j

    Args:
        q, k, v, scale: as in `anchor_attention`, with as many queries as keys, and those that the
            selection was made from.
        selection: what any method's `select` returned.

    Returns:
        An `Evaluation`, computed in float32, or float64 for float64 inputs. Costs as much time as
        dense attention twice; memory grows linearly in N.

    Raises:
        TypeError: see `inputs.check_inputs`; or `selection` is no `Selection`.
        ValueError: see `method.check_prompt`; or the selection does not fit q, keeps a later
            key, or leaves a row without any.
    """
    check_type("selection", selection, Selection)
    return evaluate_all(q, k, v, [selection], scale)[0]


def evaluate_all(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    v: Float[Tensor, "B Hkv N D"],
    selections: Sequence[Selection],
    scale: float | None = None,
) -> list[Evaluation]:
    """`evaluate` of several selections, for which dense attention is computed once.

    Args:
        q, k, v, scale: as in `evaluate`.
        selections: what any methods returned, each for this q and k.

    Raises:
        TypeError, ValueError: as in `evaluate`.
    """
    check_inputs(q, k, v, scale)
    scale = check_prompt(q, k, scale)
    for selection in selections:
        if selection.shape != tuple(q.shape[:3]):
            raise ValueError(f"selection must be of {tuple(q.shape[:3])}, got {selection.shape}")
    dtype = check_compute_dtype(None, q.dtype)
    k, v = k.to(dtype), v.to(dtype)
    dense = torch.empty_like(q, dtype=dtype)
    outs = [torch.empty_like(q) for _ in selections]
    recalls = [torch.empty(q.shape[:3], dtype=dtype, device=q.device) for _ in selections]
    kept = [torch.zeros(q.shape[:2], dtype=torch.float64, device=q.device) for _ in selections]
    for parts in zip(*selections, strict=True):
        rows = parts[0][0]
        block = slice(rows.start, rows.stop)
        values = v[:, :, : rows.stop]
        scores = causal_scores(q[:, :, block].to(dtype), k[:, :, : rows.stop], scale)
        weights = scores.softmax(-1)
        dense[:, :, block] = _weighted_sum(weights, values)
        for (_, mask), out, recall, pairs in zip(parts, outs, recalls, kept, strict=True):
            _check_mask(rows, mask)
            recall[:, :, block] = kept_mass(weights, mask)
            # A softmax of its own: kept weights may all underflow beside a larger dropped one.
            alone = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            out[:, :, block] = _weighted_sum(alone, values).to(q.dtype)
            pairs += mask.sum((-2, -1))
    causal = causal_pairs(q.shape[2])
    return [
        Evaluation(
            recall=recall,
            density=pairs / causal,
            executed_density=(pairs if selection.executed is None else selection.executed)
            / causal,
            identification_cost=torch.full_like(pairs, selection.scored / causal),
            output_error=output_error(out, dense),
        )
        for selection, out, recall, pairs in zip(selections, outs, recalls, kept, strict=True)
    ]


def _weighted_sum(weights: Tensor, v: Tensor) -> Tensor:
    """`[B, Hq, R, M]` weights times `[B, Hkv, M, D]` values."""
    return unstack_heads(product(stack_heads(weights, v.shape[1]), v), weights.shape[1])


def _check_mask(rows: range, mask: Tensor) -> None:
    if bool((mask & ~causal_mask(rows, mask.device)).any()):
        raise ValueError(f"selection must keep no later key, but does in rows {rows}")
    if not bool(mask.any(-1).all()):
        raise ValueError(f"selection must keep a key of every row, but does not in rows {rows}")
