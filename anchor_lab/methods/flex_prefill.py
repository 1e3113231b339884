"""FlexPrefill (arXiv 2502.20766): each head takes vertical-slash or block scores, with a budget.

Blocks of b = 128 tokens, T of them; A = softmax of the scores of the last b queries.

    1. column and diagonal means of A over its rows; p = the column means summed over key blocks
    2. p̂ = softmax_u(scale · <mean of the last b queries, mean key of block u>)
    3. d = √JSD(p, p̂), natural logarithm
    4. d >= τ, a vertical-slash head: ⌊(c + 1) / b⌋ + 1 key blocks, with c the most columns that
       hold no more than γ together, the largest first; diagonals likewise; both clamped to the
       budget
    5. d < τ, a block head: both at the minimum budget, and of the whole T x T map of
       softmax_u(scale · <mean query of block t, mean key of block u>), the largest first, those
       that hold no more than γ · T together
    6. block (t, u) is kept when key block u, block diagonal t − u or its own score is; key block 0
       and block diagonal 0 always are, within the budget

γ = 0.95, τ = 0.1 and a minimum budget of 1024 tokens as in the public code, without a maximum. Its
diagonals are summed in blocks from the farthest one, as here: the nearest block is the short one
when N is ragged. Means are over the tokens there are, also of a ragged block. The public code runs
prompts of at most 2 blocks dense; here they are chosen from like all others.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anchor_lab.methods.method import Method, check_integer, integer, number
from anchor_lab.methods.ranking import by_rank, first_and_largest
from anchor_lab.methods.selection import Selection, block_selection, block_sums, token_blocks
from anchor_lab.methods.vertical_slash import line_masses
from anchor_ref.heads import causal_scores
from anchor_ref.inputs import check_compute_dtype
from anchor_ref.regions import causal_pairs
from anchor_ref.stripes import block_means


@dataclass(frozen=True)
class FlexPrefill(Method):
    """Key blocks, block diagonals and single blocks, as many as reach a share of the mass.

    Of equal scores the earlier block and the nearer diagonal is kept. Where NaN is among the
    scores of the last rows, the minimum budget is kept.

    Args:
        gamma: γ, share of the mass, in [0, 1].
        tau: τ, distance up to which a head is a block head, in [0, 1]; 0 makes none one.
        min_budget: tokens, at least 1.
        max_budget: tokens, at least `min_budget`; None for as many as there are.
        block_size: b, at least 1.
    """

    claim: ClassVar[str] = (
        "Faster and more accurate than earlier methods; its abstract names no number, model or "
        "GPU (arXiv 2502.20766)."
    )
    gamma: float = number(0.95, 0.0, 1.0)
    tau: float = number(0.1, 0.0, 1.0)
    min_budget: int = integer(1024, least=1)
    max_budget: int | None = integer(None, least=1, optional=True)
    block_size: int = integer(128, least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.max_budget is not None:
            check_integer("max_budget", self.max_budget, self.min_budget)

    @classmethod
    def sweep(cls) -> list["FlexPrefill"]:
        """γ rises, with a minimum of one block at first; each keeps what the one before keeps."""
        few = [cls(gamma, min_budget=128) for gamma in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)]
        return [*few, cls(), cls(0.99)]

    @classmethod
    def small(cls) -> "FlexPrefill":
        return cls(0.3, min_budget=4, block_size=4)

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        n, b = q.shape[2], self.block_size
        q, k = (x.to(check_compute_dtype(None, q.dtype)) for x in (q, k))
        column, diagonal = (mass / min(b, n) for mass in line_masses(q, k, scale, b))
        column_blocks = block_sums(column, b)
        diagonal_blocks = block_sums(diagonal.flip(-1), b).flip(-1)
        blocks = token_blocks(n, b)
        q_means, k_means = (block_means(x, blocks, x.dtype) for x in (q, k))
        last_mean = q[:, :, -b:].mean(2, keepdim=True)
        guess = causal_scores(last_mean, k_means, scale).softmax(-1).squeeze(2)
        block_head = _distance(column_blocks, guess) < self.tau  # [B, Hq]
        columns = first_and_largest(column_blocks, 1, self._budget(column, block_head))
        diagonals = first_and_largest(diagonal_blocks, 1, self._budget(diagonal, block_head))
        size = k_means.shape[2]
        t = torch.arange(size, device=q.device)
        lines = columns[..., None, :] | diagonals[..., (t[:, None] - t).clamp(min=0)]
        scores = causal_scores(q_means, k_means, scale).softmax(-1).flatten(2)
        single = by_rank(scores, lambda ranked: ranked.cumsum(-1) <= self.gamma * size)
        kept = lines | (single.unflatten(-1, (size, size)) & block_head[..., None, None])
        # Pooled scores count as one pair each, the map's for block heads alone: a mean over heads.
        pooled = size + block_head.double().mean().item() * causal_pairs(size)
        return block_selection(kept, n, b, b, (causal_pairs(min(b, n), n) + pooled) / 2)

    def _budget(self, mass: Tensor, block_head: Tensor) -> Tensor:
        """Blocks of each head, `[B, Hq]`."""
        ranked = mass.sort(dim=-1, descending=True).values
        blocks = ((ranked.cumsum(-1) <= self.gamma).sum(-1) + 1) // self.block_size + 1
        least = -(-self.min_budget // self.block_size)
        if self.max_budget is not None:
            blocks = blocks.clamp(max=-(-self.max_budget // self.block_size))
        return blocks.clamp(min=least).masked_fill(block_head, least)


def _distance(p: Tensor, r: Tensor) -> Tensor:
    """Square root of the Jensen–Shannon divergence; 0 · log 0 = 0."""
    middle = (p + r) / 2
    parts = (torch.xlogy(x, x) - torch.xlogy(x, middle) for x in (p, r))
    return (sum(part.sum(-1) for part in parts) / 2).clamp(min=0).sqrt()
