"""What was measured of a model's heads: by density, thresholds for a recall, heads to draw."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.analysis.calibration import choose_thetas
from anchor_lab.analysis.curves import MeanCurves
from anchor_lab.experiments.store import read
from anchor_lab.report.inspect import CAPTURE, LAYERS, MEASURES, MODEL, SHARES
from anchor_models.backend import TAIL
from anchor_models.calibration import Calibration
from anchor_models.capture import Captured, load_capture
from anchor_models.thresholds import check_target
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import density_floor


@dataclass(frozen=True, eq=False)
class InspectedHeads:
    """Every head at every θ.

    Attributes:
        settings: what was run.
        model: its class, sizes, and the text in its words, as `inspect.describe_model` has them.
        layers: the layers measured, ascending; L of them.
        heads: the model's indices of the query heads; H of them.
        skipped: by layer, why it could not be measured.
        thetas: thresholds, ascending; T of them.
        recall, p10, least: mean, 10th percentile and minimum over the rows beyond the first
            group, `[T, L, H]`.
        density: share of the causal pairs kept, without a tail, `[T, L, H]`.
        shares: of each group's candidates, which share is kept, mean over heads, `[T, L, G]`.
        captured: queries and keys of each layer, mapped from the files.
    """

    settings: dict
    model: dict
    layers: list[int]
    heads: list[int]
    skipped: dict[int, str]
    thetas: list[float]
    recall: Float[Tensor, "T L H"]
    p10: Float[Tensor, "T L H"]
    least: Float[Tensor, "T L H"]
    density: Float[Tensor, "T L H"]
    shares: Float[Tensor, "T L G"]
    captured: dict[int, Captured]

    @property
    def n(self) -> int:
        """N, tokens of the text."""
        return self.settings["length"]

    @property
    def floor(self) -> float:
        """The density that any θ leaves: first group and windows."""
        return float(density_floor(AnchorConfig(), self.n, self.n))

    @property
    def head_dim(self) -> int:
        """D of the first layer measured."""
        return self.captured[self.layers[0]].q.shape[-1]

    @property
    def sizes(self) -> dict[str, int]:
        """Query heads, key heads and head size of a layer of the model."""
        model = self.model
        return {
            "q_heads": model["heads"],
            "kv_heads": model["kv_heads"],
            "head_dim": self.head_dim,
        }

    def head(self, layer: int, head: int) -> tuple[Tensor, Tensor, float]:
        """Queries `[N, D]`, keys `[N, D]` and scale of one head."""
        x, place = self.captured[layer], self.heads.index(head)
        return x.q[0, place], x.k[0, place * x.k.shape[1] // x.q.shape[1]], x.scaling


def load_inspected(folder: str | Path) -> InspectedHeads:
    """Read what `inspect_layers` wrote.

    Raises:
        FileNotFoundError: the folder holds no results.
        ValueError: no layer could be measured; the message says why.
    """
    folder = Path(folder)
    found = read(folder / LAYERS)
    rows = {row["layer"]: row for row in found["rows"]}
    rows = {layer: rows[layer] for layer in found["settings"]["layers"]}
    skipped = {layer: row["skipped"] for layer, row in rows.items() if "skipped" in row}
    measured = {layer: row for layer, row in rows.items() if layer not in skipped}
    if not measured:
        raise ValueError(
            f"layers must be causal attention, none was: {next(iter(skipped.values()))}"
        )
    tables = {
        name: torch.tensor([row[name] for row in measured.values()], dtype=torch.float64).movedim(
            0, 1
        )
        for name in (*MEASURES, SHARES)
    }
    return InspectedHeads(
        settings=found["settings"],
        model=json.loads((folder / MODEL).read_text(encoding="utf-8")),
        layers=list(measured),
        heads=next(iter(measured.values()))["heads"],
        skipped=skipped,
        thetas=found["settings"]["thetas"],
        captured=load_capture(folder / CAPTURE),
        **tables,
    )


def recommended_theta(found: InspectedHeads, target: float) -> float:
    """The smallest θ measured whose mean recall over all heads reaches the target; else the last.

    Recall beyond the first group: with its rows any θ looks good, the more the shorter the text.

    Raises:
        ValueError: `target` is not in (0, 1).
    """
    check_target(target)
    short = int((found.recall.mean((1, 2)) < target).sum())
    return found.thetas[min(short, len(found.thetas) - 1)]


def calibration(found: InspectedHeads, target: float) -> Calibration:
    """The smallest θ measured with which each head reaches the target, by `choose_thetas`."""
    recall, density = (
        dict(zip(found.layers, table.unbind(1), strict=True))
        for table in (found.recall, found.density)
    )
    # Measured without a tail, which changes no selection; used with that of models.
    config = AnchorConfig(tail=TAIL)
    lengths = (found.n, found.n)
    return choose_thetas(MeanCurves(config, tuple(found.thetas), recall, density, lengths), target)


def heads_by_density(found: InspectedHeads, theta: float) -> list[dict]:
    """One row a head at a θ that was measured, the sparsest first.

    Returns:
        layer, head, density, recall, p10 and least of each.
    """
    at = found.thetas.index(theta)
    rows = [
        {"layer": layer, "head": head}
        | {name: float(getattr(found, name)[at, i, j]) for name in MEASURES}
        for i, layer in enumerate(found.layers)
        for j, head in enumerate(found.heads)
    ]
    return sorted(rows, key=lambda row: (row["density"], -row["recall"]))


def heads_to_draw(found: InspectedHeads, theta: float, ends: int) -> list[dict]:
    """The head that its stripes serve best, then the sparsest and the least sparse ones.

    Served best: the most recall above that of the smallest θ measured, times the sparsity.

    Returns:
        Rows of `heads_by_density`, no head twice; at most 2·`ends` + 1.
    """
    rows = heads_by_density(found, theta)
    smallest = heads_by_density(found, found.thetas[0])
    before = {(row["layer"], row["head"]): row["recall"] for row in smallest}

    def served(row: dict) -> float:
        return (row["recall"] - before[row["layer"], row["head"]]) * (1 - row["density"])

    picked = [max(rows, key=served), *rows[:ends], *rows[-ends:]]
    return [row for number, row in enumerate(picked) if row not in picked[:number]]
