"""Figures of a model that runs AnchorAttention in its layers, beside the same model dense."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from anchor_lab.drawing.shapes import CENTRED, bars, box, curve, label
from anchor_lab.drawing.style import ACCENT, DIM, INK, MUTED, SKIPPED, STRIPE, WINDOW


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
    worst = max(alone, key=lambda layer: alone[layer][-1])
    curve(ax, places, together, "in every layer", STRIPE, lw=2.2, marker="o")
    label(ax, f"in layer {worst} alone", (places[-1], alone[worst][-1]), color=DIM)
    _name_layers(ax, places)
    ax.set(ylabel="relative error of the hidden state", ylim=(0, None))


def data_divergence(
    dense: Sequence[Float[Tensor, "N V"]], other: Sequence[Float[Tensor, "N V"]]
) -> dict[str, list[float]]:
    """How far predictions are from those of dense attention, each read off after a layer.

    Args:
        dense, other: logits from the hidden states after each layer.

    Returns:
        Of each layer "divergence", Σ p ln(p / p'), mean over tokens, nats; and "changed", the
        share of tokens with another most likely successor.
    """
    found = {"divergence": [], "changed": []}
    for a, b in zip(dense, other, strict=True):
        p, q = a.float().log_softmax(-1), b.float().log_softmax(-1)
        found["divergence"].append(float((p.exp() * (p - q)).sum(-1).mean()))
        found["changed"].append(float((a.argmax(-1) != b.argmax(-1)).float().mean()))
    return found


def draw_divergence(data: dict[str, list[float]], axes) -> None:
    """Do the predictions drift apart?"""
    named = {"changed": "another most likely token", "divergence": "divergence, nats"}
    places = range(len(data["changed"]))
    for ax, (what, words) in zip(axes, named.items(), strict=True):
        bars(ax, places, data[what], WINDOW, lambda x: f"{x:.3f}" if x else "0")
        _name_layers(ax, places)
        ax.set_ylabel(words)
        ax.margins(y=0.12)


def draw_digits(found: Mapping[str, Sequence[tuple[str, bool]]], ax) -> None:
    """Which digits of the answers does the model find?

    Args:
        found: by way of computing attention, each digit that was predicted and whether it is
            right.
        ax: where to draw.
    """
    for y, digits in enumerate(found.values()):
        for x, (digit, right) in enumerate(digits):
            place = x + 0.7 * (x // 5)  # a gap after each answer of five digits
            colour = ACCENT if right else SKIPPED
            ax.add_patch(box(place - 0.46, y - 0.4, 0.92, 0.8, colour, lw=0))
            ax.text(place, y, digit, color="white" if right else INK, **CENTRED)
    last = max(map(len, found.values())) - 1
    ax.set(xlim=(-0.7, last + 0.7 * (last // 5) + 0.7), ylim=(len(found) - 0.4, -0.6), xticks=[])
    ax.set_yticks(range(len(found)), list(found))
    ax.tick_params(length=0)
    ax.spines[["left", "bottom"]].set_visible(False)


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


def _name_layers(ax, places: range) -> None:
    """What each place is the state after: the embedding, then the layers."""
    ax.set_xticks(places, ["input", *map(str, places[:-1])])
    ax.set_xlabel("after layer")
