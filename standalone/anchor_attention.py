"""AnchorAttention (arXiv 2505.23520) in one file: causal prefill in three stages, and a tail.

Needs PyTorch alone. It is written to be read and copied, not to be fast.

For query i of a group of `block * step` queries, with scores s_ij = scale * <q_i, k_j>:

    initial region   the first `init_blocks` blocks of keys
    window           from `window_blocks` blocks before the group up to key i
    candidates       the keys between the two; those that are kept are called stripes
"""

import torch


def anchor_attention(
    q, k, v, theta=12.0, tail=0, *, block=128, step=16, init_blocks=1, window_blocks=0, scale=None
):
    """Causal attention over initial region, window and stripes.

    Args:
        q: queries, [B, Hq, N, D], floating point; any N of at least 1.
        k, v: keys and values, [B, Hkv, N, D]; Hq a multiple of Hkv (grouped-query attention).
        theta: keep a key that scores at most this far below the anchor, natural-log units.
        tail: the last queries, which see every key: they ask the prompt's question.
        block, step: queries per block, blocks per group.
        init_blocks, window_blocks: sizes of the two regions that are always computed.
        scale: factor of q·k; None means 1/sqrt(D).

    Returns:
        Output [B, Hq, N, D] in q's dtype, computed in float32 or better; and for each group the
        keys that it kept among its candidates, a mask [B, Hq, N].

    Raises:
        ValueError: theta is NaN.
    """
    if theta != theta:
        raise ValueError("theta must be a number, got nan")
    n, kv_heads, group_size = q.shape[2], k.shape[1], block * step
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    given, dtype = q.dtype, torch.promote_types(q.dtype, torch.float32)
    # Query head h reads kv head h // r. The axis of r heads is 1 for keys: nothing is copied.
    q = q.to(dtype).unflatten(1, (kv_heads, -1))  # [B, Hkv, r, N, D]
    k, v = k.to(dtype).unsqueeze(2), v.to(dtype).unsqueeze(2)  # [B, Hkv, 1, N, D]
    outputs, selections = [], []
    for start in range(0, n, group_size):
        stop = min(start + group_size, n)
        window_start = max(0, start - window_blocks * block)
        init_stop = min(init_blocks * block, window_start)
        queries = q[..., start:stop, :]

        # Stage 1, the anchor: attention over initial region and window, left unnormalised.
        near = [*range(init_stop), *range(window_start, stop)]
        scores = scale * (queries @ k[..., near, :].mT)  # [B, Hkv, r, S, near]
        later = torch.tensor(near) > torch.arange(start, stop)[:, None]
        state = softmax_state(scores.masked_fill(later.to(q.device), -torch.inf), v[..., near, :])
        anchor = state[0]  # [B, Hkv, r, S]: the largest score that each query has met

        # Stage 2, the difference test: which candidates come within θ of the anchor, for the
        # mean query of at least one block? NaN counts as kept.
        candidates = slice(init_stop, window_start)
        mean_query = block_means(queries, block, -2)  # [B, Hkv, r, T, D]
        mean_anchor = block_means(anchor, block, -1)  # [B, Hkv, r, T]
        pooled = scale * (mean_query @ k[..., candidates, :].mT)  # [B, Hkv, r, T, C]
        kept = torch.zeros(*q.shape[:3], n, dtype=torch.bool, device=q.device)
        too_low = mean_anchor.unsqueeze(-1) - pooled > theta
        kept[..., candidates] = (~too_low).any(-2)
        selections.append(kept.flatten(1, 2))

        # Stage 3, the sparse pass: gather the stripes and continue the same softmax. All of them
        # precede the whole group, so no mask is needed. Each head has its own list.
        out = torch.empty_like(queries)
        dense_from = max(start, min(stop, n - tail)) - start  # first row of the tail
        for head in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
            b, h, r = head
            begun = [x[b, h, r] for x in state]
            for rows, keys in (
                (slice(0, dense_from), kept[b, h, r].nonzero().flatten()),
                (slice(dense_from, None), torch.arange(n, device=q.device)[candidates]),
            ):
                found = [x[rows] for x in begun]
                if len(keys) and len(found[0]):
                    scores = scale * (queries[b, h, r, rows] @ k[b, h, 0, keys].mT)
                    found = merge(found, softmax_state(scores, v[b, h, 0, keys]))
                out[b, h, r, rows] = found[2] / found[1].unsqueeze(-1)
        outputs.append(out.flatten(1, 2))
    return torch.cat(outputs, 2).to(given), selections


def block_means(x, block, dim):
    """Means over blocks of queries along `dim`; a ragged last block over what it has."""
    return torch.stack([part.mean(dim) for part in x.split(block, dim)], 3)


def softmax_state(scores, v):
    """(largest score m, l = Σ exp(s − m), Σ exp(s − m) v) over the last axis of `scores`."""
    largest = scores.amax(-1)
    weights = (scores - largest.unsqueeze(-1)).exp()
    return largest, weights.sum(-1), weights @ v


def merge(a, b):
    """The state of the union of two disjoint sets of keys, exactly."""
    largest = torch.maximum(a[0], b[0])
    by_a, by_b = (a[0] - largest).exp(), (b[0] - largest).exp()
    values = by_a.unsqueeze(-1) * a[2] + by_b.unsqueeze(-1) * b[2]
    return largest, by_a * a[1] + by_b * b[1], values


if __name__ == "__main__":
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 5000, 64) for heads in (4, 2, 2))
    q += 0.5
    k[:, :, ::97] += 1.5  # keys that every query likes: the stripes to be found
    dense = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )
    candidates = 4 * (2048 - 128 + 4096 - 128)  # of four heads, in the second and third group
    for theta in (-torch.inf, 6.0, 7.0, torch.inf):
        out, kept = anchor_attention(q, k, v, theta)
        share = torch.stack(kept).sum() / candidates
        error = (out - dense).norm() / dense.norm()
        print(f"θ = {theta:<4g}  stripes {share:6.1%}  error against dense {error:.1e}")
