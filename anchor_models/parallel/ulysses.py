"""Attention over tokens that lie on many ranks (Jacobs et al., 2023, arXiv 2309.14509).

    tokens split, all heads   --all-to-all-->   heads split, all tokens   --attention-->
    heads split, all tokens   --all-to-all-->   tokens split, all heads

Between the two exchanges a rank holds whole heads, and whatever attention works on one head works.
Shares need not be equal: what is sent is as long as it is, nothing is padded.

Why not a library: for inference, with an attention of one's own, none of these does it.
transformers 5.23 reserves `DistributedConfig(enable_sequence_parallel=...)` but does not use it
yet. accelerate 1.15 has Ulysses through DeepSpeed and for training alone; its other way, PyTorch's
context parallelism, replaces the attention by a ring. DeepSpeed 0.19.8 wants equal shares of the
prompt (`UlyssesSPAttentionHF`) or a kv head for every rank (`DistributedAttention`). PyTorch
2.13's DTensor pads unequal shares, and gathers everything where the ranks are CPU processes.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from anchor_models.backend import anchor_attention
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_inputs


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
    lengths = _agreed_lengths(q, k, group)
    q_heads, kv_heads = split_heads(q.shape[1], k.shape[1], len(lengths))
    whole = (
        _exchange([x[:, h.start : h.stop] for h in heads], lengths, 2, group)
        for x, heads in ((q, q_heads), (k, kv_heads), (v, kv_heads))
    )
    out = attention(*whole)  # [B, Hq / P, N, D]
    return _exchange(out.split(lengths, 2), [q.shape[2]] * len(lengths), 1, group)


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
        config, scale, backend: as in `backend.anchor_attention`, the same on every rank.

    Returns:
        The rows of `anchor_attention` on the whole prompt that belong to this rank's tokens.

    Raises:
        TypeError, ValueError, RuntimeError: see `ulysses` and `backend.anchor_attention`.
    """

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return anchor_attention(q, k, v, config, scale, backend=backend)

    return ulysses(attention, q, k, v, group)


def _agreed_lengths(q: Tensor, k: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """How many tokens each rank holds; a ValueError on all ranks where they differ otherwise."""
    mine = {
        "batch size": q.shape[0],
        "number of query heads": q.shape[1],
        "number of kv heads": k.shape[1],
        "excess of keys": k.shape[2] - q.shape[2],
        "head size": q.shape[3],
        "dtype": q.dtype,
    }
    everyone: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, (mine, q.shape[2]), group=group)
    for field in mine:
        found = [theirs[field] for theirs, _ in everyone]
        if len(set(found)) > 1:
            raise ValueError(f"q, k and v must have one {field} on all ranks, got {found}")
    if more_keys := mine["excess of keys"]:
        raise ValueError(
            "k must have as many tokens as q on every rank: the exchange is for whole prompts, "
            f"not for chunks; got {more_keys} more"
        )
    return [length for _, length in everyone]


def _exchange(parts: Sequence[Tensor], lengths: Sequence[int], dim: int, group) -> Tensor:
    """Send the p-th part to rank p, and join along `dim` what each rank p sends here.

    Args:
        parts: `[B, H, n, D]`, one for each rank; n may differ. They travel in one flat tensor,
            since gloo has no all-to-all of lists.
        lengths: tokens of what each rank sends here.
    """
    batch, heads, _, head_dim = parts[0].shape
    sent = torch.cat([part.flatten() for part in parts])
    sizes = [batch * heads * n * head_dim for n in lengths]
    received = sent.new_empty(sum(sizes))
    dist.all_to_all_single(received, sent, sizes, [part.numel() for part in parts], group=group)
    return torch.cat([x.view(batch, heads, -1, head_dim) for x in received.split(sizes)], dim)
