"""What each head keeps, loses and pays with every method, over each method's own knobs.

Definitions are those of `anchor_lab.methods.evaluate`; a few heads are looked at at a time, 128
rows at a time, so memory grows linearly in N.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import groupby

from jaxtyping import Float
from torch import Tensor

from anchor_lab.methods import EXTENSIONS, METHODS, Method, evaluate_all
from anchor_lab.methods.corrections import Correction
from anchor_lab.methods.names import also, resolve
from anchor_lab.methods.selection import ROWS, Selection
from anchor_models.capture import Captured
from anchor_ref.regions import causal_pairs

BEYOND = "recall_beyond_mean", "recall_beyond_p10"  # over the rows from the second group on
MEASURES = (
    "recall_mean",
    "recall_p10",
    "recall_min",
    *BEYOND,
    "density",
    "executed_density",
    "identification_cost",
    "output_error",
    "total_cost",
)
COLUMNS = ("text", "method", "configuration", "layer", "head", "length", *MEASURES)
GROUP = 2048  # queries that share their stripes, as published
SCORES = 2**24  # held at once: 64 MiB in float32, and the masks of a sweep beside them


def group_for(length: int, block_size: int = 128) -> int:
    """Queries of a group that suit a prompt: 2048 from 8192 tokens on, a quarter of shorter ones.

    In groups of 2048 a prompt of 2048 tokens is one dense group, and one of 4096 keeps half of all
    pairs before anything is selected. Four groups are the least that shows a choice; then a
    quarter of all pairs lies in windows, whatever the length.
    """
    return min(GROUP, max(1, length // 4 // block_size) * block_size)


def sweeps(
    methods: Sequence[str] | None = None, group_size: int = GROUP
) -> dict[str, list[Method]]:
    """The configurations of each method, from its sparsest to its densest.

    Args:
        methods: names of `METHODS` or `EXTENSIONS`, or aliases, see `resolve`; None
            for all of `METHODS`.
        group_size: queries of a group for those that have groups; a multiple of their block size.

    Raises:
        ValueError: a name is unknown, or `group_size` is no multiple of a method's blocks.
    """
    there = METHODS | EXTENSIONS
    names, unknown = resolve(METHODS if methods is None else methods, there)
    if unknown:
        raise ValueError(
            f"methods must be of {', '.join(METHODS)} (also {also(there)}; extensions beyond the "
            f"paper: {', '.join(EXTENSIONS)}), got {', '.join(unknown)}"
        )
    return {
        name: [_with_groups(method, group_size) for method in there[name].sweep()]
        for name in names
    }


def label_configurations(sweep: Sequence[Method]) -> list[str]:
    """What tells the configurations of a sweep apart, such as "theta=9"; "default" for only one.

    Args:
        sweep: configurations of one method, no two alike.
    """
    knobs = [_knobs(method) for method in sweep]
    moved = [name for name in knobs[0] if len({values[name] for values in knobs}) > 1]
    return [
        " ".join(f"{name}={_show(values[name])}" for name in moved) or "default"
        for values in knobs
    ]


def compare_heads(
    q: Float[Tensor, "1 Hq N D"],
    k: Float[Tensor, "1 Hkv N D"],
    v: Float[Tensor, "1 Hkv N D"],
    methods: Sequence[Method | Selection],
    scale: float | None = None,
    tail: int = 0,
    group_size: int = GROUP,
    correction: Correction | None = None,
) -> list[list[dict[str, float]]]:
    """What every head keeps, loses and pays for each of any number of configurations.

    total_cost = executed_density + identification_cost, in units of dense attention; scores that
    attention goes on with (`Selection.reused`) count once

    Args:
        q, k, v, scale: as in `anchor_attention`, of one prompt.
        methods: configurations of any methods, or what they selected for these heads. Dense
            attention is computed once for all.
        tail: how many of the last queries keep every key, whatever the method; 0 leaves each
            method as published.
        group_size: rows of the first group, which are not beyond it, whatever the method.
        correction: what stands for the dropped keys, whatever the method; None for nothing.

    Returns:
        For each query head, for each method its `MEASURES`: recall over rows (mean, 10th
        percentile, minimum; mean and 10th percentile over the rows beyond the first group, NaN
        where there are none), and shares of all causal pairs.

    Raises:
        TypeError, ValueError: see `evaluate_all`.
    """
    selections = [
        one if isinstance(one, Selection) else one.select(q, k, scale, tail=tail)
        for one in methods
    ]
    found = [[] for _ in range(q.shape[1])]
    evaluations = evaluate_all(q, k, v, selections, scale, correction)
    for selection, evaluation in zip(selections, evaluations, strict=True):
        summary = evaluation.recall_summary().items()
        measures = {f"recall_{name}": x[0].tolist() for name, x in summary}
        measures |= dict.fromkeys(BEYOND, [math.nan] * len(found))
        beyond = evaluation.recall[0, :, group_size:]
        if beyond.shape[-1]:
            values = beyond.mean(-1).tolist(), beyond.quantile(0.1, -1).tolist()
            measures |= zip(BEYOND, values, strict=True)
        for name in ("density", "executed_density", "identification_cost", "output_error"):
            measures[name] = getattr(evaluation, name)[0].tolist()
        for head, rows in enumerate(found):
            row = {name: values[head] for name, values in measures.items()}
            row["total_cost"] = row["executed_density"] + row["identification_cost"]
            if selection.reused is not None:
                row["total_cost"] -= selection.reused[0, head].item() / causal_pairs(q.shape[2])
            rows.append(row)
    return found


def compare_layer(
    captured: Captured,
    method: str,
    sweep: Sequence[Method],
    heads: Sequence[int] | None = None,
    text: str = "document",
    tail: int = 0,
    group_size: int = GROUP,
    correction: Correction | None = None,
) -> list[dict[str, str | int | float]]:
    """One row for each head of a layer and each configuration of a method.

    Args:
        captured: one prompt in one layer.
        method: what to call the method.
        sweep: its configurations.
        heads: the model's indices of query heads; None for all that were captured.
        text: what to call the prompt.
        tail, group_size, correction: as in `compare_heads`.

    Where heads decide together (`Method.heads_decide_together`) all captured heads do, whichever
    are asked for.

    Returns:
        Rows with `COLUMNS`, head by head.

    Raises:
        ValueError: the layer is no causal attention over all keys (`Captured.causal`), the capture
            holds several prompts, or not that head.
    """
    x = captured.causal().widened()
    if x.q.shape[0] != 1:
        raise ValueError(f"captured must hold one prompt, got {x.q.shape[0]}")
    there = x.query_heads
    wanted = list(there if heads is None else heads)
    if unknown := [head for head in wanted if head not in there]:
        raise ValueError(f"heads must be of those captured, {there}, got {unknown[0]}")
    labels, found = label_configurations(sweep), {}
    together = sweep[0].heads_decide_together
    if together:
        sweep = [method.select(x.q, x.k, x.scaling, tail=tail) for method in sweep]
    for places, keys in _together(x, [there.index(head) for head in wanted]):
        one = (x.q[:, places], x.k[:, keys], x.v[:, keys])
        chosen = [selection.of_heads(places) for selection in sweep] if together else sweep
        measures = compare_heads(*one, chosen, x.scaling, tail, group_size, correction)
        found |= zip(places, measures, strict=True)
    rows = [
        (text, method, label, x.layer, head, x.q.shape[2], *map(measures.get, MEASURES))
        for head in wanted
        for label, measures in zip(labels, found[there.index(head)], strict=True)
    ]
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def _together(x: Captured, places: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Places of query heads, and of the key heads that they read, that are looked at at once.

    Each key head is read by equally many, and all their scores of 128 rows are at most
    `SCORES`, or those of one key head.
    """
    readers: dict[int, list[int]] = {}
    for place in sorted(set(places)):
        readers.setdefault(place // (x.q.shape[1] // x.k.shape[1]), []).append(place)
    for count, keys in groupby(readers, lambda key: len(readers[key])):
        most = max(1, SCORES // (count * ROWS * x.q.shape[2]))
        keys = list(keys)
        for start in range(0, len(keys), most):
            some = keys[start : start + most]
            yield [place for key in some for place in readers[key]], some


def _with_groups(method: Method, group_size: int) -> Method:
    config = getattr(method, "config", None)
    if config is None:
        return method
    if group_size < 1 or group_size % config.block_size:
        raise ValueError(
            f"group_size must be a multiple of the block size {config.block_size}, "
            f"got {group_size}"
        )
    return replace(method, config=replace(config, step=group_size // config.block_size))


def _knobs(record) -> dict[str, object]:
    """All fields, those of a configuration inside included."""
    found = {}
    for field in fields(record):
        value = getattr(record, field.name)
        found |= _knobs(value) if is_dataclass(value) else {field.name: value}
    return found


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
