"""What every method is: a frozen record of its knobs that can choose keys."""

from abc import ABC, abstractmethod
from numbers import Integral, Real

from jaxtyping import Float
from torch import Tensor

from anchor_lab.methods.selection import Selection
from anchor_ref.inputs import check_inputs


class Method(ABC):
    """A way to choose the keys of each query; a subclass is a frozen dataclass of its knobs."""

    @classmethod
    @abstractmethod
    def sweep(cls) -> list["Method"]:
        """Configurations from the sparsest to the densest, for a curve."""

    @abstractmethod
    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        """`select` on inputs that have been checked."""

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """The keys that each query keeps.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `inputs.check_inputs`; or queries and keys differ in number.
        """
        return self.choose(q, k, check_prompt(q, k, scale))


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


def check_count(field: str, value: object, least: int) -> None:
    """Refuse a knob that is no integer of at least `least`, with a ValueError naming it."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{field} must be an integer of at least {least}, got {value!r}")


def check_number(field: str, value: object, least: float, most: float) -> None:
    """Refuse a knob that is no real number in [least, most], with a ValueError naming it."""
    if not isinstance(value, Real) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{field} must be a number in [{least:g}, {most:g}], got {value!r}")
