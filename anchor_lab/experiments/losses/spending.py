"""What a method costs in every layer of a model that reads with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import mean

from torch import Tensor

from anchor_lab.experiments.losses.pieces import reading
from anchor_lab.methods import Method, Selection, TriangleMix
from anchor_lab.methods.in_a_model import method_attention
from anchor_ref.regions import causal_pairs


@dataclass
class Spent:
    """What each layer of each call spent, shares of all causal pairs, means over batch and heads.

    Attributes:
        density: kept.
        tiles: multiplied as whole tiles; None for a method without tiles.
        scored: scored to choose, half counted, less the scores that attention goes on with.
    """

    density: list[float] = field(default_factory=list)
    tiles: list[float | None] = field(default_factory=list)
    scored: list[float] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """Means over layers and calls, in the words of the metric contract."""
        executed = [
            density if tiles is None else tiles
            for density, tiles in zip(self.density, self.tiles, strict=True)
        ]
        return {
            "density": mean(self.density),
            "executed_density": mean(executed),
            "total_cost": mean(executed) + mean(self.scored),
        }


class Watched(Method):
    """Another method, whose selections are looked at before they are used."""

    def __init__(self, method: Method, spent: Spent):
        self.method, self.spent = method, spent

    @classmethod
    def sweep(cls) -> list[Method]:
        """None of its own: the method that is watched has one."""
        return []

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        found = self.method.choose(q, k, scale)
        every = causal_pairs(q.shape[2])
        tiles = found.executed
        reused = 0.0 if found.reused is None else found.reused.mean().item()
        self.spent.tiles.append(None if tiles is None else tiles.mean().item() / every)
        self.spent.scored.append((found.scored - reused) / every)
        return found


@contextmanager
def spending(model, method: Method | TriangleMix, rows: int | None = None) -> Iterator[Spent]:
    """Inside the `with`, whole prompts are read with a method, and what it costs is noted.

    Args:
        model, method: as in `method_attention`.
        rows: that attend at once, see `pieces.reading`; None for `method_attention` itself.
    """
    spent = Spent()
    if isinstance(method, TriangleMix):
        shallow, deep = (Watched(one, spent) for one in (method.shallow, method.deep))
        watched = replace(method, shallow=shallow, deep=deep)
    else:
        watched = Watched(method, spent)
    with (
        method_attention(model, watched) if rows is None else reading(model, watched, rows)
    ) as densities:
        yield spent
    spent.density += densities
