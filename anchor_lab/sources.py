"""What is compared: a model reading a text, a saved capture of any model, planted stripes."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anchor_models.capture import Captured, capture_qkv, load_capture
from anchor_models.models import check_device
from anchor_models.planted import planted_stripes
from anchor_models.probe import attention_calls
from anchor_models.texts import LENGTH, Text


@dataclass(frozen=True, eq=False)
class Source:
    """Queries, keys and values of one prompt, and what tells them from any others.

    Attributes:
        name: what rows of a table call the prompt.
        title: what it is and where it is from, for people.
        about: the same for a later run, which must not add to the rows of another source; JSON,
            with "length", N.
        layers, heads: indices of the layers that attend, and of their query heads, ascending.
        key_heads: how many key heads a layer has; each is read by equally many query heads.
        device: what methods are to be run on.
        capture: from layers, and a folder for what is too large for memory, to those layers on
            the CPU. Called only when something is left to measure.
        packages: whose versions also matter, beside this one and torch.
    """

    name: str
    title: str
    about: dict
    layers: Sequence[int]
    heads: Sequence[int]
    key_heads: int
    device: torch.device
    capture: Callable[[Sequence[int], Path], Mapping[int, Captured]]
    packages: Sequence[str] = ()

    @property
    def length(self) -> int:
        """N, tokens."""
        return self.about["length"]

    def first_readers(self) -> list[int]:
        """The first query head of each key head."""
        return list(self.heads[:: len(self.heads) // self.key_heads])


def read_by_model(model, name: str, text: Text, layers: Sequence[int] | None = None) -> Source:
    """What a model's attention layers are given while it reads a text, in the model's dtype.

    Args:
        model: a transformers causal model; methods run on its device.
        name: what it was loaded by.
        text: one prompt.
        layers: those that attend; None finds out.

    Raises:
        ValueError: the prompt is longer than the model's positions, or no layer attends.
    """
    length, config = text.tokens.shape[1], model.config.get_text_config()
    check_length(model, length)
    if layers is None:
        layers = list(attention_calls(model, text.tokens.to(model.device)))
    heads = config.num_attention_heads

    def capture(layers: Sequence[int], folder: Path) -> Mapping[int, Captured]:
        tokens = text.tokens.to(model.device)
        return capture_qkv(model, tokens, layers, dtype=None, save_to=folder)

    return Source(
        name=text.name,
        title=f"{name}, {text.name}",
        about={
            "model": name,
            "weights": fingerprint(model.parameters()),
            "config_sha256": fingerprint([], model.config.to_json_string()),
            "dtype": _name_of(model.dtype),
            "text": text.name,
            "text_sha256": text.sha256,
            "length": length,
        },
        layers=layers,
        heads=range(heads),
        key_heads=getattr(config, "num_key_value_heads", None) or heads,
        device=model.device,
        packages=["transformers"],
        capture=capture,
    )


def saved_capture(
    path: str | Path, length: int | None = None, device: str | torch.device = "cpu"
) -> Source:
    """What `save_capture` wrote into a file, or `capture_qkv` into a folder, of any model.

    Args:
        path: of the file or folder.
        length: N, tokens; a longer capture is cut. No query of a causal model depends on later
            tokens, so its beginning is what the model computes for the beginning of the prompt
            (other than with rotary frequencies that are chosen by the prompt's length).
        device: what methods are to be run on.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: there is no capture.
        ValueError: the file holds none or is broken, its layers differ in tokens or heads, or
            `length` is below 1 or more than it holds; or `device` cannot be had.
    """
    from safetensors import SafetensorError

    device = check_device(device)
    path = Path(path).expanduser()
    try:
        captured = load_capture(path)
    except SafetensorError as error:
        raise ValueError(f"capture must hold whole safetensors, got {path}: {error}") from error
    name = path.resolve().name
    shapes = {(x.q.shape[2], x.query_heads, x.k.shape[1]) for x in captured.values()}
    if len(shapes) > 1:
        raise ValueError(
            f"capture must hold the same tokens and heads in all layers, those of {name} differ"
        )
    ((there, heads, key_heads),) = shapes
    length = there if length is None else length
    if not 1 <= length <= there:
        raise ValueError(f"length must be in 1..{there}, the tokens of {name}, got {length}")
    tensors = [getattr(x, part) for x in captured.values() for part in "qkv"]
    tensors += [x.texts for x in captured.values() if x.texts is not None]
    facts = [
        (x.layer, x.scaling, x.sliding_window, x.softcap, x.query_heads) for x in captured.values()
    ]
    return Source(
        name=name,
        title=f"capture {name}",
        about={
            "capture": name,
            "capture_sha256": fingerprint(tensors, repr(facts)),
            "dtype": _name_of(tensors[0].dtype),
            "length": length,
        },
        layers=sorted(captured),
        heads=heads,
        key_heads=key_heads,
        device=device,
        capture=lambda layers, folder: {x: captured[x].first(length) for x in layers},
    )


def planted(
    length: int | None = None,
    density: float = 0.03,
    seed: int = 0,
    device: str | torch.device = "cpu",
    *,
    q_heads: int = 8,
    kv_heads: int = 2,
    head_dim: int = 64,
) -> Source:
    """One layer of `planted_stripes`, in float32, the same on every device.

    Args:
        length: N, tokens; None takes as many as of a made-up text.
        density, seed, q_heads, kv_heads, head_dim: as in `planted_stripes`.
        device: what methods are to be run on.

    Raises:
        ValueError: `length` is below 1, or `device` cannot be had, or see
            `planted_stripes`.
    """
    device = check_device(device)
    length = LENGTH if length is None else length
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    sizes = {"q_heads": q_heads, "kv_heads": kv_heads, "head_dim": head_dim}
    x = planted_stripes(length, density=density, seed=seed, **sizes)
    layer = Captured(x.q, x.k, x.v, head_dim**-0.5, layer=0)
    return Source(
        name="planted",
        title=f"planted stripes, {density:g} of the keys, seed {seed}",
        about={"planted": {"density": density, "seed": seed, **sizes}, "length": length},
        layers=[0],
        heads=range(q_heads),
        key_heads=kv_heads,
        device=device,
        capture=lambda layers, folder: {0: layer},
    )


def check_length(model, length: int) -> None:
    """Refuse, with a ValueError, a prompt that is longer than the model's positions."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and length > most:
        raise ValueError(f"length must be at most the model's {most} positions, got {length}")


@torch.no_grad()
def fingerprint(tensors: Iterable[Tensor], more: str = "") -> str:
    """Which tensors these are: SHA-256 of the dtype, the shape and every byte of each.

    A GiB takes 0.6 s on a CPU with SHA instructions.

    Args:
        tensors: of any dtype, on any device; one at a time is brought to the CPU.
        more: what else is to tell them apart.
    """
    found = hashlib.sha256(more.encode())
    for x in tensors:
        found.update(f"{x.dtype} {tuple(x.shape)} ".encode())
        found.update(x.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
