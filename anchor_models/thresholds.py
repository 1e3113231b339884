"""A threshold for each head of a model: what was calibrated, written to a file and read back."""

import json
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path

from anchor_models.backend import TAIL
from anchor_ref.config import AnchorConfig


@dataclass(frozen=True)
class Thresholds:
    """A threshold for each query head of each layer, what was asked for and what it gave.

    Attributes:
        thetas: by layer, one for each query head; natural-log units.
        target_recall: mean recall that each head was to reach, in (0, 1), over the rows beyond
            the first group, whose own recall is 1 with any threshold.
        reached: by layer, that recall of each head at its threshold on the calibration texts.
        density: by layer, the density of each head there, without a tail.
        config: sizes it holds for, and the tail that is taken along with the thresholds, which
            were measured without one; its own θ plays no part.
        lengths: tokens of the shortest and of the longest calibration text. The longer a prompt,
            the more there is to lose: for longer ones than the longest it does not hold.

    Raises:
        ValueError: a field is outside what is described, or the layers or heads of two differ.
    """

    thetas: dict[int, tuple[float, ...]]
    target_recall: float
    reached: dict[int, tuple[float, ...]]
    density: dict[int, tuple[float, ...]]
    config: AnchorConfig
    lengths: tuple[int, int]

    def __post_init__(self):
        check_target(self.target_recall)
        if not (
            len(self.lengths) == 2
            and all(isinstance(n, int) and not isinstance(n, bool) for n in self.lengths)
            and 1 <= self.lengths[0] <= self.lengths[1]
        ):
            raise ValueError(
                "lengths must be the tokens of the shortest and of the longest text, "
                f"got {self.lengths!r}"
            )
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

    def why_not_for(self, tokens: int) -> str | None:
        """Why the thresholds may fall short in a prompt of so many tokens; None if they hold."""
        return too_long(self.lengths[1], tokens)

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
    def load(cls, path: str | Path) -> "Thresholds":
        """Read what `save` wrote; a file that names no tail gets that of models.

        Raises:
            OSError: there is no such file.
            ValueError: the file is no calibration, or one that does not fit together.
        """
        try:
            text = json.loads(Path(path).read_text())
            if "target_recall" in text and "lengths" not in text:
                raise ValueError(
                    "it has no lengths, from before recall was that of the rows beyond the first "
                    "group; calibrate again"
                )
            if set(text) != (names := {field.name for field in fields(cls)}):
                raise ValueError(f"it has {sorted(text)}, not {sorted(names)}")
            tables = {
                name: {int(layer): tuple(heads) for layer, heads in text[name].items()}
                for name in ("thetas", "reached", "density")
            }
            return cls(
                **text
                | tables
                | {
                    "config": AnchorConfig(**{"tail": TAIL, **text["config"]}),
                    "lengths": tuple(text["lengths"]),
                }
            )
        except (TypeError, AttributeError, ValueError) as problem:
            raise ValueError(
                f"path must hold a saved calibration, got {path}: {problem}"
            ) from None


def too_long(longest: int, tokens: int) -> str | None:
    """In words: thresholds of texts up to `longest` tokens do not hold for a prompt this long."""
    if tokens <= longest:
        return None
    return (
        f"theta was calibrated on texts of at most {longest} tokens, and a prompt has {tokens}: "
        "more is left out of longer ones, so heads may fall short of the recall asked for; "
        "calibrate at the length of use, and see Calibration.check"
    )


def check_target(target_recall: float) -> None:
    """Refuse a recall that is not between 0 and 1, the ends excluded, with a ValueError."""
    if not _is_number(target_recall) or not 0 < target_recall < 1:
        raise ValueError(f"target_recall must be in (0, 1), got {target_recall!r}")


def _is_number(x: object) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool)
