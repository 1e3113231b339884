"""Thresholds that reach a recall: one for each head, or for each layer."""

from collections.abc import Iterable, Iterator, Sequence
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Int
from torch import Tensor

from anchor_lab.analysis.curves import THETAS, MeanCurves, average_curves
from anchor_models.backend import TAIL
from anchor_models.calibration import Calibration, check_target
from anchor_models.capture import Captured, capture_qkv
from anchor_ref.config import AnchorConfig


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
        config: block and group sizes, and the tail that the calibration brings along; None means
            the published sizes and the tail of models. Rows of the tail count as kept whole.
        tokenizer: for strings, called as transformers calls its own.
        per: "head"; "layer" gives all heads of a layer the largest threshold any of them needs.
        thetas: thresholds to choose from, ascending. A head that none of them satisfies gets the
            last; `Calibration.reached` shows it.

    Raises:
        TypeError: a text is a string and there is no tokenizer, or is neither string nor tokens.
        ValueError: an argument is outside what is described, there is no text, or the model
            computes another attention; see `capture.capture_qkv`.
    """
    check_target(target_recall)  # before hours of work
    config = AnchorConfig(tail=TAIL) if config is None else config
    curves = average_curves(_captures(model, texts, tokenizer), config, thetas)
    return choose_thetas(curves, target_recall, per)


def choose_thetas(curves: MeanCurves, target_recall: float, per: str = "head") -> Calibration:
    """The smallest threshold on each curve that reaches the recall asked for.

    Args:
        curves: of the calibration texts.
        target_recall, per: as in `calibrate`.

    Raises:
        ValueError: as in `calibrate`.
    """
    check_target(target_recall)
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
