"""What SmolLM2 finds, and what a tail costs, as the notebooks print it."""

from collections.abc import Sequence

from anchor_lab.experiments.course import columns
from anchor_lab.experiments.page import number, spaced
from anchor_lab.experiments.smollm2.figure import data_times
from anchor_lab.experiments.smollm2.measure import WAYS
from anchor_lab.experiments.smollm2.page import answers, measure_ways


def data_answers(rows: Sequence[dict]) -> dict[int, dict[str, int]]:
    """By length: how many prompts there were, "prompts", and how many each way answered.

    Args:
        rows: of results/smollm2/smollm2.json.
    """
    return {
        n: {"prompts": count, **dict(zip(WAYS, found, strict=True))}
        for n, count, found in answers(list(rows))
    }


def answers_table(rows: Sequence[dict]) -> str:
    """`data_answers` as text."""
    found = data_answers(rows)
    head = columns("hidden numbers found", *WAYS)
    lines = [
        columns(f"  N = {spaced(n)}, of {x['prompts']}", *(str(x[way]) for way in WAYS))
        for n, x in found.items()
    ]
    return "\n".join([head, *lines])


def tails_table(rows: Sequence[dict]) -> str:
    """Milliseconds of a layer's attention by length: dense, and with each tail."""
    ways = ["cudnn", *measure_ways()]
    lines = [
        columns(f"  N = {spaced(n)}", *(number(times[way]) for way in ways))
        for n, times in data_times(rows).items()
    ]
    return "\n".join([columns("a layer's attention, ms", *ways), *lines])


def written(rows: Sequence[dict], length: int, prompt: int) -> dict[str, str]:
    """What the model wrote to one prompt, by the way in which the prompt was read.

    Raises:
        ValueError: there is no such prompt.
    """
    found = {
        row["way"]: row["written"]
        for row in rows
        if (row["part"], row.get("length"), row.get("prompt")) == ("answers", length, prompt)
    }
    if not found:
        raise ValueError(
            f"length and prompt must be of one that was asked, got {length}, {prompt}"
        )
    return {way: found[way] for way in WAYS if way in found}
