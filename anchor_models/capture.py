"""Queries, keys and values of any transformers causal model, as its attention sees them."""

import json
import operator
import stat
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.weak import WeakIdKeyDictionary

from anchor_models.interface import BEYOND_QKV, beyond_causal, replaced_attention
from anchor_models.probe import attention_calls
from anchor_models.seen import OtherMaskError, Seen, read_mask

# A capture holds whether scores are capped, and nothing else of this kind: attention computed from
# it would not be the model's.
_BEYOND = {name: what for name, what in BEYOND_QKV.items() if name != "softcap"}


# What a file says of a layer: tensors by name, numbers as JSON.
_TENSORS = ("q", "k", "v")
_NUMBERS = ("scaling", "sliding_window", "softcap", "heads")

# What the innermost capture of this context has found so far.
_running: ContextVar[dict | None] = ContextVar("capture_qkv", default=None)


@dataclass(frozen=True, eq=False)
class Captured:
    """What one attention layer was given.

    Attributes:
        q: queries after the rotary embedding, `[B, Hq, N, D]`.
        k: keys after the rotary embedding, before any repetition, `[B, Hkv, N, D]`. Query head h
            reads key head h // (Hq // Hkv), as in the model.
        v: values, `[B, Hkv, N, Dv]`; Dv is D in nearly every model.
        scaling: the factor of q·k that the layer uses.
        sliding_window: how many keys a query of this layer sees, itself among them; None when it
            sees all earlier ones, be it that its window is longer than the prompt.
        softcap: c where the layer uses c·tanh(score / c) in place of the score, else None.
        layer: the layer's index in the model.
        heads: the model's indices of the query heads in q.
        texts: of each token the text that it belongs to, from 0 in each row, and -1 for padding,
            `[B, N]` int32: tokens see their own text alone. None where each row is one text.
    """

    q: Float[Tensor, "B Hq N D"]
    k: Float[Tensor, "B Hkv N D"]
    v: Float[Tensor, "B Hkv N Dv"]
    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None
    layer: int | None = None
    heads: tuple[int, ...] | None = None
    texts: Int[Tensor, "B N"] | None = None

    @property
    def query_heads(self) -> tuple[int, ...]:
        """The model's indices of the query heads in q; where none were chosen, all in order."""
        return tuple(range(self.q.shape[1])) if self.heads is None else self.heads

    def to(self, device: str | torch.device) -> "Captured":
        """The same with its tensors on a device."""
        texts = self.texts if self.texts is None else self.texts.to(device)
        q, k, v = (x.to(device) for x in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v, texts=texts)

    def first(self, tokens: int) -> "Captured":
        """The first tokens alone: in a causal layer, what it is given for them alone."""
        q, k, v = (x[:, :, :tokens] for x in (self.q, self.k, self.v))
        texts = self.texts if self.texts is None else self.texts[:, :tokens]
        # Padding or further texts that come later are gone.
        return replace(
            self, q=q, k=k, v=v, texts=None if texts is None or not texts.any() else texts
        )

    def part(self, kv_heads: Sequence[int]) -> "Captured":
        """Some of the key heads, by their places in k, with all query heads that read them."""
        shared = self.q.shape[1] // self.k.shape[1]
        places = [key * shared + i for key in kv_heads for i in range(shared)]
        return replace(
            self,
            q=self.q[:, places],
            k=self.k[:, list(kv_heads)],
            v=self.v[:, list(kv_heads)],
            heads=tuple(self.query_heads[place] for place in places),
        )

    def widened(self) -> "Captured":
        """q, k and v in one width: zeros behind the narrower change no score and no output."""
        wide = max(self.q.shape[-1], self.v.shape[-1])
        q, k, v = (pad(x, (0, wide - x.shape[-1])) for x in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v)

    def causal(self) -> "Captured":
        """This capture, where the layer computes softmax(q·k) over all earlier keys and no more.

        Raises:
            ValueError: the layer hides keys behind a sliding window, has padding or packed texts
                among its tokens, or caps its scores; measured as if it did not, it would seem
                what it is not.
        """
        if self.texts is not None:
            raise ValueError(
                f"layer {self.layer} was given padding or packed texts, of which tokens see their "
                "own alone: it cannot be measured as causal attention; capture each text by itself"
            )
        if self.sliding_window is not None and self.sliding_window < self.k.shape[2]:
            raise ValueError(
                f"layer {self.layer} sees a window of {self.sliding_window} keys, "
                f"not all {self.k.shape[2]}: it cannot be measured as causal attention"
            )
        if self.softcap is not None:
            raise ValueError(
                f"layer {self.layer} caps its scores at {self.softcap}: "
                "it cannot be measured as softmax attention over them"
            )
        return self


@torch.no_grad()
def capture_qkv(
    model,
    input_ids: Int[Tensor, "B N"],
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    *,
    attention_mask: Int[Tensor, "B N"] | Bool[Tensor, "B N"] | None = None,
    position_ids: Int[Tensor, "B N"] | None = None,
    dtype: torch.dtype | None = torch.bfloat16,
    save_to: str | Path | None = None,
) -> dict[int, Captured]:
    """Run the model and keep what its attention layers are given.

    The model's own attention does the work, so every layer sees what it always sees. The run ends
    at the last layer asked for: later layers and the logits are never computed, and no cache of
    keys and values is kept. Before, the model runs on the prompt's first two tokens, which tells
    the layers that attend, and how often. It is left as it was found, also after an exception.
    Other threads may run it meanwhile, and capture for themselves.

    Args:
        model: a transformers causal language model.
        input_ids: prompts, on the model's device.
        layers: which layers to keep; None means all that compute attention.
        heads: which query heads to keep; None means all. They come in ascending order, with
            exactly the key heads that they read. To keep "head h reads key head h // (Hq // Hkv)"
            true, every key head must serve equally many of them: one head, one from each group,
            or whole groups will do.
        attention_mask: 1 for tokens, 0 for padding; None means no padding. What the model computes
            at padding is captured like the rest.
        position_ids: of each token; None leaves it to the model, which counts from 0, padding
            included.
        dtype: what to store; None means as computed.
        save_to: folder that gets one safetensors file for each layer as soon as it is captured.
            It must hold no capture yet. After an exception nothing is left in it.

    Returns:
        One `Captured` for each layer, by its index, on the CPU. Of other layers nothing is kept.
        With `save_to` the tensors lie in the files and are read from there when they are used.

    Raises:
        TypeError: an argument is not of the kind described.
        ValueError: a layer, head or token does not exist, heads cannot be chosen so, a shape does
            not fit, the model does not use transformers' attention interface, or a layer's
            attention is more than causal softmax attention over q, k and v (learned sinks, a
            bias, chunks, both directions, several times in one pass), as its mask has it.
        FileExistsError: `save_to` already holds a capture.
    """
    config = _text_config(model)
    _check_tensors(model, input_ids, attention_mask, position_ids)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating-point torch.dtype or None, got {dtype!r}")
    asked = _indices("layers", layers, config.num_hidden_layers)
    wanted = _attending(model, input_ids, None if layers is None else asked)
    chosen = None if heads is None else _indices("heads", heads, config.num_attention_heads)
    folder = None if save_to is None else _new_folder(Path(save_to))
    captured: dict[int, Captured | Path] = {}
    looks = WeakIdKeyDictionary()  # layers share their masks, which are large
    told = {"padding": attention_mask, "positions": position_ids}

    def look(module, query, key, mask, kwargs) -> Seen:
        if mask is None or len(mask.shape) == 2:  # layers have windows beside it
            return read_mask(module, query, key, mask, kwargs, **told)
        if mask not in looks:
            looks[mask] = read_mask(module, query, key, mask, kwargs, **told)
        return looks[mask]

    def make(original):
        def attention(module, query, key, value, attention_mask, *args, **kwargs):
            layer = getattr(module, "layer_idx", None)
            # A capture that a hook began meanwhile passes by here, with what is its own.
            if layer in wanted and _running.get() is captured:
                _refuse_other_attention(module, layer, attention_mask, kwargs)
                try:
                    seen = look(module, query, key, attention_mask, kwargs)
                except OtherMaskError as what:
                    raise _other_attention(module, layer, str(what)) from None
                scaling = kwargs.get("scaling")
                q_heads, kv_heads = _pairing(chosen, query.shape[1], key.shape[1])
                found = Captured(
                    _copy(query, q_heads, dtype),
                    _copy(key, kv_heads, dtype),
                    _copy(value, kv_heads, dtype),
                    float(query.shape[-1] ** -0.5 if scaling is None else scaling),
                    seen.window,
                    kwargs.get("softcap"),
                    layer,
                    tuple(q_heads),
                    seen.texts if seen.texts is None else seen.texts.cpu(),
                )
                captured[layer] = found if folder is None else _save_layer(found, folder)
                if len(captured) == len(wanted):
                    raise _AllCapturedError
            return original(module, query, key, value, attention_mask, *args, **kwargs)

        return attention

    token = _running.set(captured)
    try:
        with replaced_attention(model, make):
            # The model without its head: where a run does not end early, no logits are formed.
            model.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                use_cache=False,
                **({} if position_ids is None else {"position_ids": position_ids}),
                **_switched_off(config),
            )
    except _AllCapturedError:
        pass
    except BaseException:
        if folder is not None:
            for path in captured.values():
                path.unlink()
        raise
    finally:
        _running.reset(token)
    if folder is not None:
        return load_capture(folder)
    return {layer: captured[layer] for layer in sorted(captured)}


def save_capture(captured: dict[int, Captured], path: str | Path) -> None:
    """Write captured layers to one safetensors file, to be read by `load_capture`."""
    from safetensors.torch import save_file

    tensors, about = {}, {}
    for layer, found in captured.items():
        names = _TENSORS if found.texts is None else (*_TENSORS, "texts")
        tensors |= {f"{layer}.{name}": getattr(found, name).contiguous() for name in names}
        about[str(layer)] = json.dumps({name: getattr(found, name) for name in _NUMBERS})
    path = Path(path)
    # safetensors makes files that their owner alone may read. Others get what any new file here
    # would have, or what the file that is written over has.
    new = not path.exists()
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(tensors, path, metadata=about)
    except BaseException:
        if new:
            path.unlink(missing_ok=True)
        raise
    path.chmod(mode)


def load_capture(path: str | Path) -> dict[int, Captured]:
    """Read what `save_capture` wrote into a file, or `capture_qkv` into a folder.

    The tensors are mapped from the files: a layer takes memory only once it is used.

    Raises:
        FileNotFoundError: there is no such file, or no capture in the folder.
        ValueError: the file holds no capture.
    """
    path = Path(path)
    files = _layer_files(path) if path.is_dir() else [path] * path.is_file()
    if not files:
        raise FileNotFoundError(f"path must be a capture's file or folder, found none at {path}")
    return {layer: found for file in files for layer, found in _load_file(file).items()}


class _AllCapturedError(Exception):
    """Ends the model's run when there is nothing more to capture."""


def _text_config(model):
    """The configuration of the language model, after a look at whether it can be captured."""
    if not hasattr(getattr(model, "config", None), "get_text_config"):
        raise TypeError(f"model must be a transformers model, got {type(model).__name__}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"model must be a causal language model, got encoder-decoder {type(model).__name__}"
        )
    return model.config.get_text_config()


def _check_tensors(model, input_ids, attention_mask, position_ids) -> None:
    given = {"attention_mask": attention_mask, "position_ids": position_ids}
    for name, tensor in {"input_ids": input_ids, **given}.items():
        if tensor is None and name in given:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.is_floating_point() or tensor.is_complex():
            raise TypeError(f"{name} must hold integers, got {tensor.dtype}")
        if tensor.shape != input_ids.shape:
            raise ValueError(
                f"{name} must have input_ids' shape {tuple(input_ids.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ValueError(
            "input_ids must have shape (batch, tokens) with at least one token, "
            f"got {tuple(input_ids.shape)}"
        )
    size = getattr(model.get_input_embeddings(), "num_embeddings", None)
    least, largest = (int(end) for end in input_ids.aminmax())
    if size is not None and (least < 0 or largest >= size):
        wrong = least if least < 0 else largest
        raise ValueError(f"input_ids must be in 0..{size - 1}, the vocabulary, got {wrong}")


def _indices(name: str, asked: Iterable[int] | None, available: int) -> set[int]:
    if asked is None:
        return set(range(available))
    try:
        # Tensors and arrays give elements that are integers only by this call.
        chosen = [operator.index(index) for index in asked]
    except TypeError as error:
        raise TypeError(f"{name} must be a list of integers or None, got {asked!r}") from error
    if not chosen:
        raise ValueError(f"{name} must name at least one, got {asked!r}")
    for index in chosen:
        if not 0 <= index < available:
            raise ValueError(f"{name} must be in 0..{available - 1}, got {index}")
    return set(chosen)


def _attending(model, input_ids: Tensor, asked: set[int] | None) -> set[int]:
    """The layers to capture, once it is known that each of them attends, and once only.

    What is captured of a layer that attends several times would depend on where the run ends.
    """
    calls = attention_calls(model, input_ids)
    wanted = set(calls) if asked is None else asked
    if missing := sorted(wanted - calls.keys()):
        raise ValueError(
            f"layers must be layers that compute attention, got {missing}: those of "
            f"{type(model).__name__} are {list(calls)}"
        )
    if several := sorted(layer for layer in wanted if calls[layer] > 1):
        raise ValueError(
            "layers must be plain causal attention over q, k and v, got layer "
            f"{several[0]} of {type(model).__name__}, which attends {calls[several[0]]} times"
        )
    return wanted


def _pairing(chosen: set[int] | None, q_heads: int, kv_heads: int) -> tuple[list, list]:
    """The query heads to keep and the key heads that they read, both ascending."""
    if chosen is None:
        return list(range(q_heads)), list(range(kv_heads))
    shared = q_heads // kv_heads
    served = [head // shared for head in sorted(chosen)]
    read = sorted(set(served))
    if len({served.count(head) for head in read}) > 1:
        raise ValueError(
            f"heads must take equally many query heads from each key head, got {sorted(chosen)} "
            f"where {shared} in a row share one"
        )
    return sorted(chosen), read


def _copy(x: Tensor, heads: list[int], dtype: torch.dtype | None) -> Tensor:
    """Those heads on the CPU, head by head: no second whole tensor on the model's device."""
    batch, _, tokens, dim = x.shape
    kept = torch.empty(batch, len(heads), tokens, dim, dtype=dtype or x.dtype)
    for place, head in enumerate(heads):
        kept[:, place].copy_(x[:, head])
    return kept


def _switched_off(config) -> dict[str, bool]:
    """Further outputs that the configuration asks for, refused for this run.

    transformers 4 collects them by wrapping the layers, and an early end would leave the wrapping
    on. Only what is asked for is named: a model that knows of none would not take the argument.
    """
    names = ("output_attentions", "output_hidden_states")
    return {name: False for name in names if getattr(config, name, False)}


def _refuse_other_attention(module, layer: int, attention_mask, kwargs: dict) -> None:
    """Refuse a layer whose attention the capture could not repeat."""
    masked = attention_mask is not None
    if found := beyond_causal(module, kwargs, masked=masked, table=_BEYOND):
        raise _other_attention(module, layer, found[0])


def _other_attention(module, layer: int, what: str) -> ValueError:
    return ValueError(
        f"layers must be plain causal attention over q, k and v, got layer {layer} of "
        f"{type(module).__name__} with {what}"
    )


def _layer_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("layer_*.safetensors"))


def _new_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if _layer_files(folder):
        raise FileExistsError(f"save_to must hold no capture yet, got {folder}")
    return folder


def _save_layer(found: Captured, folder: Path) -> Path:
    path = folder / f"layer_{found.layer:04d}.safetensors"
    save_capture({found.layer: found}, path)
    return path


def _load_file(path: Path) -> dict[int, Captured]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = {name: x for name, x in (file.metadata() or {}).items() if name.isdecimal()}
        if not about:
            raise ValueError(f"path must hold a capture, got other tensors in {path}")
        found = {}
        for layer in sorted(about, key=int):
            numbers = json.loads(about[layer])
            numbers["heads"] = numbers["heads"] and tuple(numbers["heads"])
            names = {x.removeprefix(f"{layer}.") for x in file.keys() if x.startswith(f"{layer}.")}  # noqa: SIM118
            tensors = {name: file.get_tensor(f"{layer}.{name}") for name in names}
            found[int(layer)] = Captured(**tensors, layer=int(layer), **numbers)
    return found
