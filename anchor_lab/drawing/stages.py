"""One figure for each stage and its result: anchor, difference test, stripes, what is kept."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.analysis.maxima import locate_maxima
from anchor_lab.drawing.shapes import curve, label, mark, note, threshold
from anchor_lab.drawing.style import ACCENT, INK, MAGNITUDE, MUTED, STRIPE
from anchor_ref.config import AnchorConfig
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups
from anchor_ref.stripes import passes_difference_test, pooled_difference

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
    # The regions play no part: only the maximum over all keys is used.
    largest = locate_maxima(q[None, None], k[None, None], AnchorConfig(), scale).largest[0, 0]
    # The two maxima come from matrix products of different shape: they may differ by an ulp.
    gap = (largest - row_anchor.float()).clamp(min=0)
    return {"position": torch.arange(len(q)), "gap": gap}


def draw_anchor_gap(data: dict[str, Tensor], ax) -> None:
    """How near is the anchor to the row's true maximum?"""
    gap, position = data["gap"], data["position"]
    exact = gap < 1e-4
    mark(ax, position, gap, exact, colours=(STRIPE, ACCENT))
    ax.set(xlabel="query position", ylabel="true maximum − anchor", ylim=(-0.6, None))
    note(ax, f"{exact.float().mean():.0%} of the rows: the anchor is the maximum", ACCENT)


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
    one_head = (x[None, None] for x in (q, k, row_anchor))
    best = pooled_difference(*one_head, found, scale)[0, 0].amin(0)
    return {
        "key": torch.tensor(found.candidates),
        "difference": best,
        "theta": torch.tensor(config.theta),
    }


def draw_difference(data: dict[str, Tensor], ax) -> None:
    """Which keys come within θ of the anchor?"""
    key, difference, theta = data["key"], data["difference"], float(data["theta"])
    kept = passes_difference_test(difference, theta)
    mark(ax, key, difference, kept)
    threshold(ax, theta)
    ax.invert_yaxis()
    ax.set(xlabel="key position", ylabel="anchor − score, best block")
    note(ax, f"kept: {int(kept.sum())} of {len(kept)} candidates", STRIPE)


def data_row_test(
    scores: Float[Tensor, "N"], anchor: float, theta: float, candidates: range
) -> dict[str, Tensor]:
    """The difference test of one row, in the form that `draw_difference` takes.

    Args:
        scores: of one query.
        anchor: a_i.
        theta: θ.
        candidates: keys that are asked.

    Returns:
        key, difference: `[C]`; theta.
    """
    key = torch.tensor(candidates)
    return {"key": key, "difference": anchor - scores[key], "theta": torch.tensor(theta)}


def data_touched(
    plans: Sequence[StripePlan], config: AnchorConfig, n: int
) -> dict[str, Float[Tensor, "heads"]]:
    """Share of the candidates that are stripes, and of their blocks that hold a stripe.

    Args:
        plans: of one layer each, batch 1.
        config: blocks of `block_size` keys.
        n: N, with at least one group that has candidates.

    Returns:
        keys, blocks: for every head of all layers, over all groups.
    """
    sizes = torch.tensor([len(group.candidates) for group in groups(config, n, n)])
    keys = torch.cat([plan.counts[0].cpu().sum(-1) for plan in plans])
    blocks = [
        sum(len((plan.keys(0, h, g) // config.block_size).unique()) for g in range(len(sizes)))
        for plan in plans
        for h in range(plan.counts.shape[1])
    ]
    all_blocks = (sizes / config.block_size).ceil().sum()
    return {"keys": keys / sizes.sum(), "blocks": torch.tensor(blocks) / all_blocks}


def draw_touched(data: Mapping[str, Tensor], ax) -> None:
    """How scattered are the stripes?"""
    ax.axline((0, 0), slope=1, color=MUTED, lw=0.8, ls=":")
    label(ax, "as many blocks as keys", (0.62, 0.62), (4, -8))
    ax.scatter(data["keys"], data["blocks"], s=22, color=STRIPE, lw=0.4, ec="white")
    ax.set(xlabel="share of the keys that are stripes", xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
    ax.set_ylabel("share of blocks with a stripe")


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
    curve(ax, position, data["median"], "median row", ACCENT, (4, 0), va="bottom")
    curve(ax, position, data["p10"], "10th percentile", ACCENT, (4, 0), lw=0.8, va="top")
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
    import seaborn as sns

    full, sparse = data["full"].tolist(), data["density"] <= FULL
    layers = range(len(full))
    colours = sns.color_palette(MAGNITUDE, len(full))
    names = ("density", "recall", "layer", "head")
    density, recall, layer, head = (data[name][sparse].numpy() for name in names)
    shades = [colours[i] for i in layer]
    ax.scatter(density, recall, c=shades, s=24, lw=0.5, ec=INK)  # an edge: yellow is faint
    for index in recall.argsort()[:2]:  # those that lose most
        at = density[index], recall[index]
        label(ax, f"layer {layer[index]}, head {head[index]}", at, fontsize=8)
    # Two thirds of the width are the dots', up to a density of 1; the rest is for the bars.
    first = float(density.min()) - 0.03 if len(density) else 0.0
    ax.set_xlim(first, first + 1.6 * (1 - first))
    ax.spines["bottom"].set_bounds(first, 1)
    ax.set_xticks([tick / 10 for tick in range(11) if tick / 10 >= first])
    ax.set_xlabel("density: share of the pairs computed", loc="left")
    ax.set_ylabel("recall, mean over rows")

    beside = ax.inset_axes((0.77, 0, 0.23, 1))
    beside.bar_label(beside.barh(layers, full, color=colours), padding=2, fontsize=8)
    key = {"s": 20, "clip_on": False, "transform": beside.get_yaxis_transform()}
    beside.scatter([-0.06] * len(layers), layers, c=colours, **key)
    beside.set(xticks=[], xlim=(0, 1.2 * max(1, *full)), ylabel="layer")
    beside.set_xlabel(f"density over {FULL:g}:\n{sum(full)} heads")
    beside.tick_params(axis="y", left=False, pad=8)
    if len(layers) <= MOST_TICKS:
        beside.set_yticks(layers)
