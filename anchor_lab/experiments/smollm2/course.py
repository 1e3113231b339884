"""What SmolLM2 finds, as the notebooks print it."""

from collections.abc import Sequence

from anchor_lab.experiments.course import columns
from anchor_lab.experiments.page import spaced
from anchor_lab.experiments.smollm2.measure import WAYS
from anchor_lab.experiments.smollm2.page import answers


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
