"""What every method is: a frozen record of its knobs that can choose keys."""

from abc import ABC, abstractmethod
from dataclasses import field, fields
from numbers import Integral, Real
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from anchor_lab.methods.selection import Selection, with_tail
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_inputs, check_type


class Method(ABC):
    """A way to choose the keys of each query; a subclass is a frozen dataclass of its knobs.

    Knobs are declared by `integer` and `number`, with the range that is allowed. The first
    sentence of its docstring says how it chooses.

    Attributes:
        heads_decide_together: whether what a query head keeps depends on other query heads, so
            that heads looked at one by one would keep something else.
        claim: what its authors say of it: number, model, hardware, source; empty where it is no
            published method.

    Raises:
        ValueError: a knob is outside its range; the message names knob, value and range.
    """

    heads_decide_together: ClassVar[bool] = False
    claim: ClassVar[str] = ""

    def __post_init__(self):
        check_knobs(self)

    @classmethod
    @abstractmethod
    def sweep(cls) -> list["Method"]:
        """Configurations from the sparsest to the densest, for a curve."""

    @classmethod
    def small(cls) -> "Method":
        """A configuration that leaves something out of a few dozen tokens, for a picture."""
        return cls.sweep()[0]

    @abstractmethod
    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        """`select` on inputs that have been checked."""

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
        *,
        tail: int = 0,
    ) -> Selection:
        """The keys that each query keeps.

        Some methods keep their last queries exact as published, others do not: one tail for all
        makes them comparable.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.
            tail: how many of the last queries keep every key, see `selection.with_tail`.

        Raises:
            TypeError, ValueError: see `inputs.check_inputs`; queries and keys differ in number; or
                `tail` is no integer of at least 0.
        """
        return with_tail(self.choose(q, k, check_prompt(q, k, scale)), tail)


def check_knobs(record) -> None:
    """Refuse a record with a knob outside the range it was declared with, by a ValueError."""
    for knob in fields(record):
        if "check" in knob.metadata:
            knob.metadata["check"](knob.name, getattr(record, knob.name))


def integer(default: int | None, least: int, optional: bool = False) -> Any:
    """A knob that is an integer of at least `least`, or None where it is `optional`."""

    def check(name: str, value: object) -> None:
        if not (optional and value is None):
            check_integer(name, value, least)

    return field(default=default, metadata={"check": check})


def number(default: float | None, least: float, most: float, optional: bool = False) -> Any:
    """A knob that is a real number in [least, most], or None where it is `optional`."""

    def check(name: str, value: object) -> None:
        if optional and value is None:
            return
        if not isinstance(value, Real) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name} must be a number in [{least:g}, {most:g}], got {value!r}")

    return field(default=default, metadata={"check": check})


def check_integer(name: str, value: object, least: int) -> None:
    """Refuse a knob that is no integer of at least `least`, with a ValueError naming it."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_published(config: AnchorConfig) -> None:
    """Refuse outlier rows where the method as published is looked at.

    Raises:
        TypeError: `config` is no `AnchorConfig`.
        ValueError: `config.outliers` is not 0.
    """
    check_type("config", config, AnchorConfig)
    if config.outliers:
        raise ValueError(
            "config.outliers must be 0, as in the method as published: outlier rows are an "
            f"extension; got {config.outliers}"
        )


def check_prompt(q: Tensor, k: Tensor, scale: float | None) -> float:
    """The scale to use, after refusing what is no whole prompt.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`; or queries and keys differ in number.
    """
    scale = check_inputs(q, k, None, scale)
    if q.shape[2] != k.shape[2]:
        raise ValueError(
            f"q must have as many tokens as k ({k.shape[2]}): methods are compared on whole "
            f"prompts; got {q.shape[2]}"
        )
    return scale
