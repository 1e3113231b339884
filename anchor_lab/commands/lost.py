"""What a report says is lost: by the predictions of its text, and of a few hidden facts."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from anchor_lab.commands import answers
from anchor_lab.experiments.answers.counts import MARGIN
from anchor_lab.experiments.answers.prompts import SHORT
from anchor_lab.experiments.experiment import progress_by
from anchor_lab.experiments.page import percent
from anchor_lab.experiments.store import OtherResults
from anchor_models.backend import TAIL
from anchor_ref.config import AnchorConfig

THETA = AnchorConfig().theta
ALL_OF_IT = f"first group, windows and a tail of {TAIL} rows"
TASKS = SHORT[:2]  # a short test: one fact, and one of two
PROMPTS = 4  # of each
MORE = 25  # of each, where so few do not tell


@dataclass(frozen=True)
class Said:
    """A sentence or more, and whether it advises against the method here."""

    words: str
    against: bool = False


@dataclass
class Lost:
    """What is said.

    Attributes:
        said: one after the other.
        answers: of the tasks that were asked, see `answers.rows`.
    """

    said: list[Said] = field(default_factory=list)
    answers: list[list[str]] = field(default_factory=list)


def what_is_lost(model, tokenizer, text, theta: float, options, about: dict) -> Lost:
    """Read the text and ask, dense and with AnchorAttention; what is there is not done again.

    Args:
        model, tokenizer: from `load_pretrained`.
        text: that the report is about.
        theta: that the report shows.
        options: of the command.
        about: settings of what was measured of the text.
    """
    from anchor_lab.report.text_losses import nothing_to_lose

    n = text.tokens.shape[1]
    if nothing_to_lose(n):
        return Lost(
            [Said(f"Nothing can be lost at {n} tokens: {ALL_OF_IT} are all of its pairs.")]
        )
    folder = options.out / "results"
    thetas = list(dict.fromkeys((THETA, theta)))  # as models run it, and as the report has it
    if options.no_losses:
        lost = Lost([Said("What the predictions of the text lose was not asked (--no-losses).")])
    else:
        lost = Lost(predictions(model, text.tokens, thetas, folder, about))
    length = needle_length(model, n)
    if not options.answers:
        lost.said.append(Said("No facts were hidden and asked for (--answers 0)."))
    elif nothing_to_lose(length):
        why = f"with room for an answer a prompt has {length} tokens, and {ALL_OF_IT} are all"
        lost.said.append(Said(f"No facts were hidden and asked for: {why} of its pairs."))
    else:
        try:
            found = ask(model, tokenizer, theta, length, options)
        except OtherResults:
            raise
        except ValueError as reason:
            lost.said.append(Said(f"No facts were hidden and asked for: {reason}."))
        else:
            lost.said.append(in_words(found, theta, length))
            lost.answers = answers.rows(found)
    return lost


def predictions(model, tokens, thetas: Sequence[float], folder: Path, about: dict) -> list[Said]:
    """What the predictions of the text lose at each θ, or why that is not known."""
    from anchor_lab.report.text_losses import text_losses

    describing = {"sizes", "layers", "heads", "thetas", "rows", "group_size"}
    settings = {name: x for name, x in about.items() if name not in describing}
    watch = partial(progress_by, part=_way, desc="losses")
    try:
        found = text_losses(model, tokens, thetas, folder, settings, watch)
    except OtherResults:
        raise
    except ValueError as reason:
        return [Said(f"What the predictions of the text lose is not known: {reason}.")]
    one = found[0]
    shown = "".join(f", and at θ = {theta:g} as shown here" for theta in thetas[1:])
    told = (
        f"Dense attention predicts the next token of this text with {one.dense:.3f} nats, mean "
        f"over {one.tokens} in rows beyond the first group; with AnchorAttention in every layer, "
        f"at θ = {thetas[0]:g} as models run it unless told otherwise{shown}:"
    )
    return [Said(told), *(Said(str(one), one.against) for one in found)]


def ask(model, tokenizer, theta: float, length: int, options) -> dict:
    """`short_answers` of `options.answers` prompts of each of `TASKS`, with this θ."""
    from anchor_lab.experiments.answers import run
    from anchor_lab.experiments.answers.ask import NEW_TOKENS

    asked = {"length": length, "tail": TAIL, "new_tokens": NEW_TOKENS}
    about = argparse.Namespace(model=options.model, dtype=options.dtype, **asked)
    # Another θ, another file: none stands in the way of a report with the next one.
    folder = options.out / f"answers_{theta:g}_{length}"
    return run.short_answers(
        model,
        tokenizer,
        theta=theta,
        tasks=TASKS,
        prompts=options.answers,
        store=run.open_store(folder, answers.settings(model, theta, about)),
        progress=partial(progress_by, part=answers.cell, desc="answers"),
        **asked,
    )


def needle_length(model, tokens: int) -> int:
    """Tokens of a prompt that hides a fact: the text's, as far as positions leave room.

    On a CPU no more than `run.LENGTH`, which take minutes.
    """
    from anchor_lab.experiments.answers import run
    from anchor_lab.experiments.answers.ask import NEW_TOKENS

    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    most = [tokens, *([positions - NEW_TOKENS] if positions else [])]
    return min(most if model.device.type != "cpu" else [*most, run.LENGTH])


def in_words(found: dict, theta: float, length: int) -> Said:
    """What `answers.conclusion` says, of which prompts, and what to do where answers are lost.

    Use is advised against only where the intervals are apart: one answer of eight may be chance.
    """
    counts = answers.telling(found)
    said = (
        f"Facts hidden in made-up prose of {length} tokens and asked for at its end, θ = "
        f"{theta:g}, a tail of {TAIL}: {answers.conclusion(found)}"
    )
    if not counts.says_something or counts.keeps():
        return Said(said)
    if not counts.apart:
        more = max(MORE, *(2 * one.prompts for one in found.values()))
        said += f" Ask more before you use it where answers are looked up: --answers {more}."
        return Said(said)
    said += (
        f" More than {percent(MARGIN)} of these prompts are lost. Do not use it here where "
        "answers are looked up in the text."
    )
    return Said(said, against=True)


def _way(theta: float | None) -> str:
    return "dense" if theta is None else f"θ = {theta:g}"
