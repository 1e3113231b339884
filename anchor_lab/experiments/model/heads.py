"""What a head of the bundled model attends to, and how far needles lie from its anchor."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_models.capture import Captured
from anchor_models.interface import replaced_attention
from anchor_ref.anchor import compute_anchor
from anchor_ref.attention import anchor_attention
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import attention_scores, causal_scores
from anchor_ref.measure import density
from anchor_ref.regions import groups
from anchor_ref.stripes import pooled_difference

LOCAL = 128  # keys counted as "window" in the head statistics, the row's own included
RETRIEVES = 0.5  # mass on the needle from which a head is called a retrieval head
POOLED = (128, 32, 16, 8, 1)  # queries in a mean; 128 is the method's default, 1 is no pooling
ROWS = 256  # scored at once


def head_statistics(captured: Captured) -> dict[str, Float[Tensor, "Hq"]]:
    """Where the mass and the maxima of each head lie, float64, in rows of the second half.

    sink: mass on key 0. initial: on the first 128 keys. local: on the last 128 keys, the row's own
    included. max_initial, max_local: share of rows whose largest score lies in the first 128 keys,
    and in the last 128 but not in the first. max_anchor: in the first 128 keys or the group's
    window. entropy: in nats, over log of the number of keys.
    """
    q, k = captured.q, captured.k
    length, size = q.shape[2], AnchorConfig().group_size
    names = ("sink", "initial", "local", "max_initial", "max_local", "max_anchor", "entropy")
    sums = {name: torch.zeros(q.shape[1], dtype=torch.float64, device=q.device) for name in names}
    for start in range(length // 2, length, ROWS):
        rows = torch.arange(start, min(start + ROWS, length), device=q.device)
        stop = start + len(rows)
        scores = causal_scores(q[:, :, start:stop], k[:, :, :stop], captured.scaling)[0]
        mass = scores.softmax(-1)  # [Hq, rows, keys]
        best = scores.argmax(-1)
        near = torch.arange(stop, device=q.device) > rows[:, None] - LOCAL
        in_initial, in_local = best < LOCAL, best > rows - LOCAL
        entropy = -(mass * mass.clamp(min=1e-30).log()).sum(-1) / (rows + 1).log()
        found = (
            mass[..., 0],
            mass[..., :LOCAL].sum(-1),
            (mass * near).sum(-1),
            in_initial,
            in_local & ~in_initial,
            in_initial | (best >= rows // size * size),
            entropy,
        )
        for name, of_rows in zip(names, found, strict=True):
            sums[name] += of_rows.sum(-1)
    return {name: total / (length - length // 2) for name, total in sums.items()}


def scores_at(
    captured: Captured, pairs: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "Hq P"], Float[Tensor, "Hq P"]]:
    """Score and attention mass of each head at P pairs (row, key)."""
    found = [_scores_at(captured, pairs[i : i + ROWS]) for i in range(0, len(pairs), ROWS)]
    scores, mass = zip(*found, strict=True)
    return torch.cat(scores, -1), torch.cat(mass, -1)


def _scores_at(captured: Captured, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    rows, keys = torch.tensor(pairs, device=captured.q.device).T
    scores = attention_scores(captured.q[:, :, rows], captured.k, captured.scaling)[0]
    later = torch.arange(captured.k.shape[2], device=rows.device) > rows[:, None]
    mass = scores.masked_fill(later, -torch.inf).softmax(-1)
    pair = torch.arange(len(rows), device=rows.device)
    return scores[:, pair, keys], mass[:, pair, keys]


def needle_differences(
    captured: Captured, pairs: Sequence[tuple[int, int]]
) -> dict[str, Float[Tensor, "Hq"]]:
    """How far below the anchor the keys of a needle lie, for the row and for means of rows.

    row        a_i − s_ij          of the row i itself and its digit's key j
    pooled_b   min_t ā_t − s̄_tj    of the best mean t of b rows of the last group

    A key is kept when its pooled difference is at most θ. A row difference far below θ beside a
    pooled one above it says that pooling loses the key, not the threshold.

    Args:
        captured: one layer, a batch of one, a multiple of the group size long; float32.
        pairs: (row, key) of every digit; the rows lie in the last group, the keys before it.

    Returns:
        Differences in natural-log units, the largest of all digits, "pooled_b" for each b of
        `POOLED`; "mass": attention on the digit's own key, mean over digits.
    """
    config, n = AnchorConfig(), captured.q.shape[2]
    anchor = compute_anchor(captured.q, captured.k, captured.v, config, captured.scaling).max
    scores, mass = scores_at(captured, pairs)
    rows, keys = torch.tensor(pairs, device=anchor.device).T
    found = {"mass": mass.mean(-1), "row": (anchor[0][:, rows] - scores).amax(-1)}
    for size in POOLED:
        group = groups(pooled_config(size), n, n)[-1]
        pooled = pooled_difference(captured.q, captured.k, anchor, group, captured.scaling)[0]
        found[f"pooled_{size}"] = pooled.amin(1)[:, keys - group.candidates.start].amax(-1)
    return found


def pooled_config(size: int) -> AnchorConfig:
    """Means of `size` queries; groups and initial region as in the published configuration."""
    published = AnchorConfig()
    return AnchorConfig(
        size, published.group_size // size, init_blocks=published.block_size // size
    )


@contextmanager
def anchored(
    model, config: AnchorConfig, heads: Collection[tuple[int, int]] | None = None
) -> Iterator[list[float]]:
    """Inside the `with`, AnchorAttention runs in these (layer, head)s, dense attention elsewhere.

    Args:
        model: a transformers model, called with whole prompts.
        config: of AnchorAttention.
        heads: None means all.

    Yields:
        A list that gets the mean density of the sparse heads of each call.
    """
    densities: list[float] = []

    def make(original):
        def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
            sparse = [
                head
                for head in range(query.shape[1])
                if heads is None or (module.layer_idx, head) in heads
            ]
            out = None
            if len(sparse) < query.shape[1]:
                given = (query, key, value, attention_mask)
                out = original(module, *given, scaling=scaling, **kwargs)[0]
            if sparse:
                found, trace = anchor_attention(
                    query, key, value, config, scaling, return_trace=True
                )
                found = found.transpose(1, 2)  # [B, N, Hq, D], as the interface wants it
                out = torch.empty_like(found) if out is None else out.clone()
                out[:, :, sparse] = found[:, :, sparse]
                share = density(trace.stripes, config, query.shape[2], key.shape[2])
                densities.append(float(share[:, sparse].mean()))
            return out.contiguous(), None

        return attention

    with replaced_attention(model, make):
        yield densities


def induction_pairs(length: int) -> list[tuple[int, int]]:
    """(row, key): a token of the second copy, and the token that followed it in the first."""
    half = length // 2
    return [(half + 1 + i, 2 + i) for i in range(64, half - 2, 7)]
