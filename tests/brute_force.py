"""The truth: the method over the full N x N matrix in float64, straight from its definitions."""

import math

import torch

from anchor_ref.regions import groups


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


def brute_force(q, k, v, config, scale=None):
    """Float64 output, kept pairs `[B, Hq, Nq, Nk]`, and how near the closest call was."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores, _, always, candidates, difference = brute_masks(q, k, config, scale)
    kept = always.expand_as(scores).clone()
    group = (torch.arange(q.shape[2]) + k.shape[2] - q.shape[2]) // config.group_size
    for g in group.unique():
        rows = group == g
        chosen = (difference[:, :, rows] <= config.theta).any(2, keepdim=True)
        kept[:, :, rows] |= chosen & candidates[rows]
    closest = (difference - config.theta).abs()[candidates.expand_as(scores)]
    margin = closest.min().item() if closest.numel() else math.inf
    values = v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)
    out = scores.masked_fill(~kept, -torch.inf).softmax(-1) @ values
    return out, kept, margin


def kept_pairs(stripes, config, n_q, n_k):
    """What the reference keeps, as a mask `[B, Hq, Nq, Nk]`."""
    chosen = stripes.to_mask(n_k)
    kept = torch.zeros(*chosen.shape[:2], n_q, n_k, dtype=torch.bool)
    for g, group in enumerate(groups(config, n_q, n_k)):
        for row in group.rows:
            kept[:, :, row] = chosen[:, :, g]
            kept[:, :, row, group.init.start : group.init.stop] = True
            kept[:, :, row, group.window_start : row + group.shift + 1] = True
    return kept
