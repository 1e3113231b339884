"""Figures of stage 2: what a row wants, what a group needs, and what a mean forgets."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing import pooling, stages, style
from anchor_lab.drawing.lessons.place import small_print
from anchor_models.capture import Captured
from anchor_ref.config import AnchorConfig
from anchor_ref.regions import groups


def show_row_test(
    x: Captured, place: int, row: int, anchor: float, config: AnchorConfig
) -> dict[str, Tensor]:
    """Which keys come within θ of the anchor?

    Args:
        x, place: the head.
        row: i.
        anchor: a_i.
        config: θ, and the regions.

    Returns:
        `stages.data_row_test`.
    """
    scores = x.scaling * x.k[0, 0] @ x.q[0, place, row]
    n = x.q.shape[2]
    group = next(group for group in groups(config, n, n) if row in group.rows)
    data = stages.data_row_test(scores, anchor, config.theta, group.candidates)
    figure, ax = style.panels(size=(7, 2.9))
    stages.draw_difference(data, ax)
    ax.set_ylabel("anchor − score")
    kept = int((data["difference"] <= config.theta).sum())
    style.finish(
        figure,
        "Which keys come within θ of this row's anchor?",
        f"Candidates of row {row}; {small_print(x, place)}.",
        f"One dot for each candidate of a row, by key and difference: {kept} of "
        f"{len(data['key'])} lie above the line θ = {config.theta:g}, closer to the anchor.",
    )
    return data


def show_union(
    x: Captured, place: int, difference: Float[Tensor, "R C"], kept: float, config: AnchorConfig
) -> dict[str, Tensor]:
    """How many keys does a group need, if every row gets what it wants?

    Args:
        x, place: the head.
        difference: a_i − s_ij of the rows and candidates of a group.
        kept: share of the candidates that the method keeps.
        config: θ.
    """
    data = pooling.data_union(difference, config.theta)
    figure, ax = style.panels(size=(7, 3))
    pooling.draw_union(data, kept, ax)
    one, union = float(data["one"].mean()), float(data["union"][-1])
    style.finish(
        figure,
        "How many keys does a group need, if every row gets what it wants?",
        f"Last group; {small_print(x, place, config)}.",
        f"Share of the candidates against rows of the group. A single row wants {one:.1%} in the "
        f"mean; what some row wants climbs to {union:.0%}; the method keeps {kept:.1%}.",
    )
    return data


def show_blocks(
    x: Captured,
    place: int,
    keys: Mapping[str, tuple[int, int]],
    anchors: Float[Tensor, "N"],
    config: AnchorConfig,
) -> list[dict]:
    """Does the mean of a block ask for what its rows want?

    Args:
        x, place: the head.
        keys: by title a key and a block of rows that is asked about it.
        anchors: a_i of all rows.
        config: block size and θ.

    Returns:
        `pooling.data_block` of each.
    """
    figure, axes = style.panels(1, len(keys), (8.6, 3.2), sharey=True)
    found, told = [], []
    for ax, (title, (key, block)) in zip(axes, keys.items(), strict=True):
        rows = slice(block * config.block_size, (block + 1) * config.block_size)
        scores = x.scaling * x.q[0, place, rows] @ x.k[0, 0, key]
        data = pooling.data_block(scores, anchors[rows], config.theta)
        pooling.draw_block(data, ax)
        ax.set_title(title)
        found.append(data)
        told.append(
            f"{title}: {data['share']:.0%} of the rows lie above the line θ and want the key, "
            f"their mean is {data['mean']:.1f}"
        )
    style.finish(
        figure,
        show_blocks.__doc__.splitlines()[0],
        f"One block of {config.block_size} rows each; dots want the key. "
        f"{small_print(x, place, config)}.",
        f"The differences of the rows of a block with one key each. {'; '.join(told)}.",
    )
    return found


def show_asked(
    x: Captured, place: int, anchor: Float[Tensor, "N"], key: int, word: str, config: AnchorConfig
) -> dict[str, Tensor]:
    """Who asks for this key, and does the mean?"""
    data = pooling.data_asked(x.q[0, place], x.k[0, 0], anchor, key, config, x.scaling)
    figure, ax = style.panels(size=(7, 3))
    pooling.draw_asked(data, config.theta, ax)
    ax.invert_yaxis()
    asks = data["row"][data["difference"] <= config.theta].tolist()
    style.finish(
        figure,
        f"Who asks for key {key}, {word!r}?",
        f"Rows of the last group; {small_print(x, place, config)}.",
        f"Anchor minus score of one key, a dot for each row of the last group: {len(asks)} rows "
        f"ask, the last of them row {asks[-1] if asks else 'none'}. The block mean nearest to θ "
        f"is {float(data['mean'].min()):.1f}, θ is {config.theta:g}.",
    )
    return data


def told(words: Sequence[str], around: int, before: int = 6, after: int = 4) -> str:
    """A token in its neighbourhood: "… before [token] after …"."""
    left = "".join(words[max(0, around - before) : around])
    right = "".join(words[around + 1 : around + 1 + after])
    return f"…{left}[{words[around]}]{right}…".replace("\n", "⏎")
