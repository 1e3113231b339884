"""Thresholds by head for any model, measured as `anchor-ref inspect` measures: resumable."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from jaxtyping import Int
from torch import Tensor

from anchor_lab.analysis import THETAS, LayerCurves, choose_thetas, mean_over_texts
from anchor_lab.analysis.calibration import check_per
from anchor_lab.experiments.experiment import progress as on_stderr
from anchor_lab.report.inspect import CAPTURE, curves_of, measured_layers
from anchor_models.backend import TAIL
from anchor_models.calibration import Calibration, tokens_of
from anchor_models.texts import Text
from anchor_models.thresholds import check_target
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
    folder: str | Path | None = None,
    progress: Callable[..., Iterable[int]] = on_stderr,
) -> Calibration:
    """The smallest threshold at which each head of a model keeps the recall asked for.

    Recall is that of the rows beyond the first group and before any tail: the others keep every
    key with any θ. It falls with the length of a prompt, so take texts as long as those that the
    model will read; what it says is for prompts of up to the longest. `Calibration.check` judges
    it on another text.

    Args:
        model: a transformers causal language model.
        texts: strings, or tokens, a row for each prompt; each longer than one group. Read one
            after the other, so a generator will do. One text's queries and keys lie in a folder
            meanwhile.
        target_recall: mean over rows, in (0, 1).
        config: block and group sizes, and the tail that the calibration brings along; None means
            the published sizes and the tail of models. With `outliers`, an extension beyond the
            paper, means and outlier rows of a head share its threshold.
        tokenizer: for strings, called as transformers calls its own.
        per: "head"; "layer" gives all heads of a layer the largest threshold any of them needs.
        thetas: thresholds to choose from, ascending. A head that none of them satisfies gets the
            last; `Calibration.reached` shows it.
        folder: where each layer's numbers are kept as soon as they are there, so that the same
            call goes on after an interruption, and serves another target or `per` at once; None
            keeps nothing.
        progress: wraps the layers left of each text, given `desc`; by default shown on stderr
            where that is a terminal.

    Raises:
        TypeError: a text is a string and there is no tokenizer, or is neither string nor tokens.
        ValueError: an argument is outside what is described, there is no text, the model computes
            another attention, see `capture.capture_qkv`, or the folder holds results of other
            texts, settings, weights, versions or code.
    """
    check_target(target_recall)  # before hours of work
    check_per(per)
    config = AnchorConfig(tail=TAIL) if config is None else config
    with TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        found = _measured(model, texts, tokenizer, config, thetas, Path(place), progress)
        curves = mean_over_texts(found, config, thetas)
    return choose_thetas(curves, target_recall, per)


def _measured(
    model, texts, tokenizer, config, thetas, folder: Path, progress
) -> Iterator[dict[int, LayerCurves]]:
    """The curves of each prompt, by layer."""
    number = 0
    for place, text in enumerate(texts):
        for tokens in tokens_of(text, tokenizer, f"text {place} of texts"):
            one = Text(f"text {number}", tokens[None])
            where = folder / f"text_{number:03d}"
            rows = measured_layers(
                model,
                model.name_or_path,
                one,
                where,
                thetas=thetas,
                config=config,
                progress=partial(progress, desc=f"{one.name}, layers"),
            )
            shutil.rmtree(where / CAPTURE, ignore_errors=True)  # its numbers are there
            yield {row["layer"]: curves_of(row, tokens.shape[0]) for row in rows}
            number += 1
