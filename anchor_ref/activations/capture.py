"""Queries, keys and values of any transformers causal language model, as its attention sees them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_ref.activations.interface import replaced_attention


@dataclass(frozen=True)
class Captured:
    """What one attention layer was given.

    Attributes:
        q: queries after the rotary embedding, `[B, Hq, N, D]`.
        k: keys after the rotary embedding, before any repetition, `[B, Hkv, N, D]`.
        v: values, k's shape.
        scaling: the factor of q·k that the layer uses.
        sliding_window: how many keys a query of this layer sees, None when all earlier ones.
        softcap: c where the layer uses c·tanh(score / c) in place of the score, else None.
    """

    q: Float[Tensor, "B Hq N D"]
    k: Float[Tensor, "B Hkv N D"]
    v: Float[Tensor, "B Hkv N D"]
    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None


@torch.no_grad()
def capture_qkv(
    model,
    input_ids: Int[Tensor, "B N"],
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    *,
    attention_mask: Int[Tensor, "B N"] | None = None,
    dtype: torch.dtype | None = torch.bfloat16,
) -> dict[int, Captured]:
    """Run the model once and keep what its attention layers are given.

    Args:
        model: a transformers causal language model; its own attention still does the work.
        input_ids: prompt, on the model's device.
        layers: which layers to keep; None means all.
        heads: which query heads to keep, in ascending order; None means all. They must be all the
            query heads of the kv heads they belong to: half of such a group would change the
            meaning of "head h reads kv head h // r".
        attention_mask: 1 for tokens, 0 for padding; None means no padding.
        dtype: what to store; None means as computed.

    Returns:
        One `Captured` for each layer asked for, by its index, on the CPU. Only these are ever
        held; the model computes no logits but the last token's.

    Raises:
        ValueError: a layer or head does not exist, heads split a group, or the model does not use
            transformers' attention interface.
    """
    wanted = _wanted("layers", layers, model.config.get_text_config().num_hidden_layers)
    captured: dict[int, Captured] = {}

    def make(original):
        def attention(module, query, key, value, attention_mask, *args, **kwargs):
            if module.layer_idx in wanted:
                chosen, kv_chosen = _heads(heads, query.shape[1], key.shape[1])

                def keep(x, which):
                    # A copy even where nothing changes: the model may go on to use the tensor.
                    return x[:, which].to("cpu", dtype, copy=True)

                captured[module.layer_idx] = Captured(
                    keep(query, chosen),
                    keep(key, kv_chosen),
                    keep(value, kv_chosen),
                    float(kwargs.get("scaling") or query.shape[-1] ** -0.5),
                    kwargs.get("sliding_window") or getattr(module, "sliding_window", None),
                    kwargs.get("softcap"),
                )
            return original(module, query, key, value, attention_mask, *args, **kwargs)

        return attention

    with replaced_attention(model, make):
        model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=1
        )
    return {layer: captured[layer] for layer in sorted(captured)}


def save_capture(captured: dict[int, Captured], path: str | Path) -> None:
    """Write captured layers to one safetensors file, to be read by `load_capture`."""
    from safetensors.torch import save_file

    tensors, about = {}, {}
    for layer, found in captured.items():
        for name in ("q", "k", "v"):
            tensors[f"{layer}.{name}"] = getattr(found, name).contiguous()
        for name in ("scaling", "sliding_window", "softcap"):
            if getattr(found, name) is not None:
                about[f"{layer}.{name}"] = repr(getattr(found, name))
    save_file(tensors, path, metadata=about)


def load_capture(path: str | Path) -> dict[int, Captured]:
    """Read what `save_capture` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        layers = sorted({int(name.split(".")[0]) for name in file.keys()})  # noqa: SIM118
        return {
            layer: Captured(
                *(file.get_tensor(f"{layer}.{name}") for name in ("q", "k", "v")),
                float(about[f"{layer}.scaling"]),
                _number(int, about.get(f"{layer}.sliding_window")),
                _number(float, about.get(f"{layer}.softcap")),
            )
            for layer in layers
        }


def _number(kind, text: str | None):
    return None if text is None else kind(text)


def _wanted(name: str, asked: Iterable[int] | None, available: int) -> set[int]:
    chosen = set(range(available)) if asked is None else set(asked)
    for index in sorted(chosen):
        if not isinstance(index, int) or not 0 <= index < available:
            raise ValueError(f"{name} must be integers in 0..{available - 1}, got {index!r}")
    return chosen


def _heads(asked: Iterable[int] | None, q_heads: int, kv_heads: int) -> tuple[list, list]:
    """The query heads to keep and the kv heads they read."""
    chosen = sorted(_wanted("heads", asked, q_heads))
    shared = q_heads // kv_heads
    kv_chosen = sorted({head // shared for head in chosen})
    if len(chosen) != len(kv_chosen) * shared:
        raise ValueError(
            f"heads must hold all {shared} query heads of each kv head they read, got {chosen}"
        )
    return chosen, kv_chosen
