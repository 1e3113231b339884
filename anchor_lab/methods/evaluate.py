"""What a selection keeps, costs and loses, in the terms of `anchor_ref.measure`.

One dense and one masked softmax over the same scores, `ROWS` query rows at a time; only the mask
differs from method to method.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.methods.corrections import Correction
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
    correction: Correction | None = None,
) -> Evaluation:
    """Attend to the kept keys alone, to all keys, and compare.

    recall_i = Σ_{j kept} softmax_i(s)_j,   out_i = softmax over kept j of s_ij, times v_j

    Args:
        q, k, v, scale: as in `anchor_attention`, with as many queries as keys, and those that the
            selection was made from.
        selection: what any method's `select` returned.
        correction: what stands for the dropped keys; None for nothing. What it multiplies adds to
            the executed pairs. The mean correction changes neither recall nor density, the delta
            correction's dense rows count in both.

    Returns:
        An `Evaluation`, computed in float32, or float64 for float64 inputs. Costs as much time as
        dense attention twice; memory grows linearly in N.

    Raises:
        TypeError: see `inputs.check_inputs`; or `selection` is no `Selection`.
        ValueError: see `method.check_prompt`; or the selection does not fit q, keeps a later
            key, or leaves a row without any.
    """
    check_type("selection", selection, Selection)
    return evaluate_all(q, k, v, [selection], scale, correction)[0]


def evaluate_all(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    v: Float[Tensor, "B Hkv N D"],
    selections: Sequence[Selection],
    scale: float | None = None,
    correction: Correction | None = None,
) -> list[Evaluation]:
    """`evaluate` of several selections, for which dense attention is computed once.

    Args:
        q, k, v, scale, correction: as in `evaluate`.
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
    correction = correction or Correction()
    dense = torch.empty_like(q, dtype=dtype)
    judged = [_Judged(q, selection, correction, dtype) for selection in selections]
    for parts in zip(*selections, strict=True):
        rows = parts[0][0]
        block = slice(rows.start, rows.stop)
        values = v[:, :, : rows.stop]
        scores = causal_scores(q[:, :, block].to(dtype), k[:, :, : rows.stop], scale)
        weights = scores.softmax(-1)
        dense[:, :, block] = weighted_sum(weights, values)
        for (_, mask), one in zip(parts, judged, strict=True):
            one.add(rows, mask, scores, weights, values)
    return [one.evaluation(dense) for one in judged]


class _Judged:
    """What one selection has kept, multiplied and put out so far."""

    def __init__(self, q: Tensor, selection: Selection, correction: Correction, dtype):
        self.selection, self.correction, self.dtype = selection, correction, q.dtype
        self.dense_rows = correction.dense_rows(q.shape[2]).to(q.device)
        self.out = torch.empty_like(q, dtype=dtype)
        self.recall = torch.empty(q.shape[:3], dtype=dtype, device=q.device)
        self.exact = torch.empty(q.shape[:3], dtype=torch.bool, device=q.device)
        self.kept, self.sparse, self.added = torch.zeros(
            3, *q.shape[:2], dtype=torch.float64, device=q.device
        )

    def add(self, rows: range, mask: Tensor, scores: Tensor, weights: Tensor, values: Tensor):
        """Take some rows: their mask, scores, dense weights, and the values up to the last."""
        _check_mask(rows, mask)
        block, causal = slice(rows.start, rows.stop), causal_mask(rows, mask.device)
        densely = self.dense_rows[block, None] & causal
        found = mask | densely
        self.recall[:, :, block] = kept_mass(weights, found)
        self.exact[:, :, block] = (mask | ~causal).all(-1)
        # A softmax of its own: kept weights may all underflow beside a larger dropped one.
        alone = self.correction.weights(scores, mask)
        self.out[:, :, block] = weighted_sum(alone, values)
        self.kept += found.sum((-2, -1))
        self.sparse += mask.sum((-2, -1))
        self.added += self.correction.pairs(mask, causal) + densely.sum()

    def evaluation(self, dense: Tensor) -> Evaluation:
        """All of it, beside the output of dense attention."""
        causal = causal_pairs(self.selection.shape[2])
        executed = self.selection.executed
        executed = (self.sparse if executed is None else executed) + self.added
        out = self.correction.correct(self.out, dense, self.exact).to(self.dtype)
        return Evaluation(
            recall=self.recall,
            density=self.kept / causal,
            executed_density=executed / causal,
            identification_cost=torch.full_like(self.kept, self.selection.scored / causal),
            output_error=output_error(out, dense),
        )


def weighted_sum(weights: Tensor, v: Tensor) -> Tensor:
    """`[B, Hq, R, M]` weights times `[B, Hkv, M, D]` values."""
    return unstack_heads(product(stack_heads(weights, v.shape[1]), v), weights.shape[1])


def _check_mask(rows: range, mask: Tensor) -> None:
    if bool((mask & ~causal_mask(rows, mask.device)).any()):
        raise ValueError(f"selection must keep no later key, but does in rows {rows}")
    if not bool(mask.any(-1).all()):
        raise ValueError(f"selection must keep a key of every row, but does not in rows {rows}")
