"""Thresholds that reach a recall: one for each head, or for each layer."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isnan
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_ref.activations.capture import Captured, capture_qkv
from anchor_ref.config import AnchorConfig
from anchor_ref.lab.curves import THETAS, theta_curve


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
    texts: Iterable[str | Int[Tensor, "N"] | Int[Tensor, "B N"]],
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
    captures = _captures(model, texts, tokenizer)
    return calibrate_captured(captures, target_recall, config, per=per, thetas=thetas)


def calibrate_captured(
    captures: Iterable[Mapping[int, Captured]],
    target_recall: float,
    config: AnchorConfig | None = None,
    *,
    per: str = "head",
    thetas: Sequence[float] = THETAS,
) -> Calibration:
    """`calibrate` from what `activations.capture_qkv` returned for each text.

    Args:
        captures: of each text, by layer.
        target_recall, config, per, thetas: as in `calibrate`.

    Raises:
        TypeError, ValueError: as in `calibrate`.
    """
    _check_target(target_recall)
    if per not in ("head", "layer"):
        raise ValueError(f"per must be 'head' or 'layer', got {per!r}")
    config = AnchorConfig() if config is None else config
    sums: dict[int, list] = {}  # recall over rows, kept pairs, rows, pairs
    for captured in captures:
        for layer, x in captured.items():
            mean, density = _curves(x, config, thetas)  # [T, Hq] each
            rows = x.q.shape[0] * x.q.shape[2]
            pairs = rows * (x.q.shape[2] + 1) / 2
            found = (mean * rows, density * pairs, rows, pairs)
            sums[layer] = [a + b for a, b in zip(sums.get(layer, [0] * 4), found, strict=True)]
    if not sums:
        raise ValueError("texts must hold at least one captured layer, got none")
    chosen, reached, kept = {}, {}, {}
    for layer, (recall, density, rows, pairs) in sums.items():
        at = _first_reaching(recall / rows, target_recall, per)[None]  # [1, Hq]
        chosen[layer] = tuple(float(thetas[i]) for i in at[0].tolist())
        reached[layer] = tuple((recall / rows).gather(0, at)[0].tolist())
        kept[layer] = tuple((density / pairs).gather(0, at)[0].tolist())
    sizes = replace(config, theta=AnchorConfig().theta)
    return Calibration(chosen, target_recall, reached, kept, sizes)


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


def _curves(
    x: Captured, config: AnchorConfig, thetas: Sequence[float]
) -> tuple[Float[Tensor, "T Hq"], Float[Tensor, "T Hq"]]:
    """Mean recall and density of each head at each threshold; float64."""
    tokens = x.causal().q.shape[2]
    if tokens <= config.group_size:
        raise ValueError(
            f"texts must be longer than a group, {config.group_size} tokens, or every θ keeps all "
            f"of it; got one of {tokens}"
        )
    curve = theta_curve(x.q, x.k, config, thetas, x.scaling)
    return curve.recall.double().mean((1, 3)), curve.density.mean(1)


def _first_reaching(mean: Tensor, target: float, per: str) -> Tensor:
    """Index of each head's threshold, `[Hq]`, from mean recalls `[T, Hq]`."""
    short = (mean < target).sum(0).clamp(max=len(mean) - 1)  # recall never falls as θ rises
    return short if per == "head" else short.amax().expand_as(short)


def _check_target(target_recall: float) -> None:
    if not _is_number(target_recall) or not 0 < target_recall < 1:
        raise ValueError(f"target_recall must be in (0, 1), got {target_recall!r}")


def _is_number(x: object) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool) and not isnan(x)
