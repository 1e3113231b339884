"""Real activations: the heads that come with the package, and layers of SmolLM2 where it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from anchor_lab.experiments.side_by_side.blocks import block_mass
from anchor_lab.experiments.smollm2.prompts import repository_text
from anchor_models import capture_qkv, load_bundled_heads, load_pretrained
from anchor_models.bundled import FILES
from anchor_models.smollm2 import NAME, cache_folder, stretch

BUNDLED = "nine heads"
KEPT = 0.05  # of the keys that are planted where there are no real ones


@dataclass(frozen=True, eq=False)
class Activations:
    """What attention was given.

    Attributes:
        name: for the table.
        q, k, v: `[1, Hq, N, D]`, `[1, Hkv, N, D]` and as k.
        scale: factor of q·k.
    """

    name: str
    q: Tensor
    k: Tensor
    v: Tensor
    scale: float

    @cached_property
    def mass(self) -> Tensor:
        """`block_mass`: where the dense softmax has its mass."""
        return block_mass(self.q, self.k, self.scale)


def head_columns(shape: tuple[int, int, int]) -> dict[str, int]:
    """The columns of a row that say of which heads it is: (Hq, Hkv, D)."""
    return dict(zip(("q_heads", "kv_heads", "head_dim"), shape, strict=True))


def nine_heads(tokens: int, dtype: torch.dtype, device: str) -> Activations:
    """The bundled heads of three layers of SmolLM2 as one layer's: 9 query and 3 kv heads of 64.

    Args:
        tokens: the first so many of 8192.
        dtype, device: of the tensors.

    Raises:
        ValueError: the heads' layers scale their scores differently.
    """
    captured = [
        x.causal().first(tokens) for x in load_bundled_heads(dtype=dtype).captured.values()
    ]
    if len(scales := {x.scaling for x in captured}) > 1:
        raise ValueError(f"the bundled heads must have one scaling, got {sorted(scales)}")
    q, k, v = (torch.cat([getattr(x, name) for x in captured], 1).to(device) for name in "qkv")
    return Activations(BUNDLED, q, k, v, captured[0].scaling)


def is_here(model: str) -> bool:
    """Whether the model needs no network: another name than SmolLM2's, or a folder with it."""
    folders = (Path(NAME), cache_folder())
    return model != NAME or any(all((x / file).is_file() for file in FILES) for x in folders)


class Reader:
    """A model that reads a stretch of this repository; loaded when it is first asked for.

    Args:
        name: as `load_pretrained` takes it.
        device: where it runs; in bfloat16 on a CUDA device, else in float32.

    Raises:
        FileNotFoundError: when asked for, it is SmolLM2 and no folder here holds it.
    """

    def __init__(self, name: str, device: str):
        self.name, self.device = name, device
        self.dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        self._loaded = None

    @property
    def model(self):
        return self._load()[0]

    def tokens(self, count: int) -> Tensor:
        """The first tokens of the text, `[1, N]` int64, on the device.

        Raises:
            ValueError: the text is shorter.
        """
        body = self._load()[1]
        if len(body) < count:
            raise ValueError(f"the text has {len(body)} tokens, {count} are wanted")
        return torch.tensor([body[:count]], device=self.device)

    def layers(self, count: int, wanted: Sequence[int]) -> Iterator[Activations]:
        """What layers are given for the first tokens, stretched by YaRN where they are many."""
        with stretch(self.model, count):
            found = capture_qkv(self.model, self.tokens(count), wanted, dtype=self.dtype)
        for layer, x in sorted(found.items()):
            x = x.causal().widened().to(self.device)
            yield Activations(f"layer {layer}", x.q, x.k, x.v, x.scaling)

    def _load(self):
        if self._loaded is None:
            if not is_here(self.name):
                raise FileNotFoundError(
                    f"no folder {NAME} here and none in the cache: `make smollm2` fetches it"
                )
            model, tokenizer = load_pretrained(self.name, self.dtype, self.device)
            self._loaded = model, tokenizer(repository_text(Path()), verbose=False).input_ids
        return self._loaded
