"""Thresholds that reach a recall: one for each head, or for each layer."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Int
from torch import Tensor

from anchor_lab.analysis.curves import THETAS, MeanCurves, mean_curves
from anchor_models.capture import Captured, capture_qkv
from anchor_ref.config import AnchorConfig


@dataclass(frozen=True)
class Calibration:
    """A threshold for each query head of each layer, what was asked for and what it gave.

    Attributes:
        thetas: by layer, one for each query head; natural-log units.
        target_recall: mean recall that each head was to reach, in (0, 1).
        reached: by layer, the mean recall of each head at its threshold on the calibration text.
        density: by layer, the density of each head there.
        config: sizes it holds for; its own θ plays no part.

    Raises:
        ValueError: a field is outside what is described, or the layers or heads of two differ.
    """

    thetas: dict[int, tuple[float, ...]]
    target_recall: float
    reached: dict[int, tuple[float, ...]]
    density: dict[int, tuple[float, ...]]
    config: AnchorConfig

    def __post_init__(self):
        _check_target(self.target_recall)
        shape = {layer: len(heads) for layer, heads in self.thetas.items()}
        if not shape or not all(shape.values()):
            raise ValueError(f"thetas must hold a threshold for some head, got {self.thetas}")
        for name, least, most in (
            ("thetas", -float("inf"), float("inf")),
            ("reached", 0.0, 1.0),
            ("density", 0.0, 1.0),
        ):
            table = getattr(self, name)
            if {layer: len(heads) for layer, heads in table.items()} != shape:
                raise ValueError(f"{name} must have the layers and heads of thetas, got {table}")
            for layer, heads in table.items():
                if not all(_is_number(x) and least <= x <= most for x in heads):
                    allowed = f"{name} of layer {layer} must be numbers in [{least}, {most}]"
                    raise ValueError(f"{allowed}, got {heads}")

    def save(self, path: str | Path) -> None:
        """Write JSON; an infinite threshold is written as Python's `json` does."""
        text = {
            field.name: {str(layer): list(heads) for layer, heads in value.items()}
            if isinstance(value := getattr(self, field.name), dict)
            else value
            for field in fields(self)
        }
        text["config"] = {n: value for n, value in vars(self.config).items() if n != "theta"}
        Path(path).write_text(json.dumps(text, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            OSError: there is no such file.
            ValueError: the file is no calibration, or one that does not fit together.
        """
        try:
            text = json.loads(Path(path).read_text())
            if set(text) != (names := {field.name for field in fields(cls)}):
                raise ValueError(f"it has {sorted(text)}, not {sorted(names)}")
            tables = {
                name: {int(layer): tuple(heads) for layer, heads in text[name].items()}
                for name in ("thetas", "reached", "density")
            }
            return cls(**(text | tables | {"config": AnchorConfig(**text["config"])}))
        except (TypeError, AttributeError, ValueError) as problem:
            raise ValueError(
                f"path must hold a saved calibration, got {path}: {problem}"
            ) from None


def calibrate(
    model,
    texts: Iterable[str | Int[Tensor, "_"] | Int[Tensor, "_ _"]],
    target_recall: float,
    config: AnchorConfig | None = None,
    *,
    tokenizer=None,
    per: str = "head",
    thetas: Sequence[float] = THETAS,
) -> Calibration:
    """The smallest threshold at which each head of a model keeps the recall asked for.

    Args:
        model: a transformers causal language model.
        texts: strings, or tokens; each longer than one group. Read one after the other, so a
            generator will do. One text's queries and keys lie in a temporary folder meanwhile.
        target_recall: mean over rows, in (0, 1).
        config: block and group sizes; None means `AnchorConfig()`.
        tokenizer: for strings, called as transformers calls its own.
        per: "head"; "layer" gives all heads of a layer the largest threshold any of them needs.
        thetas: thresholds to choose from, ascending. A head that none of them satisfies gets the
            last; `Calibration.reached` shows it.

    Raises:
        TypeError: a text is a string and there is no tokenizer, or is neither string nor tokens.
        ValueError: an argument is outside what is described, there is no text, or the model
            computes another attention; see `activations.capture_qkv`.
    """
    _check_target(target_recall)  # before hours of work
    curves = mean_curves(_captures(model, texts, tokenizer), config, thetas)
    return choose_thetas(curves, target_recall, per)


def choose_thetas(curves: MeanCurves, target_recall: float, per: str = "head") -> Calibration:
    """The smallest threshold on each curve that reaches the recall asked for.

    Args:
        curves: of the calibration texts.
        target_recall, per: as in `calibrate`.

    Raises:
        ValueError: as in `calibrate`.
    """
    _check_target(target_recall)
    if per not in ("head", "layer"):
        raise ValueError(f"per must be 'head' or 'layer', got {per!r}")
    chosen, reached, kept = {}, {}, {}
    for layer, recall in curves.recall.items():
        # Recall never falls as θ rises.
        at = (recall < target_recall).sum(0).clamp(max=len(recall) - 1)  # [Hq]
        at = at if per == "head" else at.amax().expand_as(at)
        chosen[layer] = tuple(curves.thetas[i] for i in at.tolist())
        reached[layer] = tuple(recall.gather(0, at[None])[0].tolist())
        kept[layer] = tuple(curves.density[layer].gather(0, at[None])[0].tolist())
    return Calibration(chosen, target_recall, reached, kept, curves.config)


def _captures(model, texts, tokenizer) -> Iterator[dict[int, Captured]]:
    for number, text in enumerate(texts):
        if isinstance(text, str):
            if tokenizer is None:
                raise TypeError(f"tokenizer must be given for strings, and text {number} is one")
            text = tokenizer(text, return_tensors="pt").input_ids
        if not isinstance(text, Tensor):
            raise TypeError(
                f"texts must be strings or token tensors, got {type(text).__name__} ({number})"
            )
        tokens = torch.atleast_2d(text).to(model.device)
        with TemporaryDirectory() as folder:
            yield capture_qkv(model, tokens, dtype=None, save_to=folder)


def _check_target(target_recall: float) -> None:
    if not _is_number(target_recall) or not 0 < target_recall < 1:
        raise ValueError(f"target_recall must be in (0, 1), got {target_recall!r}")


def _is_number(x: object) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool)
