"""What a folder of results says: heads by density, thresholds for a recall, keys that matter."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.analysis.calibration import Calibration, choose_thetas
from anchor_lab.analysis.curves import MeanCurves
from anchor_lab.explorer import PreparedHead
from anchor_lab.report.inspect import ABOUT, CAPTURE, SETTINGS
from anchor_models.capture import Captured, load_capture
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores
from anchor_ref.regions import Group


@dataclass(frozen=True, eq=False)
class Results:
    """Every head at every θ.

    Attributes:
        settings: what was run, as `settings.json` has it.
        about: class, parameters and the words of the text.
        layers: the layers measured, ascending; L of them.
        heads: the model's indices of the query heads; H of them.
        skipped: by layer, why it could not be measured.
        thetas: thresholds, ascending; T of them.
        recall, p10, least: mean, 10th percentile and minimum over rows, `[T, L, H]`.
        density: share of the causal pairs kept, `[T, L, H]`.
        captured: queries and keys of each layer, mapped from the files.
    """

    settings: dict
    about: dict
    layers: list[int]
    heads: list[int]
    skipped: dict[int, str]
    thetas: list[float]
    recall: Float[Tensor, "T L H"]
    p10: Float[Tensor, "T L H"]
    least: Float[Tensor, "T L H"]
    density: Float[Tensor, "T L H"]
    captured: dict[int, Captured]

    @property
    def n(self) -> int:
        """N, tokens of the text."""
        return self.settings["length"]

    @property
    def head_dim(self) -> int:
        """D of the first layer measured."""
        return self.captured[self.layers[0]].q.shape[-1]


def load_results(folder: str | Path) -> Results:
    """Read what `inspect_layers` wrote.

    Raises:
        FileNotFoundError: the folder holds no results.
        ValueError: no layer could be measured; the message says why.
    """
    folder = Path(folder)
    settings = json.loads((folder / SETTINGS).read_text())
    rows = {
        layer: json.loads((folder / f"layer_{layer:04d}.json").read_text())
        for layer in settings["layers"]
    }
    skipped = {layer: row["skipped"] for layer, row in rows.items() if "skipped" in row}
    layers = [layer for layer in rows if layer not in skipped]
    if not layers:
        raise ValueError(
            f"layers must be causal attention, none was: {next(iter(skipped.values()))}"
        )

    def table(name: str) -> Tensor:
        return torch.tensor([rows[layer][name] for layer in layers], dtype=torch.float64).movedim(
            0, 1
        )

    return Results(
        settings,
        json.loads((folder / ABOUT).read_text()),
        layers,
        rows[layers[0]]["heads"],
        skipped,
        settings["thetas"],
        table("recall"),
        table("p10"),
        table("least"),
        table("density"),
        load_capture(folder / CAPTURE),
    )


def check_target(target: float) -> None:
    """Refuse a recall that nothing or everything reaches."""
    if not 0 < target < 1:
        raise ValueError(f"target_recall must be in (0, 1), got {target}")


def recommended_theta(results: Results, target: float) -> float:
    """The smallest θ measured whose mean recall over all heads reaches the target; else the last.

    Raises:
        ValueError: `target` is not in (0, 1).
    """
    check_target(target)
    short = int((results.recall.mean((1, 2)) < target).sum())
    return results.thetas[min(short, len(results.thetas) - 1)]


def calibration(results: Results, target: float) -> Calibration:
    """The smallest θ measured with which each head reaches the target: `lab.choose_thetas`."""
    curves = MeanCurves(
        AnchorConfig(),
        tuple(results.thetas),
        *(
            {layer: table[:, i] for i, layer in enumerate(results.layers)}
            for table in (results.recall, results.density)
        ),
    )
    return choose_thetas(curves, target)


def heads_by_density(results: Results, theta: float) -> list[dict]:
    """One row a head at a θ that was measured, the sparsest first.

    Returns:
        layer, head, density, recall, p10 and least of each.
    """
    at = results.thetas.index(theta)
    rows = [
        {
            "layer": layer,
            "head": head,
            **{
                name: float(getattr(results, name)[at, i, j])
                for name in ("density", "recall", "p10", "least")
            },
        }
        for i, layer in enumerate(results.layers)
        for j, head in enumerate(results.heads)
    ]
    return sorted(rows, key=lambda row: (row["density"], -row["recall"]))


def heads_to_draw(results: Results, theta: float, ends: int) -> list[dict]:
    """The head that its stripes serve best, then the sparsest and the least sparse ones.

    Served best: the most recall above that of the smallest θ measured, times the sparsity.

    Returns:
        Rows of `heads_by_density`, no head twice; at most 2·`ends` + 1.
    """
    rows = heads_by_density(results, theta)
    least = {
        (row["layer"], row["head"]): row for row in heads_by_density(results, results.thetas[0])
    }

    def served(row: dict) -> float:
        gained = row["recall"] - least[row["layer"], row["head"]]["recall"]
        return gained * (1 - row["density"])

    picked = [max(rows, key=served), *rows[:ends], *rows[-ends:]]
    return [row for number, row in enumerate(picked) if row not in picked[:number]]


def head_tensors(results: Results, layer: int, head: int) -> tuple[Tensor, Tensor, float]:
    """Queries `[N, D]`, keys `[N, D]` and scale of one head."""
    x, place = results.captured[layer], results.heads.index(head)
    shared = x.q.shape[1] // x.k.shape[1]
    return x.q[0, place], x.k[0, place // shared], x.scaling


@dataclass(frozen=True)
class FarKey:
    """A candidate and the attention it gets from one group of queries.

    Attributes:
        key: its position.
        mass: its weight in the group's average row.
        query: the row that looks at it hardest.
        weight: that row's weight on it.
    """

    key: int
    mass: float
    query: int
    weight: float


def last_telling_group(found: Sequence[Group], config: AnchorConfig) -> Group:
    """The last group with candidates and all its queries; else the last of all."""
    whole = [g for g in found if len(g.rows) == config.group_size and len(g.candidates)]
    return (whole or found)[-1]


def strongest_far_keys(head: PreparedHead, group: Group, most: int = 8) -> list[FarKey]:
    """The candidates that matter most to a group, at least its own length away, kept or not.

    Args:
        head: from `explorer.prepare_head`.
        group: of `regions.groups`; its queries are read.
        most: how many.

    Returns:
        The strongest first. Where no candidate is that far away, of all candidates.
    """
    first, end = group.candidates.start, group.candidates.stop - len(group.rows)
    keys = head.k[first : end if end > first else group.candidates.stop]
    mass, heaviest = torch.zeros(len(keys)), torch.zeros(len(keys))
    query = torch.zeros(len(keys), dtype=torch.long)
    for block in group.blocks:
        rows = slice(block.start, block.stop)
        scores = scaled_scores(head.q[rows], keys, head.scale)
        weights = (scores - head.log_sum[rows, None]).exp_()
        mass += weights.sum(0)
        most_here, row = weights.max(0)
        query = torch.where(most_here > heaviest, row + block.start, query)
        heaviest = torch.maximum(heaviest, most_here)
    mass /= len(group.rows)
    return [
        FarKey(first + i, float(mass[i]), int(query[i]), float(heaviest[i]))
        for i in mass.topk(min(most, len(keys))).indices.tolist()
    ]
