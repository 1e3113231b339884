"""Attention over tokens that lie on many ranks (Jacobs et al., 2023, arXiv 2309.14509).

    tokens split, all heads   --all-to-all-->   heads split, all tokens   --attention-->
    heads split, all tokens   --all-to-all-->   tokens split, all heads

Between the two exchanges a rank holds whole heads, and whatever attention works on one head works.
Shares need not be equal, of tokens or of heads: what is sent is as long as it is, nothing is
padded. A rank computes all rows of its heads: the last rows, which see every key, are shared out
by heads as all others are.

Why not a library: for inference, with an attention of one's own, none of these does it.
transformers 5.23 reserves `DistributedConfig(enable_sequence_parallel=...)` but does not use it
yet. accelerate 1.15 has Ulysses through DeepSpeed and for training alone; its other way, PyTorch's
context parallelism, replaces the attention by a ring. DeepSpeed 0.19.8 wants equal shares of the
prompt (`UlyssesSPAttentionHF`) or a kv head for every rank (`DistributedAttention`). PyTorch
2.13's DTensor pads unequal shares, and gathers everything where the ranks are CPU processes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from math import gcd

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

    Query heads are dealt one by one, not kv head by kv head: selection and softmax are a query
    head's own, so no result depends on where the others are, and shares differ by one head at
    most. 9 query heads of 3 kv heads make 5 and 4 on two ranks; whole kv heads would make 6 and 3.
    The price is small: a kv head that heads of several ranks read is sent to each of them.

    Args:
        q_heads, kv_heads: Hq, Hkv; Hq a multiple of Hkv.
        ranks: P, at most Hq.

    Raises:
        ValueError: there are fewer query heads than ranks.
    """
    if q_heads < ranks:
        raise ValueError(
            f"query heads must be at least one for each of the {ranks} ranks, got {q_heads}"
        )
    shared_by = q_heads // kv_heads
    queries = [shard_rows(q_heads, rank, ranks) for rank in range(ranks)]
    return queries, [range(h[0] // shared_by, h[-1] // shared_by + 1) for h in queries]


def regular(queries: range, shared_by: int) -> list[int]:
    """Places of a rank's kv heads such that each is read by equally many of its query heads.

    Attention finds the kv head of query head h as h // r. A rank whose query heads begin or end
    within those of a kv head repeats kv heads, as rarely as that allows. Nothing more is sent.

    Args:
        queries: query heads of the rank, by their number in the model.
        shared_by: query heads that share a kv head in the model.

    Returns:
        Of each kv head that attention is given, which of the rank's own it is.
    """
    read = [head // shared_by - queries[0] // shared_by for head in queries]
    each = gcd(*Counter(read).values())
    return read[::each]


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
            of these heads, shaped as its q. Ranks may hold one head more than others.
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
    return exchanged(attention, q, k, v, agreed_lengths(q, k, group), group)


def exchanged(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Float[Tensor, "B Hq n D"],
    k: Float[Tensor, "B Hkv n D"],
    v: Float[Tensor, "B Hkv n D"],
    lengths: Sequence[int],
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "B Hq n D"]:
    """`ulysses` of what the ranks have agreed on: a model does not ask again in every layer.

    Args:
        attention, q, k, v, group: as in `ulysses`.
        lengths: tokens of each rank, see `agreed_lengths`.
    """
    mine = dist.get_rank(group)
    q_heads, kv_heads = split_heads(q.shape[1], k.shape[1], len(lengths))
    whole = [
        _exchange(
            [x[:, h.start : h.stop] for h in heads],
            [(len(heads[mine]), n) for n in lengths],
            2,
            group,
        )
        for x, heads in ((q, q_heads), (k, kv_heads), (v, kv_heads))
    ]
    places = regular(q_heads[mine], q.shape[1] // k.shape[1])
    if len(places) > len(kv_heads[mine]):
        # Not `x[:, places]`: the host would wait for the GPU in every layer, to copy the list.
        whole[1:] = (torch.stack([x[:, place] for place in places], 1) for x in whole[1:])
    out = attention(*whole)  # [B, Hq / P, N, D]
    shapes = [(len(heads), q.shape[2]) for heads in q_heads]
    return _exchange(out.split(list(lengths), 2), shapes, 1, group)


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


def agreed_lengths(
    q: Tensor, k: Tensor, group: dist.ProcessGroup | None = None, prompt: int | None = None
) -> list[int]:
    """How many tokens each rank holds, which the ranks tell each other.

    Args:
        q, k, group: as in `ulysses`.
        prompt: tokens that the rank takes the whole prompt to have, if it knows.

    Raises:
        ValueError: on all ranks, where they differ otherwise.
    """
    mine = {
        "batch size": q.shape[0],
        "number of query heads": q.shape[1],
        "number of kv heads": k.shape[1],
        "excess of keys": k.shape[2] - q.shape[2],
        "head size": q.shape[3],
        "dtype": q.dtype,
        "prompt length": prompt,
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


def _exchange(
    parts: Sequence[Tensor], shapes: Sequence[tuple[int, int]], dim: int, group
) -> Tensor:
    """Send the p-th part to rank p, and join along `dim` what each rank p sends here.

    Args:
        parts: `[B, H, n, D]`, one for each rank; H and n may differ. They travel in one flat
            tensor, since gloo has no all-to-all of lists.
        shapes: heads and tokens of what each rank sends here.
    """
    batch, _, _, head_dim = parts[0].shape
    sent = torch.cat([part.flatten() for part in parts])
    sizes = [batch * heads * n * head_dim for heads, n in shapes]
    received = sent.new_empty(sum(sizes))
    dist.all_to_all_single(received, sent, sizes, [part.numel() for part in parts], group=group)
    found = zip(received.split(sizes), shapes, strict=True)
    return torch.cat([x.view(batch, heads, n, head_dim) for x, (heads, n) in found], dim)
