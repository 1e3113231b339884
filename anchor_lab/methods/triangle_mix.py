"""TriangleMix (arXiv 2507.21526): deep layers drop the middle of the prompt, shallow ones do not.

Its authors find that what the middle queries attend to in deep layers hardly reaches the answer.
So it is no method of a layer, but says which method stands in which layer of a model. It can only
be judged in a whole model: recall of a deep layer's middle rows is what it gives away on purpose.
"""

from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar

from torch import Tensor

from anchor_lab.methods.dense import Dense
from anchor_lab.methods.method import Method, check_integer, check_knobs, integer, number
from anchor_lab.methods.selection import Selection, with_tail
from anchor_lab.methods.streaming import StreamingLLM
from anchor_ref.inputs import check_type


@dataclass(frozen=True)
class Triangle(Method):
    """The first keys, the nearest ones, and every key for the last rows.

    The pattern of TriangleMix's deep layers. Nothing is scored.

    Args:
        init: first keys that every row keeps, at least 0.
        window: nearest keys of a row, its own included, at least 1.
        last: rows at the end that keep every key, at least 0.
    """

    claim: ClassVar[str] = (
        "Attention 15.3 times faster in deep layers at 128K tokens: Llama-3.1-8B, GPUs not named "
        "in what could be read here (arXiv 2507.21526)."
    )
    init: int = integer(8, least=0)
    window: int = integer(512, least=1)
    last: int = integer(128, least=0)

    @classmethod
    def sweep(cls) -> list["Triangle"]:
        """Windows that double from 128 to 8192; each keeps what the one before keeps."""
        return [cls(window=2**p) for p in range(7, 14)]

    @classmethod
    def small(cls) -> "Triangle":
        return cls(2, 5, 4)

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        streaming = StreamingLLM(self.init, self.window)
        return with_tail(streaming.choose(q, k, scale), self.last)


@dataclass(frozen=True)
class TriangleMix:
    """A method for the shallow layers of a model and a triangle for the deep ones.

    Args:
        shallow: the method of the first layers; dense as published, or any other.
        deep: the method of the others.
        share: of the layers that are shallow, in [0, 1], rounded up: of 32 layers the 16 first.

    Raises:
        TypeError: `shallow` or `deep` is no method.
        ValueError: `share` is outside its range.
    """

    claim: ClassVar[str] = (
        "Time to the first token 12 % to 32 % shorter for 32K to 128K tokens, accuracies as with "
        "dense attention: Llama-3.1-8B, GPUs not named in what could be read here "
        "(arXiv 2507.21526)."
    )
    shallow: Method = field(default_factory=Dense)
    deep: Method = field(default_factory=Triangle)
    share: float = number(0.5, 0.0, 1.0)

    def __post_init__(self):
        check_type("shallow", self.shallow, Method)
        check_type("deep", self.deep, Method)
        check_knobs(self)

    @classmethod
    def small(cls) -> "TriangleMix":
        """Whose deep layers leave something out of a few tokens."""
        return cls(deep=Triangle.small())

    def in_layer(self, layer: int, layers: int) -> Method:
        """The method of one layer.

        Args:
            layer: from 0.
            layers: of the model.

        Raises:
            ValueError: `layer` is not in 0..layers - 1.
        """
        check_integer("layers", layers, 1)
        check_integer("layer", layer, 0)
        if layer >= layers:
            raise ValueError(f"layer must be in 0..{layers - 1}, got {layer}")
        return self.shallow if layer < ceil(self.share * layers) else self.deep
