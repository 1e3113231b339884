"""The loss of a whole model with a method in the place of its attention, and equal losses."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from anchor_lab.experiments.side_by_side.blocks import first_that
from anchor_lab.experiments.side_by_side.ladders import OURS, knob_of, ladders
from anchor_lab.experiments.store import Store
from anchor_lab.methods import Method
from anchor_lab.methods.in_a_model import method_attention
from anchor_ref.config import AnchorConfig

DENSE = "dense"
GOALS = (12.0, 9.0)  # θ of AnchorAttention, whose loss the others are given


@torch.no_grad()
def loss(
    model, tokens: Int[Tensor, "1 N"], method: Method | None, first: int
) -> tuple[float, float]:
    """Mean loss of the tokens that rows `first` and later predict, and what was kept.

    Args:
        model: a transformers causal language model, with "sdpa" attention.
        tokens: a text, on the model's device.
        method: in every layer; None for dense attention.
        first: row, less than N − 1.

    Returns:
        (nats a token, share of the causal pairs kept, mean over layers and heads).
    """
    n = tokens.shape[1]
    if method is None:
        logits, kept = model(tokens, logits_to_keep=n - first).logits, 1.0
    else:
        with method_attention(model, method) as densities:
            logits = model(tokens, logits_to_keep=n - first).logits
        kept = sum(densities) / len(densities)
    wanted = tokens[0, first + 1 :]
    total = sum(
        F.cross_entropy(rows.float(), targets, reduction="sum").item()
        for rows, targets in zip(logits[0, :-1].split(1024), wanted.split(1024), strict=True)
    )
    return total / len(wanted), kept


def measure_losses(
    store: Store, model, tokens: Tensor, config: AnchorConfig, methods: Sequence[str]
) -> None:
    """A row for each method and configuration that the equal losses need, found by bisection.

    Rows have "loss" above dense attention's, nats a token over the rows beyond the first group.

    Args:
        store: with `measure.KEY`; what it holds is not measured again.
        model, tokens: as in `loss`.
        config: sizes of AnchorAttention.
        methods: names of `ladders`, AnchorAttention's not among them.
    """
    first, n = config.group_size, tokens.shape[1]
    model.set_attn_implementation("sdpa")
    found = ladders(config)

    def above_dense(name: str, method: Method | None = None) -> float:
        setting = None if method is None else knob_of(name, method)
        key = {"part": "loss", "n": n, "method": name, "setting": setting}
        if not store.holds(**key):
            nats, kept = loss(model, tokens, method, first)
            base = nats if method is None else losses_of(store.rows)[DENSE, None]["nats"]
            row = {"status": "ok", "nats": nats, "loss": nats - base, "kept": kept}
            store.add([{**key, **row}])
        return losses_of(store.rows)[name, setting]["loss"]

    above_dense(DENSE)
    for theta in GOALS:
        goal = above_dense(OURS, found[OURS][_place_of(theta, found[OURS])])
        for name in methods:
            ladder = found[name]

            def little(place: int, name=name, ladder=ladder, goal=goal) -> bool:
                return above_dense(name, ladder[place]) <= goal

            first_that(little, len(ladder))


def losses_of(rows: Sequence[dict]) -> dict[tuple[str, float | None], dict]:
    """The rows of `measure_losses` by method and setting."""
    return {
        (row["method"], row["setting"]): row
        for row in rows
        if row["part"] == "loss" and row["status"] == "ok"
    }


def at_equal_loss(
    rows: Sequence[dict], name: str, ladder: Sequence[Method], theta: float
) -> int | None:
    """Where on its ladder a method loses no more than AnchorAttention at θ.

    Args:
        rows: of a store, with those of `measure_losses`.
        name: of a method; AnchorAttention's is at θ itself.
        ladder: its configurations, from the sparsest on.
        theta: of `GOALS`.

    Returns:
        The sparsest place that was measured and loses so little; None where there is none.
    """
    if name == OURS:
        return _place_of(theta, ladder)
    found = losses_of(rows)
    goal = found[OURS, theta]["loss"]
    for place, method in enumerate(ladder):
        row = found.get((name, knob_of(name, method)))
        if row is not None and row["loss"] <= goal:
            return place
    return None


def _place_of(theta: float, ladder: Sequence[Method]) -> int:
    return [method.config.theta for method in ladder].index(theta)
