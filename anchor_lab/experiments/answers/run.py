"""Ask a model, with dense attention and with AnchorAttention; what is there is not asked again."""

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path

from anchor_lab.experiments.answers.ask import DENSE, NEW_TOKENS, Way, answers
from anchor_lab.experiments.answers.counts import Counts, count
from anchor_lab.experiments.answers.prompts import (
    PLACEMENTS,
    SHORT,
    TASKS,
    check_names,
    make_prompt,
)
from anchor_lab.experiments.store import Store
from anchor_models.backend import TAIL
from anchor_ref.config import AnchorConfig

KEY = ("task", "placement", "prompt", "way")
FILE = "answers.json"
PROMPTS = 4  # of a task
LENGTH = 4096


def short_answers(
    model,
    tokenizer,
    *,
    length: int = LENGTH,
    theta: object = AnchorConfig().theta,
    tail: int = TAIL,
    tasks: Sequence[str] = SHORT,
    placements: Sequence[str] = ("end",),
    prompts: int = PROMPTS,
    seed: int = 0,
    new_tokens: int = NEW_TOKENS,
    store: Store | None = None,
    progress: Callable[[list], Iterable] = iter,
) -> dict[tuple[str, str], Counts]:
    """Answers found with dense attention and with AnchorAttention, by task and placement.

    Args:
        model, tokenizer: from `load_pretrained`; a chat template is used where there is one.
        length: N, tokens of each prompt, more than a group.
        theta, tail: of AnchorAttention, see `options`.
        tasks, placements: of `TASKS` and `PLACEMENTS`.
        prompts: of each task and placement, at least 1.
        seed: of the first prompt; the others follow.
        new_tokens: that the model may write.
        store: keeps each answer as it is found, key `KEY`, and hands out those of earlier runs.
        progress: wraps the list of prompts that are left.

    Returns:
        Counts by (task, placement).

    Raises:
        ValueError: an argument is outside what is described; `length` leaves no room, or is no
            longer than a group, where all is dense; see `options`.
    """
    check_names("tasks", tasks, TASKS)
    check_names("placements", placements, PLACEMENTS)
    if not tasks or not placements:
        raise ValueError("tasks and placements must name at least one each, got none")
    if prompts < 1:
        raise ValueError(f"prompts must be at least 1, got {prompts}")
    group = AnchorConfig().group_size
    if length <= group:
        raise ValueError(
            f"length must be longer than a group of {group} tokens, of which nothing is skipped, "
            f"got {length}"
        )
    ways = {"dense": DENSE, "ours": Way(theta, tail)}
    cells = list(product(tasks, placements))
    found = {}
    if store is not None:
        found = {store.key_of(row): row["found"] for row in store.rows}
    asked = [(*cell, at, way) for *cell, at in _all(cells, seed, prompts) for way in ways]
    for key in progress([key for key in asked if key not in found]):
        task, placement, at, way = key
        prompt = make_prompt(tokenizer, task, length, at, placement)
        (words,) = answers(model, tokenizer, [prompt], ways[way], new_tokens=new_tokens)
        found[key] = prompt.found(words)
        if store is not None:
            row = dict(zip(KEY, key, strict=True))
            store.add([{**row, "found": found[key], "answer": prompt.answer, "written": words}])
    seeds = range(seed, seed + prompts)
    return {
        (task, placement): count(
            *([found[task, placement, at, way] for at in seeds] for way in ways)
        )
        for task, placement in cells
    }


def _all(cells: list[tuple[str, str]], seed: int, prompts: int) -> list[tuple[str, str, int]]:
    return [(*cell, at) for cell in cells for at in range(seed, seed + prompts)]


def open_store(folder: Path, settings: dict) -> Store:
    """The answers of earlier runs with the same settings, to go on with.

    Raises:
        ValueError: see `Store`.
    """
    return Store(folder / FILE, KEY, settings)
