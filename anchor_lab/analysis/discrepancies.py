"""Five differences between AnchorAttention as written and its published code, by their effects.

The method is arXiv 2505.23520, as the rest of this package has it. The code is the authors'
repository yuzhouzhang9/Anchor-Attention at commit fdc7420. Each function makes one effect visible
on a small scale, from its description alone; for the method itself see `anchor_ref`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from anchor_models.memory import choice_bytes
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import attention_scores, causal_scores
from anchor_ref.inputs import check_inputs, check_tensor
from anchor_ref.regions import Group, causal_pairs, groups
from anchor_ref.stripes import block_means, passes_difference_test, pooled_difference

_LOG2_E = math.log2(math.e)


def published_groups(config: AnchorConfig, n: int) -> tuple[Group, ...]:
    """The regions of the published code, in proportion to `config`.

    With b = `block_size` and S = `config.group_size`, for group g > 0:

        initial region   keys [0, S)              as written: [0, init_blocks·b)
        candidates       keys [b, g·S − b)        as written: all between initial region and window
        window           keys [g·S, i]            as written, with window_blocks = 0

    Args:
        config: sizes of block and group; `init_blocks` and `window_blocks` play no part.
        n: N, number of tokens, at least 1.

    Returns:
        One `Group` each. Unlike those of `regions.groups` they overlap and leave a hole.
    """
    written = groups(replace(config, window_blocks=0), n, n)
    block, size = config.block_size, config.group_size
    return tuple(
        replace(
            group,
            init=range(min(size, group.window_start)),
            candidates=range(block, max(block, group.window_start - block)),
        )
        for group in written
    )


def times_counted(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    config: AnchorConfig,
    layout: Sequence[Group],
    scale: float | None = None,
) -> Int8[Tensor, "B Hq N N"]:
    """How often each key enters the softmax of each row: small N only.

    c_ij = [j in initial region] + [j in window] + [j selected for i's group]

    Args:
        q, k, scale: as in `identify_stripes`.
        config: θ.
        layout: `regions.groups(config, N, N)` or `published_groups(config, N)`.

    Returns:
        c, 0 for a later key. Where the regions are a partition it is never above 1.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`.
    """
    scale = check_inputs(q, k, None, scale)
    q, k = q.float(), k.float()
    scores = causal_scores(q, k, scale)
    counted = torch.zeros(scores.shape, dtype=torch.int8, device=q.device)
    anchor = torch.empty_like(scores[..., 0])
    for group in layout:
        rows = slice(group.rows.start, group.rows.stop)
        candidates = slice(group.candidates.start, group.candidates.stop)
        always = counted[:, :, rows]
        always[..., group.init.start : group.init.stop] += 1
        always[..., group.window_start :] += 1
        anchor[:, :, rows] = scores[:, :, rows].masked_fill(always == 0, -torch.inf).amax(-1)
        difference = pooled_difference(q, k, anchor, group, scale)
        kept = passes_difference_test(difference, config.theta).any(2, keepdim=True)
        always[..., candidates] += kept.to(torch.int8)
    return counted.masked_fill_(scores == -torch.inf, 0)


def attend_counted(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    v: Float[Tensor, "B Hkv N D"],
    counted: Int8[Tensor, "B Hq N N"],
    scale: float | None = None,
) -> Float[Tensor, "B Hq N D"]:
    """Attention in which key j enters the softmax of row i c_ij times.

    out_i = Σ_j c_ij e^{s_ij} v_j / Σ_j c_ij e^{s_ij}

    Args:
        q, k, v, scale: as in `anchor_attention`.
        counted: c, of at least one key for each row.

    Returns:
        float32. With c = 1 for every earlier key it is dense attention.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`; or `counted` does not fit q.
    """
    scale = check_inputs(q, k, v, scale)
    check_tensor("counted", counted, (*q.shape[:3], k.shape[2]), (torch.int8,), q.device)
    scores = causal_scores(q.float(), k.float(), scale)
    # A count is a factor of the weight, so its logarithm joins the score; log 0 hides the key.
    weights = (scores + counted.float().log()).softmax(-1)
    return weights @ v.float().repeat_interleave(q.shape[1] // v.shape[1], 1)


@dataclass(frozen=True, eq=False)
class RoundedTest:
    """The difference test of every candidate of every list, P in all, before and after rounding.

    Attributes:
        exact: min_t ā_t − s̄_tj in float32, `[P]`, natural-log units.
        rounded: the same from rounded scores and anchors, `[P]`, natural-log units.
    """

    exact: Float[Tensor, "P"]
    rounded: Float[Tensor, "P"]


def round_test(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    row_anchor: Float[Tensor, "B Hq N"],
    config: AnchorConfig,
    scale: float | None = None,
) -> RoundedTest:
    """The difference test with scores, anchors and pooled queries rounded to bfloat16 before it.

    A bfloat16 holds 8 binary digits. Scores are in base 2, s·log2(e), when they are rounded: the
    grid is 0.125 wide from 16 to 32, and 0.25 from 32 to 64.

    Args:
        q, k, row_anchor, scale: as in `identify_stripes`.
        config: sizes of the regions, which are those of the method as written.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`; or `row_anchor` does not fit q.
    """
    scale = check_inputs(q, k, None, scale)
    check_tensor("row_anchor", row_anchor, q.shape[:3], (torch.float32,), q.device)
    exact, rounded = [], []
    for group in groups(config, q.shape[2], k.shape[2]):
        mean_q = block_means(q, group.blocks, torch.float32)
        anchor = block_means(row_anchor, group.blocks, torch.float32).unsqueeze(-1) * _LOG2_E
        keys = k[:, :, group.candidates.start : group.candidates.stop].float()
        for dtype, found in ((torch.float32, exact), (torch.bfloat16, rounded)):
            scores = attention_scores(mean_q.to(dtype).float(), keys, scale * _LOG2_E)
            difference = anchor.to(dtype).float() - scores.to(dtype).float()  # [B, Hq, T, C]
            found.append((difference / _LOG2_E).amin(2).flatten())
    return RoundedTest(torch.cat(exact), torch.cat(rounded))


def written_rows(n: int, group_size: int) -> tuple[range, range]:
    """The rows that the sparse and the dense part of the published code write.

    With r = n mod S the sparse part takes the rows `[:-r]` and the dense part the last r. For
    r = 0 Python reads `[:-0]` as `[:0]`: no row at all.

    Args:
        n: number of tokens, at least 1.
        group_size: S, at least 1.

    Returns:
        (sparse rows, dense rows); a row in neither keeps the zeros it began with.
    """
    rest = n % group_size
    return range(n)[:-rest], range(n)[n - rest :]


def dense_share(n: int, group_size: int) -> float:
    """Share of the causal pairs that belong to the dense rows of `written_rows`, in [0, 1]."""
    _, dense = written_rows(n, group_size)
    return causal_pairs(len(dense), n) / causal_pairs(n)


def memory(
    n: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    selected: float,
    config: AnchorConfig | None = None,
) -> dict[str, dict[str, float]]:
    """Bytes that one layer's call needs beside queries and output, in half precision.

        published   2·Hq·N·D·2  keys and values,   Hq·(N/S)·N·4  selection
        project     2·Hkv·N·D·2 keys and values,   Hq times `memory.choice_bytes` selection

    Args:
        n: N, number of tokens.
        q_heads, kv_heads, head_dim: Hq, Hkv, D.
        selected: share of the candidates that become stripes, in [0, 1].
        config: sizes; None means `AnchorConfig()`.

    Returns:
        {"published" or "project": {"keys and values": bytes, "selection": bytes}}.
    """
    config = config or AnchorConfig()
    lists = q_heads * len(groups(config, n, n))
    return {
        "published": {
            "keys and values": 2.0 * q_heads * n * head_dim * 2,
            "selection": 4.0 * lists * n,
        },
        "project": {
            "keys and values": 2.0 * kv_heads * n * head_dim * 2,
            "selection": q_heads * choice_bytes(n, head_dim, selected, config),
        },
    }
