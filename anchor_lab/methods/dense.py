"""Dense attention: the method that drops nothing, to which all others are compared."""

from dataclasses import dataclass

from torch import Tensor

from anchor_lab.methods.method import Method
from anchor_lab.methods.selection import Selection, causal_mask


@dataclass(frozen=True)
class Dense(Method):
    """Every key up to the query's own."""

    @classmethod
    def sweep(cls) -> list["Dense"]:
        """The one configuration there is."""
        return [cls()]

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        batch, heads, n, _ = q.shape

        def keep(rows: range) -> Tensor:
            return causal_mask(rows, q.device).expand(batch, heads, -1, -1)

        return Selection((batch, heads, n), keep, None, 0.0)
