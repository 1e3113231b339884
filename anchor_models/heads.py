"""Heads of a real language model that come with the package: SmolLM2-135M-Instruct on one text.

The text is a chat of 8192 tokens: prose of this project's course, a number hidden in it, and the
question about the number at its end. `anchor_lab.experiments.smollm2.bundle` chose the heads by
measurement and wrote them. SmolLM2 is under Apache-2.0; its weights were 4-bit ones made dense.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from anchor_models.capture import Captured, load_capture

CAPTURE, ABOUT = "heads.safetensors", "heads.json"


@dataclass(frozen=True, eq=False)
class BundledHeads:
    """What some heads of the model were given, and what is known of all.

    Attributes:
        captured: by layer, one kv head or more with the query heads that read it.
        words: the text, a string for each token.
        fact: the tokens of the sentence that holds the number.
        answer: the number.
        chosen: (layer, kv head) by what it was chosen for: "retrieval", "stripes", "diffuse".
        heads: of every head of the model what was measured, see the module that wrote it.
    """

    captured: dict[int, Captured]
    words: tuple[str, ...]
    fact: range
    answer: str
    chosen: dict[str, tuple[int, int]]
    heads: tuple[dict, ...]


def bundled_heads_path() -> Path:
    """Folder with the capture and what is known of it."""
    return Path(__file__).parent / "captured"


def load_bundled_heads(
    path: Path | None = None, dtype: torch.dtype = torch.float32
) -> BundledHeads:
    """The heads that come with the package; nothing is downloaded.

    Args:
        path: a folder that `experiments.smollm2.bundle` wrote; None means the package's.
        dtype: of the tensors; they are stored in bfloat16, as the model's attention gets them.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing in it.
    """
    folder = bundled_heads_path() if path is None else Path(path)
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return BundledHeads(
        {
            layer: replace(x, q=x.q.to(dtype), k=x.k.to(dtype), v=x.v.to(dtype))
            for layer, x in load_capture(folder / CAPTURE).items()
        },
        tuple(about["words"]),
        range(*about["fact"]),
        about["answer"],
        {kind: tuple(place) for kind, place in about["chosen"].items()},
        tuple(about["heads"]),
    )
