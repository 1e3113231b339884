"""A picture of all kernels side by side: by length, by what is heavy, and at equal recall."""

from collections.abc import Sequence

from anchor_lab.drawing.style import ACCENT, INK, MUTED, STRIPE, TAIL, WINDOW, caption, use_style
from anchor_lab.experiments.side_by_side.ladders import OURS
from anchor_lab.experiments.side_by_side.made_for import PART
from anchor_lab.experiments.side_by_side.timing import fastest

COLOURS = {
    "SDPA": MUTED,
    "cuDNN": INK,
    "FlashAttention-2": ACCENT,
    "FlashAttention-4": TAIL,
    "FlashInfer": "#CC79A7",
    "FlexAttention": WINDOW,
}
SHORT = {"SpargeAttention": "SpargeAttn", "AnchorBlocks": "ours by blocks", OURS: "ours"}


def heads_of(row: dict) -> tuple[int, int, int]:
    """Hq, Hkv, D of a row."""
    return row["q_heads"], row["kv_heads"], row["head_dim"]


def data_planted(rows: Sequence[dict]) -> dict[tuple[str, str], dict[int, float]]:
    """By method and way ms by length, on the first shape measured; what ran alone."""
    own = [row for row in rows if row["part"] == "planted"]
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in own:
        if row["status"] == "ok" and heads_of(row) == heads_of(own[0]):
            found.setdefault((row["method"], row["way"]), {})[row["n"]] = row["ms"]["median"]
    return {way: dict(sorted(times.items())) for way, times in found.items()}


def data_recalls(rows: Sequence[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """By source and length, then by goal, then by method: ms of the fastest way."""
    grouped: dict[str, dict[str, dict[str, list[dict]]]] = {}
    for row in rows:
        if row["part"] == "recall" and row.get("goal"):
            place = f"{row['source']}, {row['n']} tokens"
            goals = grouped.setdefault(place, {}).setdefault(row["goal"], {})
            goals.setdefault(row["method"], []).append(row)
    return {
        place: {
            goal: {
                method: best["ms"]["median"]
                for method, own in methods.items()
                if (best := fastest(own)) is not None
            }
            for goal, methods in goals.items()
        }
        for place, goals in grouped.items()
    }


def data_made_for(rows: Sequence[dict]) -> dict[str, dict[str, tuple[float, float]]]:
    """At the longest length, by input and call: ms and error of the fastest that ran it."""
    own = [row for row in rows if row["part"] == PART]
    longest = max((row["n"] for row in own), default=0)
    grouped: dict[str, dict[str, list[dict]]] = {}
    for row in own:
        if row["n"] == longest:
            call = SHORT.get(row["method"], row["way"])
            if row.get("setting") is not None:
                call = f"{row['method']}, α = {row['setting']:g}"
            grouped.setdefault(row["source"], {}).setdefault(call, []).append(row)
    return {
        source: {
            call: (best["ms"]["median"], best["error"])
            for call, of_call in calls.items()
            if (best := fastest(of_call)) is not None
        }
        for source, calls in grouped.items()
    }


def draw_made_for(data: dict[str, tuple[float, float]], heavy: str, ax) -> None:
    """A bar for each call, and how wrong it is."""
    for place, (call, (ms, error)) in enumerate(data.items()):
        ax.barh(place, ms, 0.6, color=STRIPE if call == SHORT[OURS] else ACCENT)
        ax.annotate(f"{ms:.3g} ms, error {error:.1g}", (ms, place), (4, 0),
                    textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    ax.set_yticks(range(len(data)), list(data))
    ax.invert_yaxis()
    longest = max(ms for ms, _ in data.values())
    ax.set(xlabel="ms", xlim=(0, 1.5 * longest), title=f"Heavy are {heavy}")


def draw_planted(data: dict[tuple[str, str], dict[int, float]], ax) -> None:
    """What does one call take, by length?"""
    for (method, way), times in data.items():
        colour = STRIPE if method == OURS else COLOURS[way]
        dense = method == "dense"
        label = f"ours, {way}" if method == OURS else f"{way}{'' if dense else ', blocks'}"
        line = "-" if dense or way == "tail 0" else "--"
        ax.plot(
            list(times), list(times.values()), line, color=colour, marker="o", ms=3, label=label
        )
    ax.set(xscale="log", yscale="log", xlabel="N, tokens", ylabel="ms")
    ax.legend(loc="upper left", fontsize=7.5)
    ax.set_title(draw_planted.__doc__)


def draw_recalls(data: dict[str, dict[str, float]], place: str, ax) -> None:
    """A bar for each method and goal."""
    methods = list(dict.fromkeys(method for times in data.values() for method in times))
    height = 0.8 / len(data)
    for shift, (goal, times) in enumerate(data.items()):
        for row, method in enumerate(methods):
            colour = STRIPE if method == OURS else ACCENT
            ax.barh(
                row + shift * height,
                times.get(method, 0.0),
                height,
                color=colour,
                alpha=1 - 0.5 * shift / len(data),
                label=goal if row == 0 else None,
            )
    ax.set_yticks([row + 0.4 - height / 2 for row in range(len(methods))])
    ax.set_yticklabels([SHORT.get(method, method) for method in methods])
    ax.invert_yaxis()
    ax.set(
        xlabel="ms, lighter: the higher recall" if len(data) > 1 else f"ms at {next(iter(data))}"
    )
    ax.set_title(f"At equal recall: {place}")


def draw(results: dict):
    """Planted stripes, then a panel for each kind of input, and for each source of real ones."""
    from matplotlib import pyplot as plt

    use_style()
    rows, about = results["rows"], results["settings"]
    planted, recalls = data_planted(rows), data_recalls(rows)
    recalls = {place: data for place, data in recalls.items() if any(data.values())}
    made_for = {source: data for source, data in data_made_for(rows).items() if data}
    panels = bool(planted) + len(made_for) + len(recalls)
    figure, axes = plt.subplots(
        1, max(panels, 1), figsize=(5.5 * max(panels, 1), 4.8), squeeze=False
    )
    left = list(axes[0])
    if planted:
        draw_planted(planted, left.pop(0))
    for source, data in made_for.items():
        draw_made_for(data, source, left.pop(0))
    for place, data in recalls.items():
        draw_recalls(data, place, left.pop(0))
    for empty in left:
        empty.set_axis_off()
    of_planted = ""
    if planted:
        shape = next(row for row in rows if row["part"] == "planted")
        of_planted = " Planted: {} / {} heads of {}.".format(*heads_of(shape))
    if made_for:
        one = next(row for row in rows if row["part"] == PART)
        longest = max(row["n"] for row in rows if row["part"] == PART)
        shape = "{} / {} heads of {}".format(*heads_of(one))
        of_planted += f" Single keys, whole blocks: {longest} tokens, {shape}, 5 % heavy."
    words = "Block methods by the fastest kernel that ran them, choosing not counted; ours whole."
    caption(figure, f"{about['device']}, torch {about['torch']}.{of_planted}\n{words}")
    return figure
