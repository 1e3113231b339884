"""A transformers model on many ranks: a share of the tokens each, or a share of every weight."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from anchor_ref.activations.interface import BEYOND_QKV, beyond_causal, replaced_attention
from anchor_ref.parallel.ulysses import shard_rows, split_heads, ulysses

# What a layer may be given besides q, k and v that says more than a rank's heads can know.
_BEYOND = {**BEYOND_QKV, "cu_seq_lens_q": "packed texts"}

# What a plan says of a weight that stays whole while nothing is trained.
_WHOLE = ("replicated", "replicated_with_grad_allreduce")


def sequence_parallel_prefill(
    model,
    input_ids: Int[Tensor, "B N"],
    group: dist.ProcessGroup | None = None,
    **inputs,
):
    """The whole prompt through the model, each rank with its own share of the tokens.

    Everything but attention works on tokens one by one and needs no other rank. Attention is the
    model's own, "sdpa" or "anchor_attention", on whole heads (`ulysses`).

    Args:
        model: a transformers causal model, complete on every rank, whose attention goes through
            `AttentionInterface` and is causal over all earlier tokens.
        input_ids: the whole prompt, the same on every rank, no padding, on the model's device.
        group: the ranks; None means all.
        **inputs: more for the model's forward, such as `logits_to_keep`, which then counts this
            rank's tokens. None that describes tokens.

    Returns:
        (rows, output): the range of tokens that are this rank's, and what the model puts out for
        them. The next token of the prompt follows from the last rank's last logits.

    Raises:
        ValueError: the prompt is shorter than there are ranks; `use_cache` is asked for; the heads
            cannot be split (`split_heads`); or a layer is no plain causal attention.

    There is no cache: each rank would keep the tokens of its own share, and decoding from that
    would be wrong.
    """
    if inputs.pop("use_cache", False):
        raise ValueError("use_cache must be False: the ranks hold different tokens, got True")
    described = {"attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels"}
    if found := sorted(described & inputs.keys()):
        raise ValueError(f"inputs must not describe tokens, which are split here, got {found[0]}")
    n = input_ids.shape[1]
    rows = shard_rows(n, dist.get_rank(group), dist.get_world_size(group))
    positions = torch.arange(rows.start, rows.stop, device=input_ids.device)

    def make(original):
        def attention(module, query, key, value, attention_mask, **kwargs):
            _refuse_other(module, attention_mask, n, kwargs)
            kwargs.pop("position_ids", None)  # of this rank's tokens; attention sees all

            def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                with _heads_per_kv(module, q.shape[1] // k.shape[1]):
                    return original(module, q, k, v, None, **kwargs)[0].transpose(1, 2)

            out = ulysses(whole, query, key, value, group)
            return out.transpose(1, 2).contiguous(), None  # [B, n, Hq, D]

        return attention

    with torch.no_grad(), replaced_attention(model, make):
        output = model(
            input_ids[:, rows.start : rows.stop],
            position_ids=positions.expand(len(input_ids), -1),
            use_cache=False,
            **inputs,
        )
    return rows, output


def tensor_parallel(model, group: dist.ProcessGroup | None = None):
    """A share of each layer's weights on every rank: each computes its own heads, for all tokens.

    The plan is the model's own, the one that transformers' `tp_plan="auto"` follows; PyTorch's
    `parallelize_module` carries it out.

    Args:
        model: a transformers causal model, complete on every rank and on the rank's own device. It
            is changed in place.
        group: the ranks; None means all.

    Returns:
        The model. Called with the same tokens on every rank, it puts out the same on every rank.

    Raises:
        ValueError: the model has no plan, or one that asks for more than columns and rows of
            matrices; or its heads cannot be split over the ranks, of which the number of kv heads
            must be a multiple.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.parallel import parallelize_module

    config, ranks = model.config.get_text_config(), dist.get_world_size(group)
    split_heads(config.num_attention_heads, config.num_key_value_heads, ranks)
    if config.num_key_value_heads % ranks:
        raise ValueError(
            f"kv heads must be a multiple of the {ranks} ranks, since the weights behind them are "
            f"cut and none are copied, got {config.num_key_value_heads}"
        )
    mesh = DeviceMesh.from_group(group or dist.group.WORLD, model.device.type)
    parallelize_module(model.base_model, mesh, _matrices(model))
    return model


def _matrices(model) -> dict:
    """What the model's own plan does to each matrix, in PyTorch's words."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    styles = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    plan = getattr(model.base_model.config, "base_model_tp_plan", None)
    if not plan:
        raise ValueError(f"model must have a tensor parallel plan, got {type(model).__name__}")
    plan = {name: style for name, style in plan.items() if style not in _WHOLE}
    if strange := sorted(set(plan.values()) - styles.keys()):
        raise ValueError(
            f"the model's tensor parallel plan must be made of {', '.join(styles)}, "
            f"got {strange[0]} in {type(model).__name__}"
        )
    return {name: styles[style]() for name, style in plan.items()}


@contextmanager
def _heads_per_kv(module, count: int) -> Iterator[None]:
    """Inside the `with`, a module that repeats kv heads does so for the heads of one rank."""
    before = getattr(module, "num_key_value_groups", count)
    module.num_key_value_groups = count
    try:
        yield
    finally:
        module.num_key_value_groups = before


def _refuse_other(module, attention_mask, n: int, kwargs: dict) -> None:
    """Refuse a layer whose attention is more, or less, than all earlier tokens of the prompt."""
    layer = getattr(module, "layer_idx", None)
    if attention_mask is not None:
        raise ValueError(
            f"attention_mask must be None in layer {layer}: load the model with "
            "attn_implementation='sdpa' or 'anchor_attention'; "
            f"got one of shape {tuple(attention_mask.shape)}"
        )
    window = kwargs.get("sliding_window")
    found = beyond_causal(module, kwargs, masked=False, table=_BEYOND)
    if window is not None and window < n:
        found.append(f"a sliding window of {window} tokens")
    if found:
        raise ValueError(
            f"model must have plain causal attention, got {found[0]} in layer {layer}"
        )
