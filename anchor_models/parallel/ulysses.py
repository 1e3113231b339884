"""Attention over tokens that lie on many ranks (Jacobs et al., 2023, arXiv 2309.14509).

    tokens split, all heads   --all-to-all-->   heads split, all tokens   --attention-->
    heads split, all tokens   --all-to-all-->   tokens split, all heads

Between the two exchanges a rank holds whole heads, and whatever attention works on one head works.
Shares need not be equal: what is sent is as long as it is, nothing is padded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from anchor_models.backend import anchor_attention
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import INPUT_DTYPES, check_inputs


@dataclass(frozen=True)
class Layout:
    """Who holds what, before and after the exchange; the same on every rank.

    Attributes:
        rank: this rank's number in the group.
        lengths: tokens of each rank while tokens are split.
        q_heads, kv_heads: heads of each rank while heads are split.
    """

    rank: int
    lengths: tuple[int, ...]
    q_heads: tuple[range, ...]
    kv_heads: tuple[range, ...]


def shard_rows(n: int, rank: int, ranks: int) -> range:
    """The tokens of one rank: consecutive, the first n mod P ranks one more than the others.

    Args:
        n: tokens of the prompt, at least one for each rank.
        rank: 0 to P − 1.
        ranks: P, at least 1.

    Raises:
        ValueError: a number is outside its range.
    """
    if ranks < 1 or not 0 <= rank < ranks:
        raise ValueError(f"rank must be in 0..ranks - 1, got rank {rank} of {ranks}")
    if n < ranks:
        raise ValueError(f"n must be at least one token for each of {ranks} ranks, got {n}")
    start = rank * (n // ranks) + min(rank, n % ranks)
    return range(start, start + n // ranks + (rank < n % ranks))


def split_heads(q_heads: int, kv_heads: int, ranks: int) -> tuple[list[range], list[range]]:
    """The query and kv heads of each rank, such that a rank holds what its query heads read.

    With fewer kv heads than ranks, P / Hkv ranks hold a copy of the same one.

    Args:
        q_heads, kv_heads: Hq, Hkv; Hq a multiple of Hkv and of P, and of P and Hkv one a multiple
            of the other.
        ranks: P.

    Raises:
        ValueError: the heads cannot be split so.
    """
    if q_heads % ranks:
        raise ValueError(
            f"query heads must be a multiple of the {ranks} ranks that share them, got {q_heads}"
        )
    if kv_heads % ranks and ranks % kv_heads:
        raise ValueError(
            f"kv heads must be a multiple or a divisor of the {ranks} ranks, got {kv_heads}"
        )
    each, kv_each, copies = q_heads // ranks, max(1, kv_heads // ranks), max(1, ranks // kv_heads)
    return (
        [range(p * each, (p + 1) * each) for p in range(ranks)],
        [range(p // copies * kv_each, (p // copies + 1) * kv_each) for p in range(ranks)],
    )


def ulysses(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Float[Tensor, "B Hq n D"],
    k: Float[Tensor, "B Hkv n D"],
    v: Float[Tensor, "B Hkv n D"],
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "B Hq n D"]:
    """Any attention, for tokens that are split over the ranks of a group.

    Args:
        attention: from q, k and v of some heads and all N tokens, `[B, H, N, D]`, to the output
            of these heads, shaped as its q.
        q: queries of this rank's tokens, `[B, Hq, n, D]`. Ranks hold consecutive tokens, rank 0
            the first; n may differ between them.
        k, v: keys and values of the same tokens, `[B, Hkv, n, D]`.
        group: the ranks; None means all.

    Returns:
        Output of this rank's tokens, `[B, Hq, n, D]`.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs` and `split_heads`; or ranks differ in more
            than the number of tokens. What all can see, all raise.
    """
    check_inputs(q, k, v)
    layout = agree(q, k, group)
    whole = (
        _to_heads(q, layout.q_heads, layout, group),
        _to_heads(k, layout.kv_heads, layout, group),
        _to_heads(v, layout.kv_heads, layout, group),
    )
    return _to_tokens(attention(*whole), layout, group)


def ulysses_attention(
    q: Float[Tensor, "B Hq n D"],
    k: Float[Tensor, "B Hkv n D"],
    v: Float[Tensor, "B Hkv n D"],
    config: AnchorConfig | None = None,
    scale: float | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    backend: str = "auto",
) -> Float[Tensor, "B Hq n D"]:
    """AnchorAttention for tokens that are split over the ranks of a group.

    Args:
        q, k, v, group: as in `ulysses`.
        config, scale, backend: as in `integrations.anchor_attention`, the same on every rank.

    Returns:
        The rows of `anchor_attention` on the whole prompt that belong to this rank's tokens.

    Raises:
        TypeError, ValueError, RuntimeError: see `ulysses` and `integrations.anchor_attention`.
    """

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return anchor_attention(q, k, v, config, scale, backend=backend)

    return ulysses(attention, q, k, v, group)


def agree(q: Tensor, k: Tensor, group: dist.ProcessGroup | None) -> Layout:
    """The layout that follows from what every rank holds.

    Raises:
        ValueError: ranks differ in more than the number of tokens; or see `split_heads`.
    """
    fields = ("batch size", "number of query heads", "number of kv heads", "excess of keys")
    fields += ("head size", "dtype")
    mine = (*q.shape[:2], k.shape[1], k.shape[2] - q.shape[2], q.shape[3])
    mine = torch.tensor([*mine, INPUT_DTYPES.index(q.dtype), q.shape[2]], device=q.device)
    table = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(table, mine, group=group)
    rows = torch.stack(table).tolist()
    for field, values in zip(fields, zip(*rows, strict=True), strict=False):
        if len(set(values)) > 1:
            found = [INPUT_DTYPES[x] if field == "dtype" else x for x in values]
            raise ValueError(f"q, k and v must have one {field} on all ranks, got {found}")
    _, q_heads, kv_heads, more_keys, *_ = rows[0]
    if more_keys:
        raise ValueError(
            "k must have as many tokens as q on every rank: the exchange is for whole prompts, "
            f"not for chunks; got {more_keys} more"
        )
    q_split, kv_split = split_heads(q_heads, kv_heads, len(rows))
    lengths = tuple(row[-1] for row in rows)
    return Layout(dist.get_rank(group), lengths, tuple(q_split), tuple(kv_split))


def _to_heads(x: Tensor, heads: Sequence[range], layout: Layout, group) -> Tensor:
    """`[B, H, n, D]` to this rank's heads of all tokens, `[B, H_rank, N, D]`."""
    batch, _, _, head_dim = x.shape
    mine = len(heads[layout.rank])
    shapes = [(batch, mine, n, head_dim) for n in layout.lengths]
    return torch.cat(_all_to_all([x[:, h.start : h.stop] for h in heads], shapes, group), 2)


def _to_tokens(x: Tensor, layout: Layout, group) -> Tensor:
    """`[B, H_rank, N, D]` to all heads of this rank's tokens, `[B, H, n, D]`."""
    batch, _, _, head_dim = x.shape
    mine = layout.lengths[layout.rank]
    shapes = [(batch, len(h), mine, head_dim) for h in layout.q_heads]
    return torch.cat(_all_to_all(x.split(layout.lengths, 2), shapes, group), 1)


def _all_to_all(parts: Sequence[Tensor], shapes: Sequence[tuple], group) -> list[Tensor]:
    """Send the p-th part to rank p; what rank p sent here has the p-th shape."""
    sent = torch.cat([part.reshape(-1) for part in parts])
    sizes = [prod(shape) for shape in shapes]
    received = sent.new_empty(sum(sizes))
    dist.all_to_all_single(received, sent, sizes, [part.numel() for part in parts], group=group)
    return [x.view(shape) for x, shape in zip(received.split(sizes), shapes, strict=True)]
