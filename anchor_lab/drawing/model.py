"""Figures of a model that runs AnchorAttention in its layers, beside the same model dense."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing.shapes import curve, label
from anchor_lab.drawing.style import ACCENT, DIM, INK, MUTED, STRIPE, finish, panels

NOTHING = 1e-3  # of the largest error: a line that cannot be told from the axis


def data_layer_errors(
    dense: Sequence[Float[Tensor, "B N M"]], other: Sequence[Float[Tensor, "B N M"]]
) -> list[float]:
    """How far the hidden states are from those of dense attention, after each layer.

    ‖other − dense‖ / ‖dense‖ of each token, mean over tokens

    Args:
        dense, other: what comes out of the embedding and of each layer, as
            `output_hidden_states` gives it.
    """
    return [
        float(((b - a).norm(dim=-1) / a.norm(dim=-1)).mean())
        for a, b in zip(dense, other, strict=True)
    ]


def draw_layer_errors(together: list[float], alone: Mapping[int, list[float]], ax) -> None:
    """Does the error accumulate?

    Args:
        together: after each layer, AnchorAttention in all of them.
        alone: the same with AnchorAttention in one layer only, by that layer.
        ax: where to draw.
    """
    places = range(len(together))
    for layer, errors in alone.items():
        after = places[layer + 1 :]  # before it nothing differs
        ax.plot(after, errors[layer + 1 :], color=MUTED, lw=1, marker="o", ms=4, markevery=[0])
    # Below the grey lines: that of the first layer begins on it, and would be hidden.
    curve(ax, places, together, "in every layer", STRIPE, lw=2.6, marker="o", zorder=1.5)
    worst = max(alone, key=lambda layer: alone[layer][-1])
    label(ax, f"in layer {worst} alone", (places[-1], alone[worst][-1]), color=DIM)
    _name_layers(ax, places)
    highest = max(together)
    if none := [str(layer) for layer, errors in alone.items() if max(errors) < NOTHING * highest]:
        at = places[int(none[0]) + 1], 0.05 * highest
        ax.text(*at, f"layer {' and '.join(none)} alone: next to none", color=DIM, fontsize=8)
    ax.set(ylabel="relative error of the hidden state", ylim=(-0.02 * highest, None))


def show_layer_errors(together: list[float], alone: Mapping[int, list[float]], where: str) -> None:
    """The figure of `draw_layer_errors`, with its words."""
    figure, ax = panels(size=(6.6, 3.4))
    draw_layer_errors(together, alone, ax)
    finish(
        figure,
        draw_layer_errors.__doc__.splitlines()[0],
        f"{where}; grey: in one layer alone, from that layer on.",
        "Relative error of the hidden state after each layer. Grey: made in one layer alone, and "
        "most lines fall from there. Orange: made in all layers; it is highest after layer 5.",
    )


def data_changed_rows(
    before: Float[Tensor, "N V"], after: Float[Tensor, "N V"]
) -> Float[Tensor, "N"]:
    """By how much each row of logits changed, largest entry; 0 means bit by bit the same."""
    return (after - before).abs().amax(-1)


def draw_changed_rows(
    changes: Mapping[str, Float[Tensor, "N"]], token: int, group: int, ax
) -> None:
    """Which rows feel a change of one token?

    Args:
        changes: by way of computing attention, what `data_changed_rows` returned.
        token: the position that was changed.
        group: first row of its group.
        ax: where to draw; rows that did not change have no point.
    """
    for (name, rows), colour, size in zip(changes.items(), (ACCENT, STRIPE), (14, 5), strict=True):
        changed = rows.nonzero().flatten()
        ax.scatter(changed, rows[changed], s=size, lw=0, color=colour)
        before = rows[group:token]
        if before.any():  # named where it is alone
            place = ((group + token) / 2, 3 * float(before.max()))
            ax.text(*place, f"{name} alone", color=colour, ha="center", weight="bold")
    for place, text, side in (
        (group, "group begins ", "right"),
        (token, " changed token", "left"),
    ):
        ax.axvline(place, color=INK, lw=0.8, ls=":")
        ax.text(place, 1.02, text, ha=side, transform=ax.get_xaxis_transform(), fontsize=8)
    rows = next(iter(changes.values()))
    ax.set(yscale="log", xlabel="row", ylabel="largest change of a logit", xlim=(0, len(rows)))
    place = ((token + len(rows)) / 2, float(rows[token:].min()) / 3)
    ax.text(*place, " and ".join(changes), ha="center", va="top", weight="bold")


def show_changed_rows(
    changes: Mapping[str, Float[Tensor, "N"]], token: int, group: int, where: str
) -> None:
    """The figure of `draw_changed_rows`, with its words."""
    figure, ax = panels(size=(7.0, 3.0))
    draw_changed_rows(changes, token, group, ax)
    finish(
        figure,
        draw_changed_rows.__doc__.splitlines()[0] + "\n",  # names of lines stand below it
        f"{where}; no point: the same to the bit.",
        "Largest change of a logit in each row. From the changed token on, both methods move "
        "nearly alike. Before it, dense has no point; AnchorAttention has small ones back to the "
        "group's start.",
    )


def _name_layers(ax, places: range) -> None:
    """What each place is the state after: the embedding, then the layers."""
    ax.set_xticks(places, ["input", *map(str, places[:-1])])
    ax.set_xlabel("after layer")
