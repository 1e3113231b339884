"""Thresholds that reach a recall: one for each head, or for each layer."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from anchor_ref.activations.capture import Captured
from anchor_ref.config import AnchorConfig
from anchor_ref.lab.curves import THETAS, theta_curve


@dataclass(frozen=True)
class Calibration:
    """A threshold for each query head of each layer, and what was asked for.

    Attributes:
        thetas: by layer, one for each query head; natural-log units.
        target_recall: mean recall that each head was to reach.
        reached: by layer, the mean recall of each head at its threshold on the calibration text.
        config: sizes it holds for; its own θ plays no part.
    """

    thetas: dict[int, tuple[float, ...]]
    target_recall: float
    reached: dict[int, tuple[float, ...]]
    config: AnchorConfig

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        sizes = {name: value for name, value in vars(self.config).items() if name != "theta"}
        text = {
            "target_recall": self.target_recall,
            "config": sizes,
            "thetas": {str(layer): list(row) for layer, row in self.thetas.items()},
            "reached": {str(layer): list(row) for layer, row in self.reached.items()},
        }
        Path(path).write_text(json.dumps(text, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no calibration.
        """
        try:
            text = json.loads(Path(path).read_text())
            return cls(
                {int(layer): tuple(row) for layer, row in text["thetas"].items()},
                text["target_recall"],
                {int(layer): tuple(row) for layer, row in text["reached"].items()},
                AnchorConfig(**text["config"]),
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as problem:
            raise ValueError(
                f"path must hold a saved calibration, got {path}: {problem!r}"
            ) from None


def calibrate(
    texts: Iterable[Mapping[int, Captured]],
    target_recall: float,
    config: AnchorConfig | None = None,
    *,
    per: str = "head",
    thetas: Sequence[float] = THETAS,
) -> Calibration:
    """The smallest threshold at which each head keeps the recall asked for.

    Args:
        texts: what `activations.capture_qkv` returned for each calibration text; read one after
            the other, so a generator will do.
        target_recall: mean over rows, in (0, 1).
        config: block and group sizes; None means `AnchorConfig()`.
        per: "head"; "layer" gives all heads of a layer the largest threshold any of them needs.
        thetas: thresholds to choose from, ascending. A head that none of them satisfies gets the
            last; `Calibration.reached` shows it.

    Raises:
        TypeError, ValueError: an argument is outside what is described, or there is no text.
    """
    if not 0 < target_recall < 1:
        raise ValueError(f"target_recall must be in (0, 1), got {target_recall}")
    if per not in ("head", "layer"):
        raise ValueError(f"per must be 'head' or 'layer', got {per!r}")
    config = AnchorConfig() if config is None else config
    sums: dict[int, Tensor] = {}
    rows: dict[int, int] = {}
    for captured in texts:
        for layer, x in captured.items():
            recall = theta_curve(x.q, x.k, config, thetas, x.scaling).recall
            found = recall.double().sum((1, 3))  # [T, Hq]
            sums[layer] = sums.get(layer, 0) + found
            rows[layer] = rows.get(layer, 0) + recall.shape[1] * recall.shape[3]
    if not sums:
        raise ValueError("texts must hold at least one captured layer, got none")
    chosen, reached = {}, {}
    for layer, found in sums.items():
        mean = found / rows[layer]  # [T, Hq]
        at = _first_reaching(mean, target_recall, per)  # [Hq]
        chosen[layer] = tuple(thetas[i] for i in at.tolist())
        reached[layer] = tuple(mean.gather(0, at[None])[0].tolist())
    sizes = replace(config, theta=AnchorConfig().theta)
    return Calibration(chosen, target_recall, reached, sizes)


def _first_reaching(mean: Tensor, target: float, per: str) -> Tensor:
    """Index of each head's threshold, `[Hq]`, from mean recalls `[T, Hq]`."""
    short = (mean < target).sum(0).clamp(max=len(mean) - 1)  # recall never falls as θ rises
    return short if per == "head" else short.amax().expand_as(short)
