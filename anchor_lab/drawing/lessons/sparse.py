"""Figures and numbers of stage 3: scattered keys, what the choice is worth, and the tail."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from anchor_lab.drawing import stages, style
from anchor_models.capture import Captured
from anchor_ref.anchor import compute_anchor
from anchor_ref.attention import anchor_attention
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import dense_attention, density, recall, rows_beyond
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups
from anchor_ref.sparse import attend_stripes
from anchor_ref.stripes import identify_stripes

CONTROLS = ("no stripes", "at random", "the last keys", "chosen")


def show_touched(plans: Sequence[StripePlan], config: AnchorConfig, n: int) -> dict[str, Tensor]:
    """How scattered are the stripes?"""
    data = stages.data_touched(plans, config, n)
    figure, ax = style.panels(size=(5.2, 3.6))
    stages.draw_touched(data, ax)
    pairs = zip(data["keys"].tolist(), data["blocks"].tolist(), strict=True)
    words = ", ".join(f"{keys:.0%} and {blocks:.0%}" for keys, blocks in pairs)
    style.finish(
        figure,
        show_touched.__doc__,
        f"Nine heads of SmolLM2, all groups with candidates; N = {n}, b = {config.block_size}, "
        f"θ = {config.theta:g}.",
        f"A dot a head: share of the keys that are stripes, and of the blocks with one: {words}.",
    )
    return data


def with_others(
    plan: StripePlan, config: AnchorConfig, n: int, choose: Callable[[int, int], Tensor]
) -> StripePlan:
    """As many candidates for each head and group as `plan` has, but those that `choose` names.

    Args:
        plan: batch 1.
        config: the regions.
        n: N.
        choose: of so many candidates so many, counted from 0 and each once.
    """
    heads = plan.counts.shape[1]
    lists = []
    for head in range(heads):
        for g, group in enumerate(groups(config, n, n)):
            places = choose(len(group.candidates), int(plan.counts[0, head, g]))
            lists.append(group.candidates.start + places.sort().values)
    return StripePlan.from_lists(lists, tuple(plan.counts.shape))


def data_controls(
    x: Captured,
    place: int,
    config: AnchorConfig,
    yours: Callable[[int, int], Tensor] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """What stage 2's choice is worth beside none, chance, and the last keys before a group.

    With r the mass that a row keeps, its dense output is r·kept + (1 − r)·dropped, two means of
    values; so what is put out instead, kept, is off by (1 − r)·‖kept − dropped‖.

    Args:
        x, place: the head.
        config: sizes and θ.
        yours: one control more, see `with_others`.
        seed: of chance.

    Returns:
        By `CONTROLS`, and "yours" where it is given, over the rows beyond the first group: lost,
        the mean of 1 − r; apart, the mean of ‖kept − dropped‖ in which a row counts by its 1 − r;
        error, the mean of ‖kept − dense‖. Both lengths in units of the mean ‖dense‖, so error =
        lost · apart.
    """
    n = x.q.shape[2]
    one = replace(x, q=x.q[:, place : place + 1], heads=(x.query_heads[place],))
    state = compute_anchor(one.q, one.k, one.v, config, one.scaling)
    plan = identify_stripes(one.q, one.k, state.max, config, one.scaling)
    generator = torch.Generator().manual_seed(seed)
    nothing = torch.empty(0, dtype=torch.int64)
    plans = [
        StripePlan.from_lists([nothing] * plan.counts.numel(), tuple(plan.counts.shape)),
        with_others(plan, config, n, lambda m, c: torch.randperm(m, generator=generator)[:c]),
        with_others(plan, config, n, lambda m, c: torch.arange(m - c, m)),
        plan,
    ]
    names = [*CONTROLS]
    if yours is not None:
        names, plans = [*names, "yours"], [*plans, with_others(plan, config, n, yours)]
    beyond = rows_beyond(config, n, n)
    dense = dense_attention(one.q, one.k, one.v, one.scaling)[0, 0, beyond].double()
    unit = dense.norm(dim=-1).mean()
    found = {}
    for name, made in zip(names, plans, strict=True):
        lost = 1 - recall(one.q, one.k, made, config, one.scaling)[0, 0, beyond].double()
        out = attend_stripes(one.q, one.k, one.v, state, made, config, one.scaling)
        wrong = (out[0, 0, beyond].double() - dense).norm(dim=-1).mean() / unit
        found[name] = {
            "lost": float(lost.mean()),
            "apart": float(wrong / lost.mean()),
            "error": float(wrong),
        }
    return found


def controls_table(found: dict[str, dict[str, float]]) -> str:
    """`data_controls` as text."""
    head = f"{'':16}{'mass lost':>11}{'  x  apart':>11}{'  =  error':>11}"
    lines = [
        f"{name:16}{x['lost']:>11.3f}{x['apart']:>11.2f}{x['error']:>11.3f}"
        for name, x in found.items()
    ]
    return "\n".join([head, *lines])


def data_errors(
    layers: Iterable[Captured], config: AnchorConfig
) -> dict[tuple[int, int], dict[str, float]]:
    """By (layer, head) the error that each of `data_controls` leaves."""
    return {
        (x.layer, head): {
            name: one["error"] for name, one in data_controls(x, place, config).items()
        }
        for x in layers
        for place, head in enumerate(x.query_heads)
    }


def errors_table(errors: dict[tuple[int, int], dict[str, float]]) -> str:
    """`data_errors` as text; a star where a control leaves less than the choice."""
    lines = [f"{'error':18}" + "".join(f"{name:>15}" for name in CONTROLS)]
    for (layer, head), of in errors.items():
        beaten = "  *" if of["chosen"] > min(of.values()) else ""
        cells = "".join(f"{of[name]:>15.3f}" for name in CONTROLS)
        lines.append(f"{f'layer {layer}, head {head}':18}{cells}{beaten}")
    return "\n".join(lines)


def data_tails(
    x: Captured, place: int, rows: Sequence[int], config: AnchorConfig, tails: Sequence[int]
) -> dict[int, dict[str, float | list[float]]]:
    """What a tail brings back, and what it costs.

    Args:
        x, place: the head.
        rows: that are looked at.
        config: all but the tail.
        tails: how many of the last rows see every key.

    Returns:
        By tail: recall of each row, density of the head.
    """
    n = x.q.shape[2]
    q = x.q[:, place : place + 1]
    _, trace = anchor_attention(q, x.k, x.v, config, x.scaling, return_trace=True)
    return {
        tail: {
            "recall": recall(q, x.k, trace.stripes, at, x.scaling)[0, 0, rows].tolist(),
            "density": float(density(trace.stripes, at, n, n)[0, 0]),
        }
        for tail in tails
        for at in (replace(config, tail=tail),)
    }


def tails_table(found: dict[int, dict], rows: Sequence[int]) -> str:
    """`data_tails` as text: the mass that each row keeps, and the share of pairs."""
    head = "tail".rjust(6) + "".join(f"row {row}".rjust(11) for row in rows) + "pairs".rjust(11)
    lines = [
        f"{tail:>6}" + "".join(f"{r:>11.2f}" for r in x["recall"]) + f"{x['density']:>11.3f}"
        for tail, x in found.items()
    ]
    return "\n".join([head, *lines])
