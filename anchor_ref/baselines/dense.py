"""Dense attention: the method that drops nothing, to which all others are compared."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from anchor_ref.baselines.selection import Selection, causal_mask, check_prompt


@dataclass(frozen=True)
class Dense:
    """Every key up to the query's own."""

    @classmethod
    def sweep(cls) -> list["Dense"]:
        """The one configuration there is."""
        return [cls()]

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """All causal pairs; nothing is scored to choose them.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """
        check_prompt(q, k, scale)
        batch, heads, n, _ = q.shape

        def keep(rows: range) -> Tensor:
            return causal_mask(rows, q.device).expand(batch, heads, -1, -1)

        return Selection((batch, heads, n), keep, None, 0.0)
