"""What a model loses with each method, by token and by place, as the notebooks print it."""

from collections.abc import Sequence
from math import exp, isnan

from anchor_lab.drawing.shapes import label
from anchor_lab.drawing.style import ACCENT, DIM, STRIPE, TAIL, finish, panels
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.course import columns
from anchor_lab.experiments.losses.figure import (
    Lost,
    data_at,
    data_classes,
    data_eighths,
    data_level,
    data_lost,
    in_words,
)
from anchor_lab.experiments.losses.finished import finished_rows
from anchor_lab.experiments.losses.measure import DENSE, EIGHTHS, row_of, theta_label
from anchor_lab.experiments.losses.tokens import CLASSES
from anchor_lab.experiments.page import percent
from anchor_lab.experiments.rivals.page import kind_of
from anchor_ref.config import AnchorConfig

CURVES = {OURS: STRIPE, "XAttention": ACCENT, "FlexPrefill": TAIL, "StreamingLLM": DIM}
THETA = AnchorConfig().theta  # what AnchorAttention's pairs are taken at


def data_dense(rows: Sequence[dict]) -> dict[str, float]:
    """By text: nats a token that dense attention loses.

    Args:
        rows: of results/losses/losses.json.
    """
    row = next(row for row in rows if row["method"] == DENSE)
    return {text: sum(row["classes"][text]) / sum(row["counts"][text]) for text in row["counts"]}


def data_ours(rows: Sequence[dict], thetas: Sequence[float]) -> dict[float, Lost]:
    """By θ: pairs kept and what AnchorAttention loses, without a tail."""
    return {theta: data_lost(row_of(rows, OURS, theta_label(theta))) for theta in thetas}


def ours_table(rows: Sequence[dict], thetas: Sequence[float]) -> str:
    """`data_ours` as text; beside nats by how much the perplexity e^loss is raised."""
    titles = in_words(data_dense(rows)), "pairs kept", "nats above", "perplexity"
    lines = [columns(*titles, first=36)]
    for theta, lost in data_ours(rows, thetas).items():
        cells = percent(lost.density), _digits(lost.mean), f"+{exp(lost.mean) - 1:.0%}"
        lines.append(columns(f"  AnchorAttention, θ = {theta:g}, no tail", *cells, first=36))
    return "\n".join(lines)


def data_published(rows: Sequence[dict], budget: str = "density") -> dict[str, Lost]:
    """By method, the one that loses least first: for what AnchorAttention spends at θ = 12.

    Published methods, and one oracle: the difference test of each row for itself.

    Args:
        rows: of results/losses/losses.json.
        budget: "density", pairs kept, or "total_cost".
    """
    found = data_at(finished_rows(rows), budget, data_level(rows, budget, THETA))
    return {
        name: lost
        for name, lost in found.items()
        if lost is not None and kind_of(name) != "variant"
    }


def published_table(rows: Sequence[dict]) -> str:
    """`data_published` as text."""
    lines = [columns("method", "pairs kept", "total cost", "nats above", first=22)]
    for name, lost in data_published(rows).items():
        title = f"  {name}{' *' * (kind_of(name) == 'oracle')}"
        cells = percent(lost.density), percent(lost.total_cost), _digits(lost.mean)
        lines.append(columns(title, *cells, first=22))
    return "\n".join(lines)


def data_curves(rows: Sequence[dict]) -> dict[str, list[tuple[float, float]]]:
    """By method of `CURVES`: (pairs kept, nats a token above dense) of each configuration."""
    return {
        name: sorted(
            (row["density"], data_lost(row).mean) for row in rows if row["method"] == name
        )
        for name in CURVES
    }


def draw_curves(data: dict[str, list[tuple[float, float]]], ax) -> None:
    """What does a model lose, by the pairs that it keeps?"""
    for name, points in data.items():
        kept, lost = zip(*points, strict=True)
        ax.plot(kept, lost, color=CURVES[name], marker="o", ms=4, lw=1.2)
        label(ax, name, (kept[-1], lost[-1]), (6, 0), color=CURVES[name])
    ax.set(xlim=(0, 1), ylim=(0, 0.55), xlabel="share of the pairs kept")
    ax.set(ylabel="nats a token above dense")


def show_curves(data: dict[str, list[tuple[float, float]]], where: str) -> None:
    """The figure of `draw_curves`, with its words."""
    figure, ax = panels(size=(7.2, 4.6))
    draw_curves(data, ax)
    told = [
        f"{name} {lost:.3f} with {kept:.0%}"
        for name, points in data.items()
        for kept, lost in [min(points, key=lambda point: abs(point[0] - 0.5))]
    ]
    finish(
        figure,
        draw_curves.__doc__,
        f"SmolLM2, {where}; means of three texts of 8192 tokens, rows beyond the first 2048.",
        "Loss above dense attention's against the share of the pairs kept, a falling line for "
        f"each method. Nearest to half of the pairs: {'; '.join(told)}.",
    )


def data_kinds(rows: Sequence[dict], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """By method: nats a token of each kind, for AnchorAttention's pairs at θ = 12; all texts.

    Under "tokens": what share of all tokens is of each kind.
    """
    found = data_published(rows)
    dense = next(row for row in rows if row["method"] == DENSE)
    counts = [sum(kind) for kind in zip(*dense["counts"].values(), strict=True)]
    shares = {name: count / sum(counts) for name, count in zip(CLASSES, counts, strict=True)}
    return {"tokens": shares} | {
        name: {
            kind: nats
            for kind, (nats, _) in zip(
                CLASSES, data_classes(rows, found[name]).values(), strict=True
            )
        }
        for name in names
    }


def kinds_table(rows: Sequence[dict], names: Sequence[str]) -> str:
    """`data_kinds` as text."""
    kinds = data_kinds(rows, names)
    look = {"first": 22, "other": 20}
    lines = [columns("nats above dense", *CLASSES, **look)]
    lines.append(columns("  of all tokens", *map(percent, kinds.pop("tokens").values()), **look))
    lines += [
        columns(f"  {name}", *(_digits(nats) for nats in of.values()), **look)
        for name, of in kinds.items()
    ]
    return "\n".join(lines)


def data_places(rows: Sequence[dict], tokens: int, names: Sequence[str]) -> dict[str, list[float]]:
    """By method: nats a token by eighths of a group of 2048 rows, for the same pairs.

    Args:
        rows: of results/losses/losses.json.
        tokens: of a text, in its settings.
        names: of methods.
    """
    found = data_published(rows)
    return {name: data_eighths(found[name], tokens) for name in names}


def places_table(rows: Sequence[dict], tokens: int, names: Sequence[str]) -> str:
    """`data_places` as text."""
    eighths = [f"{part}/{EIGHTHS}" for part in range(1, EIGHTHS + 1)]
    lines = [columns("nats, by place in group", *eighths, first=24, other=7)]
    for name, by_place in data_places(rows, tokens, names).items():
        cells = ("–" if isnan(nats) else _digits(nats) for nats in by_place)
        lines.append(columns(f"  {name}", *cells, first=24, other=7))
    return "\n".join(lines)


def _digits(nats: float) -> str:
    """Three decimals; nothing is not below nothing."""
    return f"{nats:.3f}".replace("-0.000", "0.000")
