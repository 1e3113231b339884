"""One layer's attention over more than one query: which texts, which method, and the result."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from anchor_models.backend import anchor_attention, choose_backend, implementation
from anchor_models.integration.cost import Expected, expected
from anchor_models.integration.options import Options, current_options
from anchor_models.integration.packing import texts_of
from anchor_models.integration.passes import decide, pass_of
from anchor_models.integration.record import Part, call_of, now, running_record
from anchor_models.integration.sequences import Tokens, is_segments
from anchor_models.interface import others
from anchor_models.thresholds import too_long
from anchor_ref.measure import density
from anchor_ref.regions import causal_pairs

# Entries of a mask that dense attention is given at once; sdpa copies grouped k and v each time.
STRIP = 2**27


def prefill(module, query, key, value, mask, given: dict, kwargs: dict) -> Tensor:
    """Attention of one layer, dense where AnchorAttention has nothing to gain.

    Args:
        module: the attention layer, with `layer_idx` and `config`.
        query, key, value: as transformers' `AttentionInterface` hands them over.
        mask: segments (see `sequences`), None, or a mask that segments cannot express.
        given: dropout and scaling.
        kwargs: what else the model hands over.

    Returns:
        `[B, Nq, Hq, D]`; 0 for padding.

    Raises:
        ValueError: the layer cannot be computed as asked; the message says why.
    """
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise ValueError(f"{type(module).__name__} must have a layer_idx, got none")
    stats, read = running_record(), pass_of(query.shape, key.shape, mask, kwargs, module)
    chosen = current_options(module.config)
    started = now(query) if stats is not None else 0.0
    why_dense = _why_dense(module, chosen, kwargs, mask)
    theta = None if why_dense else chosen.theta(layer, query.shape[1])
    texts = texts_of(read, query, key, mask, kwargs)
    if texts is None:
        why_dense = why_dense or _why_short(query.shape[2], key.shape[2], chosen)
        if why_dense is None:
            got = "none" if mask is None else f"{tuple(mask.shape)} {mask.dtype}"
            raise ValueError(
                "attention_mask must be causal but for padding and packed texts, given to the "
                f"model as (batch, tokens) or not at all, got {got} in layer {layer} of "
                f"{type(module).__name__}, which may have made it itself: for any other mask use "
                f"attn_implementation={others(type(module))}"
            )
        out = dense(module, query, key, value, mask, given)
        parts = [_dense_part(why_dense, query, key, torch.nan)]
    else:
        found, parts = [], []
        for text in texts:
            q = _tokens(query, text.rows, text.queries)
            k, v = (_tokens(x, text.rows, text.keys) for x in (key, value))
            why = why_dense or _why_short(q.shape[2], k.shape[2], chosen)
            times = None if why else _expected(q, k, theta, chosen)
            if times is not None and not times.gain:
                why = f"when='auto': {times}"
            if why:
                out = _dense_causal(module, q, k, v, given)
                part = None if stats is None else _dense_part(why, q, k, 1.0)
            else:
                _warn_if_too_long(chosen, k.shape[2])
                out, part = _sparse(q, k, v, theta, chosen, given, counted=stats is not None)
                if part is not None and times is not None:
                    part = replace(part, why=f"{part.why}; {times}")
            found.append(out)
            parts.append(part)
            if why_dense is None and q is query and k is key and q.shape[2] == k.shape[2]:
                again = _again(chosen, theta, why, times, q, k, v)
                if again is not None:
                    decide(read, module, query, key, mask, kwargs, *again)
        out = _together(found, texts, query, value)
    if stats is not None and parts:
        seconds = now(query) - started
        stats.calls.append(call_of(parts, layer, query.shape[2], key.shape[2], seconds))
    return out


def _again(
    chosen: Options,
    theta,
    why: str | None,
    times: Expected | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> tuple[Callable[..., Tensor | None], Callable[[int], bool] | None] | None:
    """How later layers of a pass attend, and for which it holds; None where each must be asked.

    Args:
        chosen, theta: of this layer.
        why: why it is dense; None where it is not.
        times: what was expected; None where nothing was, as for texts that are too short.
        q, k, v: `[B, H, N, D]`.
    """
    # Of other sizes, and elsewhere, transformers repeats the keys that query heads share.
    plain = q.device.type in ("cuda", "cpu") and q.shape[3] == v.shape[3] <= 256
    densely = _attend_by_wrapper
    if plain:
        densely = partial(_attend_densely, q.shape[1] != k.shape[1])
    if why and times is None:
        return densely, None
    if isinstance(theta, tuple):
        return None

    def of_layer(layer: int) -> bool:
        dense_layer = layer in chosen.dense_layers
        return not dense_layer and chosen.theta(layer, query_heads) == theta

    query_heads = q.shape[1]
    same = not chosen.dense_layers and not isinstance(chosen.thetas, dict)
    config = chosen.config(theta)
    attend = implementation(choose_backend(q, chosen.backend, config)).anchor_attention
    how = densely if why else partial(_attend_sparsely, attend, config)
    return how, None if same else of_layer


def _attend_by_wrapper(module, q, k, v, dropout: float, scaling) -> Tensor:
    return dense(module, q, k, v, None, {"dropout": dropout, "scaling": scaling})


def _attend_densely(shared: bool, module, q, k, v, dropout: float, scaling) -> Tensor:
    """What transformers' wrapper comes to here; its own questions cost what ours do."""
    out = scaled_dot_product_attention(
        q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=shared
    )
    return out.transpose(1, 2).contiguous()


def _attend_sparsely(attend, config, module, q, k, v, dropout: float, scaling) -> Tensor | None:
    """None where something stands in the way, which `_sparse` knows about."""
    gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    head_dim = q.shape[3]
    if dropout or gradient or v.shape[3] != head_dim or torch.is_autocast_enabled(q.device.type):
        return None
    return attend(q, k, v, config, head_dim**-0.5 if scaling is None else scaling).transpose(1, 2)


def dense(module, query, key, value, mask: Tensor | None, given: dict) -> Tensor:
    """What `attn_implementation="sdpa"` computes, `[B, Nq, Hq, D]`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, mask, **given)[0]


def in_autocast_dtype(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As sdpa takes them: where autocast is on, in its dtype, unless they are float64."""
    device = q.device.type
    if not torch.is_autocast_enabled(device) or q.dtype == torch.float64:
        return q, k, v
    dtype = torch.get_autocast_dtype(device)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def _dense_causal(module, q: Tensor, k: Tensor, v: Tensor, given: dict) -> Tensor:
    """Dense attention of queries that are the last tokens, `[B, Nq, Hq, D]`.

    Fewer queries than keys need a mask, [Nq, Nk]: it is drawn for a strip of rows at a time.
    """
    n_queries, n_keys = q.shape[2], k.shape[2]
    if n_queries == n_keys:
        return dense(module, q, k, v, None, given)
    before, rows, found = n_keys - n_queries, max(1, STRIP // n_keys), []
    key = torch.arange(n_keys, device=q.device)
    for first in range(0, n_queries, rows):
        end = min(first + rows, n_queries)
        seen = before + end  # keys that the strip's last row sees
        mask = key[:seen] <= key[before + first : seen, None]
        part = q[:, :, first:end], k[:, :, :seen], v[:, :, :seen]
        found.append(dense(module, *part, mask[None, None], given))
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _tokens(x: Tensor, rows: slice, places: slice | Tensor) -> Tensor:
    """These tokens of `[B, H, N, D]`; without a view, which takes time, where they are all."""
    if rows == slice(0, x.shape[0]) and (
        isinstance(places, slice) and places == slice(0, x.shape[2])
    ):
        return x
    return x[rows][:, :, places]


def _warn_if_too_long(chosen: Options, tokens: int) -> None:
    """Once for each length, as Python shows warnings: thresholds of shorter texts fall short."""
    if chosen.longest is not None and (why := too_long(chosen.longest, tokens)):
        warnings.warn(why, stacklevel=2)


def _expected(q: Tensor, k: Tensor, theta, chosen: Options) -> Expected | None:
    """What the layer is expected to take; None where nobody asks or nothing was measured."""
    if not chosen.may_be_dense:
        return None
    return expected(q, k, chosen.sizes, theta if isinstance(theta, tuple) else (theta,))


def _sparse(
    q, k, v, theta, chosen: Options, given: dict, counted: bool
) -> tuple[Tensor, Part | None]:
    if any(x.requires_grad for x in (q, k, v)) and torch.is_grad_enabled():
        raise ValueError(
            "the model must run under torch.no_grad(): AnchorAttention has no backward pass. "
            "Train with attn_implementation='sdpa'"
        )
    if given["dropout"]:
        raise ValueError(
            f"attention dropout must be 0 with AnchorAttention, got {given['dropout']}: "
            "call model.eval()"
        )
    q, k, v = in_autocast_dtype(q, k, v)
    by_head = theta if isinstance(theta, tuple) else None
    scale = q.shape[3] ** -0.5 if given["scaling"] is None else given["scaling"]
    wide = max(q.shape[3], v.shape[3])  # in some models values are shorter than keys
    config = chosen.sizes if by_head else chosen.config(theta)
    # Without a trace the kernels need not know how long the list is, and the host does not wait.
    found = anchor_attention(
        *(_widened(x, wide) for x in (q, k, v)),
        config,
        scale,
        backend=chosen.backend,
        return_trace=counted,
        theta_by_head=by_head,
    )
    out, trace = found if counted else (found, None)
    out = out[..., : v.shape[3]]
    part = None
    if trace is not None:
        choice = choose_backend(q, chosen.backend, config)
        kept = density(trace.stripes, config, q.shape[2], k.shape[2]).mean(0)
        tail = q.shape[0] * min(config.tail, q.shape[2])
        part = Part("anchor", f"{choice.name}: {choice.reason}", _pairs(q, k), kept, tail)
    return out.transpose(1, 2), part


def _widened(x: Tensor, head_dim: int) -> Tensor:
    """Zeros behind each token, which change no score; none, and no copy, where it fits."""
    missing = head_dim - x.shape[3]
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def _together(found: list[Tensor], texts: list[Tokens], query, value) -> Tensor:
    """The outputs of all texts in their places."""
    batch, heads, n_queries, _ = query.shape
    shape = (batch, n_queries, heads, value.shape[3])
    if len(found) == 1 and found[0].shape == shape:
        return found[0]
    out = (found[0] if found else query).new_zeros(shape)
    for part, text in zip(found, texts, strict=True):
        out[text.rows, text.queries] = part
    return out


def _why_dense(module, chosen: Options, kwargs: dict, mask: Tensor | None) -> str | None:
    """Why the whole layer keeps dense attention; None when it need not.

    A layer has a window or chunks where its mask is drawn for them: where they are as long as the
    prompt, it is not, and names of layers say nothing. Some layers of a model with windows do not
    know of theirs, and some get other masks, as Gemma 3's for the tokens of an image.
    """
    kinds = getattr(module.config, "layer_types", None) or ()
    kind = kinds[module.layer_idx] if module.layer_idx < len(kinds) else "full_attention"
    windows = [getattr(x, "sliding_window", None) for x in (module, module.config)]
    drawn = mask is not None and not is_segments(mask)
    if drawn and (kwargs.get("sliding_window") or windows[0] or kind != "full_attention"):
        return "the layer has a window of its own"
    if drawn and windows[1]:
        return "the layer has a mask that is more than causal"
    if module.layer_idx in chosen.dense_layers:
        return "dense_layers names the layer"
    return None


def _why_short(n_queries: int, n_keys: int, chosen: Options) -> str | None:
    """Why so few tokens are served by dense attention; None when they are enough."""
    if n_keys <= chosen.sizes.group_size:
        return f"{n_keys} keys are no more than a group"
    if n_queries < max(chosen.sizes.block_size, 3):  # two come without segments
        return f"{n_queries} queries are fewer than a block"
    return None


def _dense_part(why: str, q: Tensor, k: Tensor, share: float) -> Part:
    return Part(
        "dense", why, _pairs(q, k), torch.full((q.shape[1],), share, dtype=torch.float64), 0
    )


def _pairs(q: Tensor, k: Tensor) -> int:
    return q.shape[0] * causal_pairs(q.shape[2], k.shape[2])
