"""Figures of inputs that break the method."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.analysis.failures import CAUSES
from anchor_lab.drawing.shapes import curve, mark
from anchor_lab.drawing.style import ACCENT, DIM, INIT, INK, SKIPPED, STRIPE, WINDOW

COLOURS = {"kept": SKIPPED, **dict(zip(CAUSES, (INIT, STRIPE, WINDOW, INK), strict=True))}


def data_bound(thetas: Sequence[float], counts: Sequence[int]) -> dict[str, list]:
    """The most that each row's own test can lose: n e^(−θ) / (1 + n e^(−θ)) for n candidates.

    Returns:
        count: n, `[counts]`; lost: for each θ `[counts]`, in [0, 1).
    """
    n = torch.tensor(counts, dtype=torch.float64)
    lost = {theta: (n.log() - theta).sigmoid().tolist() for theta in thetas}
    return {"count": list(counts), "lost": lost}


def draw_bound(data: dict[str, list], ax) -> None:
    """How much can keys weigh together that are light alone?"""
    for theta, lost in data["lost"].items():
        curve(ax, data["count"], lost, f"θ = {theta:g}", ACCENT)
    ax.set(xscale="log", xlabel="candidates", ylabel="mass lost, at most", ylim=(0, 1))


def data_causes(
    cases: Mapping[str, Mapping[str, Float[Tensor, "B Hq N"]]], first_row: int
) -> dict[str, dict[str, float]]:
    """What is kept and what lost the rest, mean over the rows from `first_row` on.

    Args:
        cases: by name what `analysis.failures.blame` returned.
        first_row: the first row that has candidates.

    Returns:
        Of each case the shares of `CAUSES` and "kept"; they add up to 1.
    """
    found = {}
    for name, lost in cases.items():
        shares = {cause: float(x[..., first_row:].mean()) for cause, x in lost.items()}
        found[name] = {"kept": 1 - sum(shares.values()), **shares}
    return found


def draw_causes(data: dict[str, dict[str, float]], ax) -> None:
    """Where did the mass go?"""
    cases, left = range(len(data)), torch.zeros(len(data))
    for name, colour in COLOURS.items():
        share = torch.tensor([shares[name] for shares in data.values()])
        # In grey the threshold is as light as the mean anchor.
        look = {"fc": colour, "ec": "white", "lw": 0, "hatch": "////" * (name == "threshold")}
        bars = ax.barh(cases, share, left=left, height=0.7, label=name, **look)
        named = [name if x > 0.12 and name != "kept" else "" for x in share.tolist()]
        ax.bar_label(bars, named, label_type="center", color="white")
        left += share
    for y, shares in enumerate(data.values()):
        ax.text(1.01, y, f"recall {shares['kept']:.2f}", va="center")
    ax.set(yticks=cases, yticklabels=list(data), xlim=(0, 1), xlabel="mass of a row")
    ax.invert_yaxis()
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
    ax.legend(**place, ncols=len(COLOURS), columnspacing=1.2, handlelength=1)


def draw_reach(data: dict[str, list[float]], ax) -> None:
    """How far must the vectors move until recall falls?

    Args:
        data: "reach", and by name the mean recall at each.
        ax: where to draw.
    """
    reach, *names = data
    for name, colour in zip(names, (STRIPE, ACCENT), strict=True):
        curve(ax, data[reach], data[name], name, colour, (8, 0), marker="o", weight="bold")
    ax.set(xlabel="each vector moves by this share of its length", ylabel="recall, mean over rows")
    ax.set_ylim(0, 1.02)


def data_warning(
    recall: Float[Tensor, "N"], promised: Float[Tensor, "N"], first_row: int, least: float
) -> dict[str, Tensor]:
    """What each row that has candidates was promised and what it has.

    Args:
        recall, promised: of one head's rows, `[N]`.
        first_row: the first row that has candidates.
        least: rows promised less are warned of.

    Returns:
        promised, recall, warned: `[N − first_row]`.
    """
    promised, recall = promised[first_row:], recall[first_row:].to(promised.dtype)
    return {"promised": promised, "recall": recall, "warned": promised < least}


def draw_warning(data: dict[str, Tensor], least: float, ax) -> None:
    """Which rows are warned of, and which need it?"""
    ax.fill_between([0, 1], [0, 1], color=SKIPPED, lw=0)
    ax.text(0.97, 0.04, "never: less\nthan promised", color=DIM, ha="right")
    points = data["promised"], data["recall"], data["warned"]
    mark(ax, *points, colours=(WINDOW, STRIPE), sizes=(9, 9), alpha=0.6)
    ax.axvline(least, color=INK, lw=0.8)
    warned, low = (float(x.double().mean()) for x in (data["warned"], data["recall"] < least))
    ax.text(0.02, 1.05, f"warned: {warned:.1%}", color=STRIPE)
    ax.text(least + 0.02, 1.05, f"low: {low:.1%}", color=INK)
    ax.set(xlabel="promised recall", ylabel="recall", xlim=(-0.03, 1.03), ylim=(-0.03, 1.12))
