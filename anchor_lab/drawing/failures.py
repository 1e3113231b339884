"""Figures of inputs that break the method."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.analysis.failures import CAUSES
from anchor_lab.drawing.style import ACCENT, INIT, INK, SKIPPED, STRIPE, WINDOW
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores
from anchor_ref.regions import groups

COLOURS = dict(zip(CAUSES, (INIT, STRIPE, WINDOW, INK), strict=True))


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
        ax.plot(data["count"], lost, color=ACCENT)
        ax.annotate(
            f"θ = {theta:g}",
            (data["count"][-1], lost[-1]),
            (6, 0),
            textcoords="offset points",
            color=ACCENT,
            va="center",
            annotation_clip=False,
        )
    ax.set(xscale="log", xlabel="candidates", ylabel="mass lost, at most", ylim=(0, 1))


def data_causes(
    cases: Mapping[str, Mapping[str, Float[Tensor, "B Hq N"]]], first_row: int
) -> dict[str, dict[str, float]]:
    """What is kept and what lost the rest, mean over the rows from `first_row` on.

    Args:
        cases: by name what `lab.failures.blame` returned.
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
    from matplotlib.patches import Patch

    colours = {"kept": SKIPPED, **COLOURS}
    # Hatched, since in grey it is as light as the mean anchor.
    looks = {name: {"fc": colour, "ec": "white", "lw": 0} for name, colour in colours.items()}
    looks["threshold"]["hatch"] = "////"
    for y, shares in enumerate(data.values()):
        left = 0.0
        for name, share in shares.items():
            ax.barh(y, share, left=left, height=0.7, **looks[name])
            if share > 0.12 and name != "kept":  # room for its name
                ax.text(left + share / 2, y, name, ha="center", va="center", color="white")
            left += share
        ax.text(1.01, y, f"recall {shares['kept']:.2f}", va="center")
    ax.set(yticks=range(len(data)), yticklabels=list(data), xlim=(0, 1), xlabel="mass of a row")
    ax.invert_yaxis()
    ax.legend(
        handles=[Patch(label=name, **look) for name, look in looks.items()],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=5,
        columnspacing=1.2,
        handlelength=1,
    )


def draw_reach(data: dict[str, list[float]], ax) -> None:
    """How far must the vectors move until recall falls?

    Args:
        data: "reach", and by name the mean recall at each.
        ax: where to draw.
    """
    reach, *names = data
    for name, colour in zip(names, (STRIPE, ACCENT), strict=True):
        ax.plot(data[reach], data[name], color=colour, marker="o", ms=4)
        ax.annotate(
            name,
            (data[reach][-1], data[name][-1]),
            (8, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            weight="bold",
            annotation_clip=False,
        )
    ax.set(xlabel="each vector moves by this share of its length", ylabel="recall, mean over rows")
    ax.set_ylim(0, 1.02)


def data_asked(
    q: Float[Tensor, "N D"],
    k: Float[Tensor, "N D"],
    row_anchor: Float[Tensor, "N"],
    key: int,
    config: AnchorConfig,
    scale: float,
) -> dict[str, Tensor]:
    """How far one key lies below the anchor: for each row of the last group, and for the means.

    Args:
        q, k: one head's queries and keys, `[N, D]`.
        row_anchor: a_i of the same head, `[N]`.
        key: j, a candidate of the last group.
        config: sizes of block and group.
        scale: factor of q·k.

    Returns:
        row: `[rows]`; difference: a_i − s_ij, `[rows]`; start, mean: of each block its first row
        and ā_t − s̄_tj, `[blocks]`.
    """
    group = groups(config, len(q), len(k))[-1]
    rows = torch.arange(group.rows.start, group.rows.stop)
    scores = scaled_scores(q[rows].float(), k[key : key + 1].float(), scale)[:, 0]
    difference = row_anchor[rows] - scores
    blocks = difference.split(config.block_size)
    return {
        "row": rows,
        "difference": difference,
        "start": torch.tensor([rows.start for rows in group.blocks]),
        "mean": torch.stack([block.mean() for block in blocks]),
    }


def draw_asked(data: dict[str, Tensor], theta: float, ax) -> None:
    """Who asks for this key, and does the mean?"""
    ends = [*data["start"][1:].tolist(), int(data["row"][-1]) + 1]
    asks = data["difference"] <= theta
    for chosen, colour, size in ((~asks, "#9A9A9A", 3), (asks, STRIPE, 14)):
        ax.scatter(data["row"][chosen], data["difference"][chosen], s=size, lw=0, color=colour)
    ax.hlines(data["mean"], data["start"], ends, color=ACCENT, lw=2)
    ax.axhline(theta, color=INK, lw=0.8)
    ax.annotate(
        f"θ = {theta:g}",
        (1, theta),
        (4, 0),
        xycoords=ax.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
    )
    ax.set(xlabel="query", ylabel="anchor − score of the key")
    ax.text(0.01, 0.97, "mean of each block", color=ACCENT, transform=ax.transAxes, va="top")
    ax.text(0.3, 0.97, "rows that ask", color=STRIPE, transform=ax.transAxes, va="top")


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
    ax.text(0.97, 0.04, "never: less\nthan promised", color="#666666", ha="right")
    for chosen, colour in ((~data["warned"], WINDOW), (data["warned"], STRIPE)):
        points = data["promised"][chosen], data["recall"][chosen]
        ax.scatter(*points, s=9, lw=0, color=colour, alpha=0.6)
    ax.axvline(least, color=INK, lw=0.8)
    warned = data["warned"].double().mean().item()
    low = data["recall"] < least
    ax.text(0.02, 1.05, f"warned: {warned:.1%}", color=STRIPE)
    ax.text(least + 0.02, 1.05, f"low: {low.double().mean().item():.1%}", color=INK)
    ax.set(xlabel="promised recall", ylabel="recall", xlim=(-0.03, 1.03), ylim=(-0.03, 1.12))
