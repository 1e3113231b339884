"""The truth: the method over the full N x N matrix in float64, straight from its definitions.

`cases` draws what it is asked about.
"""

import math
from dataclasses import replace
from fractions import Fraction

import torch
from hypothesis import strategies as st

from anchor_ref import AnchorConfig
from anchor_ref.regions import groups

TAILS = (0, 0, 1, 5, 30, 200)  # often none


@st.composite
def cases(draw, integers=False, dtypes=(torch.float32,), means=(0.0,), tails=(0,)):
    """(q, k, v, config, scale): ragged N, r = 1, 2, 4, 7, chunks, ties, large scores and means."""
    block, step = draw(st.sampled_from([(4, 1), (4, 3), (8, 2), (16, 2), (5, 3)]))
    n_k = draw(st.integers(1, 90))
    n_q = draw(st.one_of(st.just(n_k), st.integers(1, n_k)))
    repeat, kv_heads = draw(st.sampled_from([(1, 2), (2, 2), (4, 1), (7, 1)]))
    config = AnchorConfig(
        block_size=block,
        step=step,
        theta=draw(st.sampled_from([math.inf, -math.inf, 0.0, -1.0, 0.5, 2.0, 12.0])),
        init_blocks=draw(st.integers(0, 2)),
        window_blocks=draw(st.integers(0, 2)),
        tail=draw(st.sampled_from(tails)),
    )
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, dim = draw(st.integers(1, 2)), draw(st.sampled_from([4, 16]))
    if integers:
        # Small integers and a power of two: float32 is exact, ties are real ties. Blocks of 4, 8
        # and 16 queries are averaged exactly; a ragged one is not, so lengths are whole blocks.
        block = 4 if block == 5 else block
        config = replace(config, block_size=block)
        n_q = n_k = -(-n_k // block) * block

        def values(heads, n):
            return torch.randint(-2, 3, (batch, heads, n, dim), generator=random).float()
    else:
        strength = draw(st.sampled_from([0.3, 1.0, 8.0]))
        mean, dtype = draw(st.sampled_from(means)), draw(st.sampled_from(dtypes))

        def values(heads, n):
            noise = torch.randn(batch, heads, n, dim, generator=random)
            return (strength * (mean + noise)).to(dtype)

    scale = draw(st.sampled_from([None, 0.25, 0.5]))
    q, k, v = values(kv_heads * repeat, n_q), values(kv_heads, n_k), values(kv_heads, n_k)
    return q, k, v, config, scale


def score_slack(q, k, scale, dtype):
    """How far rounding in `dtype` may move a difference: four sums of D products meet in one.

    Each rounds by at most D roundings of the sum of their sizes.
    """
    largest = (q.abs().amax() * k.abs().amax()).item() * q.shape[-1] * (scale or 1)
    return 4 * q.shape[-1] * torch.finfo(dtype).eps / 2 * largest


def brute_masks(q, k, config, scale):
    """Float64: scores, always-kept pairs, candidates, and each block's difference per key."""
    repeat = q.shape[1] // k.shape[1]
    q, k = q.double(), k.double().repeat_interleave(repeat, 1)
    scores = scale * (q @ k.mT)
    n_q, n_k, b, size = q.shape[2], k.shape[2], config.block_size, config.group_size
    i = torch.arange(n_q)[:, None] + n_k - n_q
    j = torch.arange(n_k)[None]
    causal = j <= i
    initial = j < config.init_blocks * b
    window_start = (i // size * size - config.window_blocks * b).clamp(min=0)
    always = (initial | (j >= window_start)) & causal
    candidates = ~initial & (j < window_start)
    anchor = scores.masked_fill(~always, -torch.inf).amax(-1)
    difference = torch.empty_like(scores)  # of the row's own block
    for block in i.flatten().unique() // b:
        rows = (i.flatten() // b) == block
        pooled = scale * (q[:, :, rows].mean(2, keepdim=True) @ k.mT)
        difference[:, :, rows] = anchor[:, :, rows].mean(-1)[..., None, None] - pooled
    return scores, causal, always, candidates, difference


def own_differences(scores, always, config):
    """What each evenly spaced row that is asked says of each key by itself; +inf of other rows.

    The middle of part r of R is (r + 1/2) / R of the way through a block.
    """
    n_q, n_k = scores.shape[2:]
    anchor = scores.masked_fill(~always, -torch.inf).amax(-1, keepdim=True)
    found = torch.full_like(scores, torch.inf)
    block = (torch.arange(n_q) + n_k - n_q) // config.block_size
    for b in block.unique() if config.outliers else ():
        rows = (block == b).nonzero().flatten().tolist()
        parts = min(config.outliers, len(rows))
        for part in range(parts):
            row = rows[math.floor(Fraction(2 * part + 1, 2 * parts) * len(rows))]
            found[:, :, row] = (anchor - scores)[:, :, row]
    return found


def brute_force(q, k, v, config, scale=None):
    """Float64 output, kept pairs `[B, Hq, Nq, Nk]`, and how near the closest call was."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores, causal, always, candidates, difference = brute_masks(q, k, config, scale)
    own = own_differences(scores, always, config)
    passes = (difference <= config.theta) | ((own <= config.row_theta) & own.isfinite())
    kept = always.expand_as(scores).clone()
    group = (torch.arange(q.shape[2]) + k.shape[2] - q.shape[2]) // config.group_size
    for g in group.unique():
        rows = group == g
        chosen = passes[:, :, rows].any(2, keepdim=True)
        kept[:, :, rows] |= chosen & candidates[rows]
    kept |= causal & tail_rows(q, config)
    near = (difference - config.theta).abs()
    near = near.minimum((own - config.row_theta).abs().nan_to_num(nan=math.inf))
    closest = near[candidates.expand_as(scores)]
    margin = closest.min().item() if closest.numel() else math.inf
    values = v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)
    out = scores.masked_fill(~kept, -torch.inf).softmax(-1) @ values
    return out, kept, margin


def tail_rows(q, config):
    """Which rows, as a column `[Nq, 1]`, see every key up to their own."""
    return torch.arange(q.shape[2])[:, None] >= q.shape[2] - config.tail


def kept_pairs(stripes, config, n_q, n_k):
    """What the reference keeps, as a mask `[B, Hq, Nq, Nk]`."""
    chosen = stripes.to_mask(n_k)
    kept = torch.zeros(*chosen.shape[:2], n_q, n_k, dtype=torch.bool)
    for g, group in enumerate(groups(config, n_q, n_k)):
        for row in group.rows:
            kept[:, :, row] = chosen[:, :, g]
            kept[:, :, row, group.init.start : group.init.stop] = True
            kept[:, :, row, group.window_start : row + group.shift + 1] = True
            if row >= n_q - config.tail:
                kept[:, :, row, : row + group.shift + 1] = True
    return kept
