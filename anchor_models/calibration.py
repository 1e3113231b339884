"""Calibrated thresholds, and what they reach on another text."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Int
from torch import Tensor

from anchor_models.capture import Captured, capture_qkv
from anchor_models.thresholds import Thresholds, too_long
from anchor_ref.anchor import compute_anchor
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import density, recall, rows_beyond
from anchor_ref.stripes import identify_stripes


class Calibration(Thresholds):
    """`Thresholds` that can be judged on a text of one's own."""

    def check(
        self,
        model,
        text: str | Int[Tensor, "_"] | Int[Tensor, "_ _"],
        tokenizer=None,
        *,
        progress: Callable[[list[int]], Iterable[int]] = iter,
    ) -> "Check":
        """What each head reaches on a text that the thresholds were not chosen on.

        Args:
            model: the transformers causal model that was calibrated.
            text: a string, or the tokens of one prompt; of the length and kind of its use.
            tokenizer: for strings, called as transformers calls its own.
            progress: wraps the list of layers.

        Raises:
            TypeError: `text` is a string and there is no tokenizer, or is neither.
            ValueError: the text is no longer than a group, or more than one prompt; the model has
                other layers or heads; or see `capture.capture_qkv`.
        """
        tokens = tokens_of(text, tokenizer).to(model.device)
        config, n = replace(self.config, tail=0), tokens.shape[1]
        if tokens.shape[0] != 1:
            raise ValueError(f"text must be one prompt, got {tokens.shape[0]}")
        if n <= config.group_size:
            raise ValueError(
                f"text must be longer than a group, {config.group_size} tokens, or every θ keeps "
                f"all of it; got one of {n}"
            )
        reached, kept = {}, {}
        with TemporaryDirectory() as folder:
            captured = capture_qkv(model, tokens, sorted(self.thetas), dtype=None, save_to=folder)
            for layer in progress(list(captured)):
                found = list(self._heads(captured[layer].causal(), config, model.device))
                reached[layer], kept[layer] = zip(*found, strict=True)
        return Check(reached, kept, self.target_recall, n, self.lengths)

    def _heads(
        self, x: Captured, config: AnchorConfig, device: torch.device
    ) -> Iterator[tuple[float, float]]:
        """Recall beyond and density of each head of a layer, one in memory at a time."""
        heads, n = x.q.shape[1:3]
        thetas = self.thetas[x.layer]
        if len(thetas) != heads:
            raise ValueError(
                f"model must have the {len(thetas)} query heads of layer {x.layer} that were "
                f"calibrated, got {heads}"
            )
        beyond = rows_beyond(config, n, n)
        for head, theta in enumerate(thetas):
            at = head * x.k.shape[1] // heads
            q, k = x.q[:, head : head + 1].to(device), x.k[:, at : at + 1].to(device)
            one = replace(config, theta=theta)
            # Of the values nothing is asked.
            anchors = compute_anchor(q, k, k, one, x.scaling).max
            stripes = identify_stripes(q, k, anchors, one, x.scaling)
            rows = recall(q, k, stripes, one, x.scaling)[0, 0].double()[beyond.to(device)]
            yield rows.mean().item(), density(stripes, one, n, n).item()


@dataclass(frozen=True)
class Check:
    """What a calibration reaches on another text, see `Calibration.check`.

    Attributes:
        recall: by layer, of each query head over the rows beyond the first group, without a tail.
        density: by layer, of each query head, without a tail.
        target_recall: that was calibrated for.
        length: tokens of this text.
        lengths: of the calibration texts, shortest and longest.
    """

    recall: dict[int, tuple[float, ...]]
    density: dict[int, tuple[float, ...]]
    target_recall: float
    length: int
    lengths: tuple[int, int]

    @property
    def short(self) -> list[tuple[int, int]]:
        """(layer, query head) of those below the target, the lowest recall first."""
        below = [
            (value, layer, head)
            for layer, heads in self.recall.items()
            for head, value in enumerate(heads)
            if value < self.target_recall
        ]
        return [(layer, head) for _, layer, head in sorted(below)]

    def __str__(self) -> str:
        values = [
            (value, layer, head)
            for layer, heads in self.recall.items()
            for head, value in enumerate(heads)
        ]
        kept = [value for heads in self.density.values() for value in heads]
        least, layer, head = min(values)
        lines = [
            f"{len(self.short)} of {len(values)} heads fall short of a recall of "
            f"{self.target_recall:g} beyond the first group, in {self.length} tokens",
            f"recall {sum(x for x, *_ in values) / len(values):.3f} in the mean, least "
            f"{least:.3f} (layer {layer}, head {head}); density {sum(kept) / len(kept):.3f}",
        ]
        if warning := too_long(self.lengths[1], self.length):
            lines.append(warning)
        return "\n".join(lines)


def tokens_of(text: object, tokenizer, name: str = "text") -> Int[Tensor, "B N"]:
    """The tokens of a string, or tokens as they are, a row for each prompt.

    Raises:
        TypeError: it is a string and there is no tokenizer, or is neither string nor tokens.
    """
    if isinstance(text, str):
        if tokenizer is None:
            raise TypeError(f"tokenizer must be given for strings, and {name} is one")
        text = tokenizer(text, return_tensors="pt", verbose=False).input_ids
    if not isinstance(text, Tensor):
        raise TypeError(f"{name} must be a string or token tensor, got {type(text).__name__}")
    return torch.atleast_2d(text)
