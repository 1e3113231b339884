"""A method's ladder on some activations: what each of its configurations keeps there."""

from anchor_lab.experiments.side_by_side.blocks import BlockMap, first_that, of_selection
from anchor_lab.experiments.side_by_side.sources import Activations
from anchor_lab.methods import Method, Selection, evaluate
from anchor_ref.regions import causal_pairs


class Rungs:
    """A ladder on some activations; what a rung keeps is computed when it is asked for, once.

    Args:
        ladder: configurations.
        x: activations.
        group_size: rows of the first group, over which recall is not taken.
        single_keys: whether recall and density are those of single keys, not of blocks.
    """

    def __init__(self, ladder: list[Method], x: Activations, group_size: int, single_keys: bool):
        self.ladder, self.x, self.first = ladder, x, group_size
        self.single_keys = single_keys
        self._found: dict[int, dict] = {}

    def first_with(self, recall: float) -> int | None:
        """The sparsest rung with this recall; None where there is none."""
        return first_that(lambda place: self.recall(place) >= recall, len(self.ladder))

    def recall(self, place: int) -> float:
        """Mean over heads and rows beyond the first group, of what is executed."""
        return self._look(place)["recall"]

    def density(self, place: int) -> float:
        """Causal pairs kept, of all; for block methods those in the blocks."""
        return self._look(place)["density"]

    def scored(self, place: int) -> float:
        """Pairs scored to choose, half counted, as a share of all causal pairs."""
        return self._look(place)["scored"]

    def blocks(self, place: int) -> BlockMap:
        """What an executor gets."""
        return of_selection(self._select(place))

    def _select(self, place: int) -> Selection:
        return self.ladder[place].select(self.x.q, self.x.k, self.x.scale)

    def _look(self, place: int) -> dict:
        if place not in self._found:
            selection = self._select(place)
            if self.single_keys:
                x = evaluate(self.x.q, self.x.k, self.x.v, selection, self.x.scale)
                recall, density = x.recall, x.density.mean().item()
            else:
                blocks = of_selection(selection)
                recall, density = blocks.recall(self.x.mass), blocks.density
            self._found[place] = {
                "recall": recall[..., self.first :].double().mean().item(),
                "density": float(f"{density:.4g}"),
                "scored": float(f"{selection.scored / causal_pairs(self.x.q.shape[2]):.3g}"),
            }
        return self._found[place]
