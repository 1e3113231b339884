"""Figures that notebook 12 alone shows: attention's share of a prefill, and a rule against it.

Two numbers of a reader's own decide what a whole prefill takes: attention's share a of its time
while it is dense, and the ratio r that replaces this share's time,

    r = x p + y + z / t_dense,        t / t_dense of the prefill = 1 − a (1 − r),

with p the share of the pairs that are kept, the tail's included, and t_dense the milliseconds of
one layer's dense attention. x, y and z are fitted to calls of many shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from anchor_lab.drawing.shapes import label, name_ticks
from anchor_lab.drawing.style import ACCENT, INK, STRIPE, finish, panels
from anchor_lab.experiments.attention.figure import short
from anchor_lab.experiments.course import columns
from anchor_lab.experiments.crossover.figure import data_prefills, heads_of, over_sdpa
from anchor_lab.experiments.crossover.fit import held_out, is_dense
from anchor_lab.experiments.crossover.share import data_dense
from anchor_lab.experiments.page import spaced
from anchor_models.backend import TAIL
from anchor_models.integration.cost import kept_share, method_pairs, read_values
from anchor_ref import AnchorConfig
from anchor_ref.regions import causal_pairs

NAMES = {"smollm2": "SmolLM2-135M", "random": "an 8B's layers"}  # short ones, for figures


def share_kept(n: int, stripes: float, tail: int = 0) -> float:
    """Share of the causal pairs of a prompt that are computed, everything kept counted.

    Args:
        n: N, tokens.
        stripes: share of the candidates that are selected.
        tail: last rows that see everything.
    """
    always, candidates, _, of_tail = method_pairs(AnchorConfig(tail=tail), n, n)
    return (always + stripes * candidates + of_tail) / causal_pairs(n)


def kept_table(lengths: Sequence[int], stripes: Sequence[float]) -> str:
    """`share_kept` by length and by the share of the candidates selected, and the tail's part."""
    lines = [
        columns("p without a tail", *(f"{x:.0%} kept" for x in stripes), "the tail", first=20)
    ]
    for n in lengths:
        shares = [share_kept(n, x) for x in stripes]
        shares.append(share_kept(n, 0.0, TAIL) - share_kept(n, 0.0))
        lines.append(columns(f"  N = {spaced(n)}", *(f"{x:.3f}" for x in shares), first=20))
    return "\n".join(lines)


@dataclass(frozen=True)
class Call:
    """A call on planted stripes that was measured beside dense attention.

    Attributes:
        heads: Hq, Hkv, D.
        n: N, tokens.
        kept: p, share of the causal pairs, the tail's included.
        dense_ms: t_dense.
        ratio: r, its time over t_dense.
        judges: its length was held out when the rule was fitted.
    """

    heads: tuple[int, int, int]
    n: int
    kept: float
    dense_ms: float
    ratio: float
    judges: bool


def data_ratios(rows: Sequence[dict]) -> list[Call]:
    """Every whole prompt that ran both ways."""
    whole = [row for row in rows if row["part"] == "calls" and row["queries"] == row["keys"]]
    dense = {(heads_of(row), row["keys"]): row["ms"]["median"] for row in whole if is_dense(row)}
    found = []
    for row in whole:
        at = heads_of(row), row["keys"]
        if row["way"] == "anchor" and at in dense:
            kept = share_kept(row["keys"], row["kept"], row["tail"])
            ratio = row["ms"]["median"] / dense[at]
            found.append(Call(*at, kept, dense[at], ratio, held_out(row)))
    return found


@dataclass(frozen=True)
class Rule:
    """r = x p + y + z / t_dense."""

    x: float
    y: float
    z: float

    def __call__(self, kept: float, dense_ms: float) -> float:
        """The expected share of dense attention's time."""
        return self.x * kept + self.y + self.z / dense_ms

    def most_kept(self, dense_ms: float) -> float:
        """The p at which it takes as long as dense attention."""
        return (1 - self.y - self.z / dense_ms) / self.x


def fit_rule(calls: Sequence[Call]) -> Rule:
    """Least squares of the relative error, over the lengths that are not held out."""
    used = [call for call in calls if not call.judges]
    terms = [[call.kept, 1.0, 1 / call.dense_ms] for call in used]
    measured = torch.tensor([call.ratio for call in used]).double()
    system = torch.tensor(terms).double() / measured[:, None]
    found = torch.linalg.lstsq(system, torch.ones_like(measured)[:, None]).solution
    return Rule(*found[:, 0].tolist())


def judged(rule: Rule, calls: Sequence[Call]) -> dict[str, float]:
    """The relative error of a rule over held-out calls, and how often it foretells wrongly.

    Returns:
        median, nine_of_ten: |rule / measured − 1|; wrong: calls whose gain or loss it mistakes;
        calls: how many there are; near: |r − 1| at most, of those that are mistaken.
    """
    judges = [call for call in calls if call.judges]
    told = [rule(call.kept, call.dense_ms) for call in judges]
    off = [abs(r / call.ratio - 1) for r, call in zip(told, judges, strict=True)]
    middle, high = torch.tensor(off).double().quantile(torch.tensor([0.5, 0.9]).double()).tolist()
    mistaken = [
        abs(call.ratio - 1)
        for r, call in zip(told, judges, strict=True)
        if (r < 1) != (call.ratio < 1)
    ]
    return {
        "median": middle,
        "nine_of_ten": high,
        "wrong": len(mistaken),
        "calls": len(judges),
        "near": max(mistaken, default=0.0),
    }


def data_share(rows: Sequence[dict]) -> dict[str, dict[int, dict[str, float]]]:
    """`data_dense`, whose share is a, by short names, and the ratio that was measured.

    Returns:
        What `data_dense` does; always: the ratio with AnchorAttention in every layer.
    """
    prefills = data_prefills(rows)
    return {
        NAMES[model]: {
            n: dense | {"always": over_sdpa(prefills[model][n], "always")}
            for n, dense in by_length.items()
        }
        for model, by_length in data_dense(rows).items()
    }


def of_prefill(share: float, ratio: float) -> float:
    """A prefill's time over that with dense attention, whose share of it takes `ratio` now."""
    return 1 - share * (1 - ratio)


def assumed_kept(n: int, theta: float = 12.0) -> float:
    """p of a prompt whose heads keep what SmolLM2's do at this length, with the tail of models."""
    return share_kept(n, kept_share(read_values()["kept"], theta, n), TAIL)


def data_expected(
    data: dict[str, dict[int, dict[str, float]]], rule: Rule
) -> dict[str, dict[int, float]]:
    """By model and length of `data_share`: the ratio of a prefill that the rule tells."""
    return {
        name: {
            n: of_prefill(at["share"], rule(assumed_kept(n), at["attention_ms"]))
            for n, at in found.items()
        }
        for name, found in data.items()
    }


def off_by(
    data: dict[str, dict[int, dict[str, float]]], expected: dict[str, dict[int, float]], least: int
) -> dict[str, dict[int, float]]:
    """rule / measured − 1 of prefills from `least` tokens on."""
    return {
        name: {n: expected[name][n] / at["always"] - 1 for n, at in found.items() if n >= least}
        for name, found in data.items()
    }


def longer(data: dict[int, dict[str, float]], n: int, attention_ms: float) -> float:
    """a of a prompt twice as long as the longest of one model, `n` tokens.

    All but attention takes twice as long.

    Args:
        data: of one model, see `data_share`.
        n: its length, twice the longest.
        attention_ms: what one layer's dense attention takes there.

    Raises:
        ValueError: `n` is another length.
    """
    if n != 2 * max(data):
        raise ValueError(f"n must be twice the longest, {2 * max(data)}, got {n}")
    at = data[max(data)]
    rest = 2 * (at["ms"] / at["layers"] - at["attention_ms"])
    return attention_ms / (attention_ms + rest)


def data_workloads(
    data: dict[str, dict[int, dict[str, float]]], rule: Rule, longest_ms: float
) -> dict[str, dict[str, int | float | None]]:
    """What the rule tells of three workloads, with SmolLM2's p at their lengths and a tail.

    Args:
        data: see `data_share`, of both models.
        rule: fitted.
        longest_ms: one layer's dense attention of the 8B model at twice its longest prefill.

    Returns:
        By name: n, a, p, r, left (of the prefill's time), and measured, None where it was not.
    """
    small, large = data.values()
    far = 2 * max(large)
    cases = {
        "chat, SmolLM2": (8192, small[8192], small[8192]["share"]),
        "retrieval, 8B": (max(large), large[max(large)], large[max(large)]["share"]),
        "summaries, 8B": (far, {"attention_ms": longest_ms}, longer(large, far, longest_ms)),
    }
    found = {}
    for name, (n, at, share) in cases.items():
        kept = assumed_kept(n)
        ratio = rule(kept, at["attention_ms"])
        found[name] = {
            "n": n,
            "a": share,
            "p": kept,
            "r": ratio,
            "left": of_prefill(share, ratio),
            "measured": at.get("always"),
        }
    return found


def workloads_table(found: dict[str, dict[str, int | float | None]]) -> str:
    """`data_workloads` as text."""
    names = ("a", "p", "r", "left", "measured")
    lines = [columns("", "tokens", *names, first=16)]
    for name, x in found.items():
        cells = ("–" if x[key] is None else f"{x[key]:.2f}" for key in names)
        lines.append(columns(f"  {name}", spaced(x["n"]), *cells, first=16))
    return "\n".join(lines)


def draw_share(data: dict[str, dict[int, dict[str, float]]], ax) -> None:
    """How much of a prefill is attention?"""
    for (name, found), colour in zip(data.items(), (STRIPE, ACCENT), strict=True):
        shares = [at["share"] for at in found.values()]
        ax.plot(list(found), shares, color=colour, marker="o", ms=4)
        label(ax, name, (max(found), shares[-1]), color=colour)
    ax.set(xscale="log", xlabel="N, tokens", ylabel="share of the time", ylim=(0, 1))
    name_ticks(ax.xaxis, list(found), [short(n) for n in found])


def show_share(data: dict[str, dict[int, dict[str, float]]], where: str) -> None:
    """The figure of `draw_share`, with its words."""
    figure, ax = panels(size=(7.2, 3.2))
    draw_share(data, ax)
    told = "; ".join(
        f"{name}: " + ", ".join(f"{found[n]['share']:.0%} at {n}" for n in list(found)[-5:])
        for name, found in data.items()
    )
    finish(
        figure,
        draw_share.__doc__,
        f"{where}; the device's time for dense attention of all layers, over the whole prefill's.",
        f"Attention's share of a prefill against length, rising for both models. {told}.",
    )


def draw_rule(data: dict[str, dict[int, dict[str, float]]], expected: dict, ax) -> None:
    """Does the rule tell what a whole prefill takes?

    Args:
        data: see `data_share`.
        expected: by the same names and lengths what the rule says.
        ax: where to.
    """
    for (name, found), colour in zip(data.items(), (STRIPE, ACCENT), strict=True):
        measured = [at["always"] for at in found.values()]
        ax.plot(list(found), measured, color=colour, marker="o", ms=4)
        ax.plot(list(expected[name]), list(expected[name].values()), ":", color=colour, lw=2)
        label(ax, name, (max(found), measured[-1]), color=colour)
    ax.axhline(1, color=INK, lw=0.8)
    ax.set(xscale="log", xlabel="N, tokens", ylabel="time / time with dense attention")
    ax.set_ylim(0, None)
    name_ticks(ax.xaxis, list(found), [short(n) for n in found])


def show_rule(data: dict[str, dict[int, dict[str, float]]], expected: dict, where: str) -> None:
    """The figure of `draw_rule`, with its words."""
    figure, ax = panels(size=(7.2, 3.4))
    draw_rule(data, expected, ax)
    ends = [
        f"{name} {found[max(found)]['always']:.2f} and {expected[name][max(found)]:.2f}"
        for name, found in data.items()
    ]
    finish(
        figure,
        draw_rule.__doc__.splitlines()[0],
        f"{where}; θ = 12, tail {TAIL}. Lines: measured; dots: 1 − a (1 − r).",
        "Time of a prefill over that with dense attention, against length, measured and by the "
        f"rule, at the longest: {'; '.join(ends)}. For SmolLM2 from 4k to 16k the "
        "measured line lies far above 1 and above the rule.",
    )
