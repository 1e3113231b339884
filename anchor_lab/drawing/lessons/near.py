"""Figures of notebook 04: how near the anchor comes to each row's true maximum."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from anchor_lab.analysis.maxima import REGIONS, Maxima
from anchor_lab.drawing import anchors, style
from anchor_lab.drawing.lessons.place import MODEL, name_of
from anchor_models.capture import Captured

REACH = 12.0  # of the histograms of gaps, natural-log units


def where_table(layers: Mapping[int, tuple[Captured, Maxima]]) -> str:
    """Share of the rows with candidates whose largest score lies in each region, as text."""
    lines = [f"{'':18}" + "".join(f"{region:>16}" for region in REGIONS)]
    for x, found in layers.values():
        for place in range(x.q.shape[1]):
            shares = found.shares[0, place].tolist()
            cells = "".join(f"{share:>16.0%}" for share in shares)
            lines.append(f"{name_of(x, place):18}{cells}")
    return "\n".join(lines)


def show_gaps(heads: Mapping[str, tuple[Captured, Maxima, int]]) -> dict[str, dict]:
    """By how much does the anchor miss the maximum?

    Args:
        heads: by title the layer, where its maxima lie, and the place of the query head in it.

    Returns:
        `anchors.data_gaps` of each.
    """
    figure, axes = style.panels(1, len(heads), (8.6, 2.6), sharey=True)
    found, told = {}, []
    for ax, (title, (x, maxima, place)) in zip(axes, heads.items(), strict=True):
        gap = maxima.gap[0, place, maxima.rows]
        found[title] = anchors.data_gaps(gap, reach=REACH)
        anchors.draw_gaps(found[title], ax)
        ax.set_title(f"{title}: {name_of(x, place)}", fontsize=9)
        missed = gap[gap > 0]
        middle = float(missed.median()) if len(missed) else 0.0
        told.append(
            f"{title}: {found[title]['exact']:.0%} of the rows exact, the others miss by "
            f"{middle:.1f} in the median, by {float(gap.max()):.1f} at most"
        )
    axes[0].set_ylabel("share of rows")
    style.finish(
        figure,
        show_gaps.__doc__.splitlines()[0],
        f"Rows with candidates; {MODEL}, N = {x.q.shape[2]}; natural-log units.",
        f"Histograms of the true maximum minus the anchor. {'; '.join(told)}.",
    )
    return found


def show_missed(
    layers: Mapping[str, list[Maxima]], group_size: int, n: int
) -> dict[str, dict[str, Float[Tensor, "parts"]]]:
    """Where in a group does the anchor miss?"""
    lines = {name: anchors.data_missed(some, group_size) for name, some in layers.items()}
    figure, ax = style.panels(size=(7, 2.9))
    anchors.draw_missed(lines, ax)
    told = "; ".join(
        f"{name}: {float(line['share'][0]):.0%} at the start, {float(line['share'][-1]):.0%} at "
        "the end"
        for name, line in lines.items()
    )
    style.finish(
        figure,
        show_missed.__doc__,
        f"Rows with candidates, mean over heads and groups; {MODEL}, N = {n}, S = {group_size}.",
        f"Share of rows whose maximum is a candidate's, by place in the group. {told}.",
    )
    return lines
