"""A model that reads a text with stripes chosen in one way or another, and what it loses by that.

A group's stripes are one mask for all its rows: nothing here is as large as N x N for all heads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anchor_lab.methods.outliers import Extension
from anchor_models.interface import replaced_attention
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import (
    attention_scores,
    causal_scores,
    product,
    stack_heads,
    unstack_heads,
)
from anchor_ref.regions import Group, causal_pairs, groups

SCORES = {"cuda": 2**28, "cpu": 2**24}  # held at once: 1 GiB and 64 MiB in float32
LOGITS = 1024  # rows whose logits are formed at once


@dataclass
class Kept:
    """What the layers of one pass kept.

    Attributes:
        density: of each layer, mean over batch and heads.
        recall: of each layer, mean over batch, heads and the rows beyond the first group; NaN
            where there are none.
    """

    density: list[float] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)


@contextmanager
def reading(
    model, at: Callable[[int], Extension] | None, most_scores: int | None = None
) -> Iterator[Kept]:
    """Inside the `with`, whole prompts are read with the stripes that each layer's method chooses.

    Args:
        model: a transformers model of plain causal attention. What continues a cache is computed
            as before.
        at: the method of a layer; None keeps every pair, computed in the same way.
        most_scores: held at once; None means `SCORES` of the model's device.

    Yields:
        A `Kept` that each layer of each pass is added to.
    """
    found = Kept()

    def make(original):
        def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
            if query.shape[2] != key.shape[2]:
                return original(
                    module, query, key, value, attention_mask, scaling=scaling, **kwargs
                )
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            most = most_scores or SCORES[query.device.type]
            with torch.no_grad():
                method = None if at is None else at(module.layer_idx)
                config = AnchorConfig() if method is None else method.config
                kept = None if method is None else choose(query, key, method, scale, most)
                out, recall = attend(query, key, value, kept, config, scale, most)
            n = query.shape[2]
            found.density.append(1.0 if kept is None else density(kept, config, n))
            found.recall.append(recall[:, :, config.group_size :].mean().item())
            return out.transpose(1, 2).contiguous(), None

        return attention

    with replaced_attention(model, make):
        yield found


def choose(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    method: Extension,
    scale: float,
    most_scores: int,
) -> list[Bool[Tensor, "B Hq _"]]:
    """`method.all_kept`, with anchors found for many rows at once: stage 1 goes block by block."""
    config, n = method.config, q.shape[2]
    anchor = torch.zeros(q.shape[:3], dtype=q.dtype, device=q.device)
    layout, kept = groups(config, n, n), []
    for group in layout:
        if not len(group.candidates):
            kept.append(torch.empty(*q.shape[:2], 0, dtype=torch.bool, device=q.device))
            continue
        init = k[:, :, group.init.start : group.init.stop]
        for block in _blocks(group, most_scores // (q.shape[0] * q.shape[1])):
            rows = q[:, :, block]
            found = causal_scores(rows, k[:, :, group.window_start : block.stop], scale).amax(-1)
            if len(group.init):
                found = found.maximum(attention_scores(rows, init, scale).amax(-1))
            anchor[:, :, block] = found
        kept.append(method.kept(q, k, anchor, group, scale))
    return kept


def attend(
    q: Float[Tensor, "B Hq N D"],
    k: Float[Tensor, "B Hkv N D"],
    v: Float[Tensor, "B Hkv N D"],
    kept: Sequence[Bool[Tensor, "B Hq _"]] | None,
    config: AnchorConfig,
    scale: float,
    most_scores: int,
) -> tuple[Float[Tensor, "B Hq N D"], Float[Tensor, "B Hq N"]]:
    """Attention to initial region, window and stripes, in q's dtype, and the recall of each row.

    recall_i = Σ_{j kept} exp(s_ij) / Σ_{j <= i} exp(s_ij)

    Args:
        q, k, v: of whole prompts.
        kept: which candidates of each group are stripes; None keeps all.
        config: regions and groups.
        scale: factor of q·k.
        most_scores: held at once, at the least one row of each head.
    """
    n = q.shape[2]
    out = torch.empty_like(q)
    recall = torch.ones(q.shape[:3], dtype=q.dtype, device=q.device)
    for g, group in enumerate(groups(config, n, n)):
        if group.rows.start == 0:  # it sees all that comes before, whatever is kept
            parts = (x[:, :, : group.rows.stop] for x in (q, k, v))
            out[:, :, : group.rows.stop] = F.scaled_dot_product_attention(
                *parts, is_causal=True, scale=scale, enable_gqa=True
            )
            continue
        for block in _blocks(group, most_scores // (q.shape[0] * q.shape[1])):
            scores = causal_scores(q[:, :, block], k[:, :, : block.stop], scale)
            total = scores.logsumexp(-1)
            if kept is not None and len(group.candidates):
                dropped = ~kept[g].unsqueeze(2)
                scores[..., group.candidate_columns].masked_fill_(dropped, -torch.inf)
                found = scores.logsumexp(-1)
                recall[:, :, block] = (found - total).exp()
                total = found
            weights = stack_heads(scores.sub_(total.unsqueeze(-1)).exp_(), k.shape[1])
            out[:, :, block] = unstack_heads(product(weights, v[:, :, : block.stop]), q.shape[1])
    return out, recall


def _blocks(group: Group, most: int) -> Iterator[slice]:
    """The rows of a group, as many at once as have no more than `most` scores."""
    count = max(1, most // group.rows.stop)
    for start in range(group.rows.start, group.rows.stop, count):
        yield slice(start, min(start + count, group.rows.stop))


def density(kept: Sequence[Bool[Tensor, "B Hq _"]], config: AnchorConfig, n: int) -> float:
    """Share of the causal pairs that is kept, mean over batch and heads."""
    pairs = 0.0
    for group, mask in zip(groups(config, n, n), kept, strict=True):
        stripes = mask.sum().item() / (mask.shape[0] * mask.shape[1])
        pairs += group.always_pairs + stripes * len(group.sparse_rows)
    return pairs / causal_pairs(n)


@torch.no_grad()
def token_losses(model, tokens: Int[Tensor, "1 N"]) -> Float[Tensor, "L"]:
    """Loss of each row's prediction of the next token, nats, `[N - 1]` float32 on the CPU."""
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    return losses_after(model, hidden[0], tokens[0])


@torch.no_grad()
def losses_after(
    model, hidden: Float[Tensor, "N H"], tokens: Int[Tensor, "N"]
) -> Float[Tensor, "L"]:
    """The same from what comes out of the last layer; of few rows at a time, logits are large."""
    hidden, targets = hidden[:-1], tokens[1:]
    found = [
        F.cross_entropy(
            model.get_output_embeddings()(hidden[start : start + LOGITS]).float(),
            targets[start : start + LOGITS],
            reduction="none",
        )
        for start in range(0, len(targets), LOGITS)
    ]
    return torch.cat(found).cpu()
