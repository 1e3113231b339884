"""Inputs that break AnchorAttention, found by search, and which of its approximations broke."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_lab.methods.selection import token_blocks
from anchor_ref.anchor import compute_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import causal_scores
from anchor_ref.inputs import check_inputs
from anchor_ref.measure import density, identification_cost, recall, rows_beyond
from anchor_ref.regions import Group, groups
from anchor_ref.stripes import block_means, identify_stripes, passes_difference_test

CAUSES = {
    "threshold": "the row's own test drops the key too: light alone, heavy with others",
    "mean query": "the row's own query would keep it, the mean query does not",
    "mean anchor": "the row's own anchor would keep it, the mean anchor does not",
    "both means": "either alone drops it, or only the two together do",
}
WIDTHS = 4.0, 0.25  # of the soft threshold at the first and the last step, natural-log units


@dataclass(frozen=True, eq=False)
class Failure:
    """What a search found.

    Attributes:
        q, k: the inputs of least mean recall that it met, float32.
        recall: mean over rows and heads at each step, `[steps]`; it may rise on the way.
    """

    q: Float[Tensor, "B Hq N D"]
    k: Float[Tensor, "B Hkv N D"]
    recall: Float[Tensor, "steps"]


def search_failure(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    config: AnchorConfig,
    scale: float | None = None,
    *,
    reach: float,
    steps: int = 150,
    equal_queries: bool = False,
    seed: int = 0,
) -> Failure:
    """Move each query and key by at most `reach` times its length to where recall is least.

    Projected gradient descent (Adam) on the mean recall, with a key dropped by the share

        sigmoid((min_t ā_t − s̄_tj − θ) / w)   instead of   [min_t ā_t − s̄_tj > θ]

    and w falling from 4 to 0.25. The best step is chosen by the hard test.

    Args:
        q, k, config, scale: as in `identify_stripes`. All pairs are scored: small N only.
        reach: above 0.
        steps: of the descent, at least 1.
        equal_queries: give the queries of a block their mean, so that pooling them loses nothing.
        seed: of the random move of a tenth of `reach` from which the descent begins.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`; or `reach` or `steps` is out of range.
    """
    scale = check_inputs(q, k, None, scale)
    if not 0 < reach < math.inf:
        raise ValueError(f"reach must be a finite number above 0, got {reach}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
    starts = q.float(), k.float()
    lengths = [x.norm(dim=-1, keepdim=True).clamp(min=1e-30) for x in starts]
    # In units of its vector's length, so that one step size serves all.
    moves = [
        (redirect(x, seed + i) / n * reach / 10).requires_grad_()
        for i, (x, n) in enumerate(zip(starts, lengths, strict=True))
    ]
    optimiser = torch.optim.Adam(moves, lr=reach / 10 / math.sqrt(q.shape[3]))
    least, history = math.inf, []
    for step in range(steps):
        q_now, k_now = (x + n * u for x, n, u in zip(starts, lengths, moves, strict=True))
        if equal_queries:
            q_now = _block_means(q_now, config)
        width = WIDTHS[0] * (WIDTHS[1] / WIDTHS[0]) ** (step / max(steps - 1, 1))
        soft, hard = _mean_recall(q_now, k_now, config, scale, width)
        history.append(hard)
        if hard < least:
            least, found = hard, (q_now.detach(), k_now.detach())
        optimiser.zero_grad()
        soft.backward()
        optimiser.step()
        with torch.no_grad():
            for u in moves:
                u /= (u.norm(dim=-1, keepdim=True) / reach).clamp(min=1)
    return Failure(*found, torch.tensor(history))


def redirect(x: Float[Tensor, "B H N D"], seed: int) -> Float[Tensor, "B H N D"]:
    """Vectors of the lengths of x's, in random directions: what a search is to be held against."""
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randn(x.shape, generator=random, dtype=torch.float64)
    return x.norm(dim=-1, keepdim=True) * (drawn / drawn.norm(dim=-1, keepdim=True)).to(x)


def blame(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    config: AnchorConfig,
    scale: float | None = None,
) -> dict[str, Float[Tensor, "B Hq N"]]:
    """The mass that each row loses, by what lost it; small N only.

    Key j is dropped for row i of block t although ...

        threshold      a_i − s_ij > θ                      ... nothing: so says its own test
        mean query     a_i − s_ij <= θ < a_i − s̄_tj        and ā_t − s_ij <= θ
        mean anchor    a_i − s_ij <= θ < ā_t − s_ij        and a_i − s̄_tj <= θ
        both means     every other key that a_i − s_ij <= θ would keep

    Args:
        q, k, config, scale: as in `identify_stripes`.

    Returns:
        For each of `CAUSES` the dense mass lost; their sum is 1 − recall.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`.
    """
    scale = check_inputs(q, k, None, scale)
    lost = {cause: torch.zeros(q.shape[:3], device=q.device) for cause in CAUSES}
    for group in groups(config, q.shape[2], k.shape[2]):
        weights, scores, anchor = _of_group(q.float(), k.float(), group, scale)
        mean_scores, mean_anchor = (_block_means(x, config) for x in (scores, anchor))
        own, by_query, by_anchor, by_both = (
            ~passes_difference_test(difference, config.theta)
            for difference in (
                anchor - scores,
                anchor - mean_scores,
                mean_anchor - scores,
                mean_anchor - mean_scores,
            )
        )  # [B, Hq, S, C]
        dropped = by_both.all(2, keepdim=True)
        reasons = (own, by_query & ~by_anchor, by_anchor & ~by_query, by_query == by_anchor)
        for cause, reason in zip(CAUSES, reasons, strict=True):
            blamed = dropped & (reason if reason is own else reason & ~own)
            rows = lost[cause][:, :, group.rows.start : group.rows.stop]
            rows += (weights * blamed).sum(-1)
    return lost


@dataclass(frozen=True)
class Tried:
    """What a configuration does for one head, and what for the rows that matter.

    Attributes:
        asked: mean recall of these rows.
        beyond: mean recall of all rows beyond the first group.
        cost: share of the causal pairs that are kept, and half of the share scored to choose.
    """

    asked: float
    beyond: float
    cost: float


def try_config(
    q: Float[Tensor, "1 1 N D"],
    k: Float[Tensor, "1 1 N D"],
    config: AnchorConfig,
    scale: float,
    rows: Int[Tensor, "rows"],
) -> Tried:
    """One head with one configuration, on its own dense attention.

    Args:
        q, k, config, scale: as in `identify_stripes`.
        rows: those that must not lose what they look for.
    """
    n = q.shape[2]
    plan = identify_stripes(q, k, compute_anchor(q, k, k, config, scale).max, config, scale)
    kept = recall(q, k, plan, config, scale)[0, 0]
    cost = density(plan, config, n, n).item() + identification_cost(config, n, n)
    beyond = rows_beyond(config, n, n)
    return Tried(kept[rows].mean().item(), kept[beyond].mean().item(), float(cost))


def _mean_recall(
    q: Tensor, k: Tensor, config: AnchorConfig, scale: float, width: float
) -> tuple[Tensor, float]:
    """Mean recall under the soft test, differentiable, and under the hard one."""
    soft, hard = q.new_zeros(()), 0.0
    for group in groups(config, q.shape[2], k.shape[2]):
        weights, scores, anchor = _of_group(q, k, group, scale)
        difference = _block_means(anchor - scores, config)
        excess = difference.amin(2, keepdim=True) - config.theta  # [B, Hq, 1, C]
        soft = soft + (weights * (excess / width).sigmoid()).sum()
        hard += float((weights.detach() * (excess > 0)).sum())
    rows = q.shape[:3].numel()
    return 1 - soft / rows, 1 - hard / rows


def _of_group(q: Tensor, k: Tensor, group: Group, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and scores of the candidates, `[B, Hq, S, C]`, and row anchors, `[B, Hq, S, 1]`."""
    rows = slice(group.rows.start, group.rows.stop)
    candidates = slice(group.candidates.start, group.candidates.stop)
    scores = causal_scores(q[:, :, rows], k[:, :, : group.rows.stop], scale)
    others = [scores[..., : candidates.start], scores[..., candidates.stop :]]
    anchor = torch.cat(others, -1).amax(-1, keepdim=True)
    return scores.softmax(-1)[..., candidates], scores[..., candidates], anchor


def _block_means(x: Tensor, config: AnchorConfig) -> Tensor:
    """Each row replaced by the mean of its block; rows are counted from a block's start.

    The mean of the queries' scores is the score of the mean query.
    """
    rows, size = x.shape[2], config.block_size
    means = block_means(x, token_blocks(rows, size), x.dtype)
    return means.repeat_interleave(size, 2)[:, :, :rows]
