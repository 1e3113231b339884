"""One figure for each stage: the anchor, the difference test, what the result keeps."""

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing.style import ACCENT, INK, STRIPE
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import scaled_scores
from anchor_ref.regions import groups

FULL = 0.99  # density above which a head counts as one that keeps all
MOST_TICKS = 16  # layers that are all numbered


def data_anchor_gap(
    q: Float[Tensor, "N D"],
    k: Float[Tensor, "N D"],
    row_anchor: Float[Tensor, "N"],
    scale: float,
) -> dict[str, Tensor]:
    """How far each row's anchor lies below its true maximum, natural-log units.

    Args:
        q, k: one head's queries and keys, `[N, D]`.
        row_anchor: a_i of the same head, `[N]`.
        scale: factor of q·k.

    Returns:
        position: query positions, `[N]`.
        gap: max_j s_ij − a_i, at least 0, `[N]`.
    """
    n, chunk = len(q), 512
    true_max = torch.empty(n)
    keys = torch.arange(n)
    for start in range(0, n, chunk):
        rows = torch.arange(start, min(start + chunk, n))
        scores = scaled_scores(q[rows].float(), k.float(), scale)
        true_max[rows] = scores.masked_fill(keys > rows[:, None], -torch.inf).amax(-1)
    # The two maxima come from matrix products of different shape: they may differ by an ulp.
    return {"position": keys, "gap": (true_max - row_anchor.float()).clamp(min=0)}


def draw_anchor_gap(data: dict[str, Tensor], ax) -> None:
    """How near is the anchor to the row's true maximum?"""
    gap, position = data["gap"], data["position"]
    exact = gap < 1e-4
    ax.scatter(position[~exact], gap[~exact], s=2, color=STRIPE, lw=0)
    ax.scatter(position[exact], gap[exact], s=2, color=ACCENT, lw=0)
    ax.set(xlabel="query position", ylabel="true maximum − anchor", ylim=(-0.6, None))
    ax.annotate(
        f"{exact.float().mean():.0%} of the rows: the anchor is the maximum",
        (0.02, 0.96),
        xycoords="axes fraction",
        va="top",
        color=ACCENT,
        weight="bold",
    )


def data_difference(
    q: Float[Tensor, "N D"],
    k: Float[Tensor, "N D"],
    row_anchor: Float[Tensor, "N"],
    config: AnchorConfig,
    group: int,
    scale: float,
) -> dict[str, Tensor]:
    """The difference test of one group: what each candidate's best block says.

    Returns:
        key: candidate positions, `[C]`.
        difference: min over the group's blocks of ā_t − scale·<q̄_t, k_j>, `[C]`.
        theta: the threshold.
    """
    found = groups(config, len(q), len(k))[group]
    candidates = torch.arange(found.candidates.start, found.candidates.stop)
    best = torch.full((len(candidates),), torch.inf)
    for block in found.blocks:
        rows = slice(block.start, block.stop)
        pooled = q[rows].float().mean(0, keepdim=True)
        scores = scaled_scores(pooled, k[candidates].float(), scale)[0]
        best = torch.minimum(best, row_anchor[rows].float().mean() - scores)
    return {"key": candidates, "difference": best, "theta": torch.tensor(config.theta)}


def draw_difference(data: dict[str, Tensor], ax) -> None:
    """Which keys come within θ of the anchor?"""
    key, difference, theta = data["key"], data["difference"], float(data["theta"])
    kept = difference <= theta
    ax.scatter(key[~kept], difference[~kept], s=2, color="#9A9A9A", lw=0)
    ax.scatter(key[kept], difference[kept], s=2, color=STRIPE, lw=0)
    ax.axhline(theta, color=INK, lw=1)
    ax.annotate(
        f"θ = {theta:g}",
        (1, theta),
        (4, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
    )
    ax.invert_yaxis()
    ax.set(xlabel="key position", ylabel="anchor − score, best block")
    ax.annotate(
        f"kept: {int(kept.sum())} of {len(kept)} candidates",
        (0.02, 0.96),
        xycoords="axes fraction",
        va="top",
        color=STRIPE,
        weight="bold",
    )


def data_recall(recall: Float[Tensor, "N"], block: int = 128) -> dict[str, Tensor]:
    """Recall along the sequence, in blocks of rows.

    Returns:
        position: first row of each block, `[blocks]`.
        p10, median: 10th percentile and median of the block's rows, `[blocks]`.
        mean: over all rows.
    """
    parts = recall.double().split(block)
    return {
        "position": torch.arange(len(parts)) * block,
        "p10": torch.stack([part.quantile(0.1) for part in parts]),
        "median": torch.stack([part.median() for part in parts]),
        "mean": recall.double().mean(),
    }


def draw_recall(data: dict[str, Tensor], ax) -> None:
    """How much of each row's attention mass is kept?"""
    position = data["position"]
    ax.fill_between(position, data["p10"], data["median"], color=ACCENT, alpha=0.25, lw=0)
    ax.plot(position, data["median"], color=ACCENT)
    ax.plot(position, data["p10"], color=ACCENT, lw=0.8)
    ax.annotate("median row", (position[-1], data["median"][-1]), (4, 0), **_AT_END, va="center")
    ax.annotate("10th percentile", (position[-1], data["p10"][-1]), (4, 0), **_AT_END, va="top")
    ax.set(xlabel="query position", ylabel="recall", ylim=(0, 1.03))
    ax.set_xlim(0, int(position[-1]) * 1.22)


def data_heads(rows: list[dict]) -> dict[str, Tensor]:
    """Recall and density of many heads.

    Args:
        rows: one dictionary a head with layer, head, recall and density.

    Returns:
        layer, head, recall, density: `[heads]` each.
        full: heads of a density above `FULL` by layer, `[layers]`, from layer 0 on.
    """
    names = ("layer", "head", "recall", "density")
    data = {name: torch.tensor([row[name] for row in rows]) for name in names}
    layers = int(data["layer"].max()) + 1
    full = torch.bincount(data["layer"][data["density"] > FULL], minlength=layers)
    return {**data, "full": full}


def draw_heads(data: dict[str, Tensor], ax) -> None:
    """Which heads can do with less?

    Heads that keep (nearly) all pairs would lie on one spot: they are counted at the right, by
    layer, in bars whose colours are those of the dots.
    """
    from matplotlib import colormaps

    full = data["full"].tolist()
    layers = range(len(full))
    colours = colormaps["cividis"]([layer / max(1, len(full) - 1) for layer in layers])
    sparse = data["density"] <= FULL
    density, recall, layer = (data[name][sparse] for name in ("density", "recall", "layer"))
    ax.scatter(density, recall, c=colours[layer], s=24, lw=0.5, ec=INK)  # an edge: yellow is faint
    for index in recall.argsort()[:2]:  # those that lose most
        name = f"layer {int(layer[index])}, head {int(data['head'][sparse][index])}"
        at = float(density[index]), float(recall[index])
        ax.annotate(name, at, (6, 0), textcoords="offset points", fontsize=8, va="center")
    # Two thirds of the width are the dots', up to a density of 1; the rest is for the bars.
    first = float(density.min()) - 0.03 if len(density) else 0.0
    ax.set_xlim(first, first + 1.6 * (1 - first))
    ax.spines["bottom"].set_bounds(first, 1)
    ax.set_xticks([tick / 10 for tick in range(11) if tick / 10 >= first])
    ax.set_xlabel("density: share of the pairs computed", loc="left")
    ax.set_ylabel("recall, mean over rows")

    beside = ax.inset_axes((0.77, 0, 0.23, 1))
    bars = beside.barh(layers, full, color=colours)
    beside.bar_label(bars, padding=2, fontsize=8)
    key = beside.get_yaxis_transform()
    beside.scatter([-0.06] * len(layers), layers, c=colours, s=20, clip_on=False, transform=key)
    beside.set(xticks=[], xlim=(0, 1.2 * max(1, *full)), ylabel="layer")
    beside.set_xlabel(f"density over {FULL:g}:\n{sum(full)} heads")
    beside.tick_params(axis="y", left=False, pad=8)
    if len(layers) <= MOST_TICKS:
        beside.set_yticks(layers)


_AT_END = {"textcoords": "offset points", "fontsize": 8, "color": ACCENT}
