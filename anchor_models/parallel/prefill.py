"""A transformers model on many ranks: a share of the tokens each, or a share of every weight."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from anchor_models.bundled import bundled_model_path
from anchor_models.integration.mask_functions import known
from anchor_models.interface import BEYOND_QKV, beyond_causal, replaced_attention
from anchor_models.models import BUNDLED
from anchor_models.parallel.ulysses import agreed_lengths, exchanged, shard_rows
from anchor_models.probe import needs_others, token_mixer

# What a layer may be given besides q, k and v that says more than a rank's heads can know.
_BEYOND = {**BEYOND_QKV, "cu_seq_lens_q": "packed texts"}


def sequence_parallel_prefill(
    model,
    input_ids: Int[Tensor, "B N"],
    group: dist.ProcessGroup | None = None,
    *,
    check: bool = True,
    **inputs,
):
    """The whole prompt through the model, each rank with its own share of the tokens.

    Everything but attention works on tokens one by one and needs no other rank. Attention is the
    model's own, "sdpa" or "anchor_attention", on whole heads (`ulysses`).

    Args:
        model: a transformers causal model, complete on every rank, whose attention goes through
            `AttentionInterface`, is causal over all earlier tokens, and is all that mixes tokens.
            It is tried on the beginning of the prompt.
        input_ids: the whole prompt, the same on every rank, no padding, on the model's device.
        group: the ranks; None means all.
        check: whether the model is tried first, in a few passes over up to 256 tokens, in every
            call. False is for a model that was tried on a prompt of the same length.
        **inputs: more for the model's forward, such as `logits_to_keep`, which then counts this
            rank's tokens. None that describes tokens.

    Returns:
        (rows, output): the range of tokens that are this rank's, and what the model puts out for
        them. The next token of the prompt follows from the last rank's last logits.

    Raises:
        ValueError: the prompt is shorter than there are ranks; `use_cache` is asked for; there are
            fewer query heads than ranks; a layer is no plain causal attention, has a window or
            chunks shorter than the prompt, or is recurrent, convolves or otherwise mixes tokens;
            the model counts positions itself, or looks at how long the prompt is; ranks were
            given prompts of different lengths. All ranks raise it, before any token is sent.

    There is no cache: each rank would keep the tokens of its own share, and decoding from that
    would be wrong.
    """
    if inputs.pop("use_cache", False):
        raise ValueError("use_cache must be False: the ranks hold different tokens, got True")
    described = {"attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels"}
    if found := sorted(described & inputs.keys()):
        raise ValueError(f"inputs must not describe tokens, which are split here, got {found[0]}")
    n = input_ids.shape[1]
    ranks = dist.get_world_size(group)
    if check:
        refuse_other_models(model, input_ids, ranks)
    rows = shard_rows(n, dist.get_rank(group), ranks)
    positions = torch.arange(rows.start, rows.stop, device=input_ids.device)
    agreed: dict[tuple, list[int]] = {}  # layers are alike: one question for each kind

    def make(original):
        def attention(module, query, key, value, attention_mask, **kwargs):
            _refuse_other(module, attention_mask, n, kwargs)
            kwargs.pop("position_ids", None)  # of this rank's tokens; attention sees all

            def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                with _heads_per_kv(module, q.shape[1] // k.shape[1]):
                    return original(module, q, k, v, None, **kwargs)[0].transpose(1, 2)

            kind = (query.shape, key.shape, query.dtype)
            if kind not in agreed:
                agreed[kind] = agreed_lengths(query, key, group, n)
            out = exchanged(whole, query, key, value, agreed[kind], group)
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


def load_tensor_parallel(name_or_path: str | Path | None, dtype: torch.dtype = torch.float32):
    """A model that is split while it is loaded, such that each rank keeps its share alone.

    This is transformers' own tensor parallelism, `from_pretrained(..., tp_plan="auto")`: a rank
    computes its own heads, for all tokens. Weights are cut into equal parts, so heads that do not
    divide are refused, which `sequence_parallel_prefill` takes. Added are the name that the
    argument has in the installed transformers, and refusals: transformers leaves a model without a
    plan whole on every rank, and fails at heads that cannot be split in the middle of the first
    prompt.

    Args:
        name_or_path: None or "bundled" for the model that comes with the package, a folder, or a
            name on the hub.
        dtype: of the weights.

    Returns:
        (model, tokenizer), the model in eval mode, on the rank's GPU where there is one. Called
        with the same tokens on every rank, it puts out the same on every rank, and generates.

    Raises:
        ImportError: transformers or accelerate is not installed.
        ValueError: the model has no plan, or its query or kv heads are no multiple of the ranks.
    """
    try:
        import accelerate  # noqa: F401  transformers loads through it
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError(
            "load_tensor_parallel needs transformers and accelerate: "
            "pip install '.[models,parallel]'"
        ) from error
    bundled = name_or_path in (None, BUNDLED)
    path = bundled_model_path() if bundled else name_or_path
    config, ranks = AutoConfig.from_pretrained(path).get_text_config(), dist.get_world_size()
    if not config.base_model_tp_plan:
        raise ValueError(f"model must have a tensor parallel plan, got {config.model_type!r}")
    if config.num_attention_heads % ranks:
        raise ValueError(
            f"query heads must be a multiple of the {ranks} ranks that share them, got "
            f"{config.num_attention_heads}"
        )
    if config.num_key_value_heads % ranks:
        raise ValueError(
            f"kv heads must be a multiple of the {ranks} ranks, since the weights behind them are "
            f"cut and none are copied, got {config.num_key_value_heads}"
        )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **_auto_plan())
    return model.eval(), AutoTokenizer.from_pretrained(path)


def _auto_plan() -> dict:
    """How this transformers wants to hear tp_plan="auto"; the plain argument will go."""
    from transformers.distributed import DistributedConfig

    if "tp_plan" in signature(DistributedConfig).parameters:
        return {"distributed_config": DistributedConfig(tp_plan="auto")}
    return {"tp_plan": "auto"}


@contextmanager
def _heads_per_kv(module, count: int) -> Iterator[None]:
    """Inside the `with`, a module that repeats kv heads does so for the heads of one rank."""
    before = getattr(module, "num_key_value_groups", count)
    module.num_key_value_groups = count
    try:
        yield
    finally:
        module.num_key_value_groups = before


def refuse_other_models(model, input_ids: Tensor, ranks: int) -> None:
    """Refuse a model of which shares of the tokens do not compute what the whole prompt does."""
    n = input_ids.shape[1]

    def attend(module, kwargs: dict, asked: Mapping | None) -> None:
        _refuse_other(module, None, n, kwargs)
        # Layers of Llama 4 without positions count tokens from the first that they are given.
        tuned = getattr(module, "attn_temperature_tuning", False) and not module.use_rope
        if tuned and n >= module.floor_scale:
            raise _other(module, "scores scaled by a place that the layer counts itself")
        if asked is None:
            return
        found = known(asked["mask_function"]) if asked else None
        if found is None:
            raise _other(module, "a mask of its own")
        if found.local is not None and found.local < n:
            raise _other(module, f"a window or chunks of {found.local} tokens")

    if mixer := token_mixer(model, input_ids, attend):
        raise ValueError(
            f"model must mix tokens by attention alone, got {mixer}, that does too: a rank knows "
            "nothing of the tokens of others"
        )
    if needed := needs_others(model, input_ids, len(shard_rows(n, 0, ranks))):
        raise ValueError(
            "model must know a token's place from its position_ids alone, got "
            f"{type(model).__name__} with {needed}: a rank has its own share of the prompt"
        )


def _refuse_other(module, attention_mask, n: int, kwargs: dict) -> None:
    """Refuse a layer whose attention is more, or less, than all earlier tokens of the prompt."""
    window = kwargs.get("sliding_window")
    found = beyond_causal(module, kwargs, masked=attention_mask is not None, table=_BEYOND)
    if window is not None and window < n:
        found.append(f"a sliding window of {window} tokens")
    if found:
        raise _other(module, found[0])
    if attention_mask is not None:
        layer = getattr(module, "layer_idx", None)
        raise ValueError(
            f"attention_mask must be None in layer {layer}: load the model with "
            "attn_implementation='sdpa' or 'anchor_attention'; "
            f"got one of shape {tuple(attention_mask.shape)}"
        )


def _other(module, what: str) -> ValueError:
    layer = getattr(module, "layer_idx", None)
    return ValueError(
        f"model must have plain causal attention, got {what} in layer {layer} of "
        f"{type(module).__name__}"
    )
