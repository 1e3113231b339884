"""A picture of where AnchorAttention pays: one layer's calls, and whole prefills."""

from collections.abc import Sequence

from anchor_lab.drawing.style import ACCENT, INK, STRIPE, caption, use_style

WIDE = (32, 8, 128)  # heads of an 8B model


def heads_of(row: dict) -> tuple[int, int, int]:
    """Hq, Hkv, D of a call."""
    return row["q_heads"], row["kv_heads"], row["head_dim"]


def data_calls(
    rows: Sequence[dict], heads: tuple[int, int, int], tail: int
) -> tuple[dict[int, float], dict[float, dict[int, float]]]:
    """ms of the device by length, whole prompts: dense, and by the share kept with this tail."""
    dense: dict[int, float] = {}
    ours: dict[float, dict[int, float]] = {}
    for row in rows:
        if row["part"] != "calls" or row["queries"] != row["keys"]:
            continue
        if heads_of(row) != heads:
            continue
        if row["way"] == "dense":
            dense[row["keys"]] = row["ms"]["median"]
        elif row["tail"] == tail:
            ours.setdefault(row["kept"], {})[row["keys"]] = row["ms"]["median"]
    return dict(sorted(dense.items())), {
        kept: dict(sorted(times.items())) for kept, times in sorted(ours.items())
    }


def data_prefills(rows: Sequence[dict]) -> dict[str, dict[int, dict[str, dict]]]:
    """model: length: way: its row."""
    found: dict[str, dict[int, dict[str, dict]]] = {}
    for row in rows:
        if row["part"] == "prefill":
            found.setdefault(row["model"], {}).setdefault(row["keys"], {})[row["way"]] = row
    return {model: dict(sorted(by_length.items())) for model, by_length in found.items()}


def data_ratios(prefills: dict[int, dict[str, dict]], way: str) -> dict[int, float]:
    """Time of a way over sdpa's, by length, where both were measured."""
    return {
        n: over_sdpa(ways, way) for n, ways in prefills.items() if {way, "sdpa"} <= ways.keys()
    }


def over_sdpa(ways: dict[str, dict], way: str) -> float:
    """Of the same turn, in the median; of medians where they were not measured by turns."""
    if "over_sdpa" in ways[way]:
        return ways[way]["over_sdpa"]["median"]
    return ways[way]["ms"]["median"] / ways["sdpa"]["ms"]["median"]


def draw_calls(dense: dict[int, float], ours: dict[float, dict[int, float]], ax) -> None:
    """What does a layer's attention take on the device?"""
    ax.plot(list(dense), list(dense.values()), color=INK, marker="o", ms=3, label="dense")
    for kept, times in ours.items():
        shade = 0.35 + 0.65 * kept / max(ours)
        label = f"{kept:.0%} of the candidates"
        ax.plot(list(times), list(times.values()), color=STRIPE, alpha=shade, ms=3, label=label)
    ax.set(xscale="log", yscale="log", xlabel="N, tokens", ylabel="ms a layer")
    ax.legend(loc="upper left")
    ax.set_title(draw_calls.__doc__)


def draw_prefills(prefills: dict[str, dict[int, dict[str, dict]]], ax) -> None:
    """Is a whole prefill ever slower than sdpa's?"""
    for (model, by_length), line in zip(prefills.items(), ("-", "--"), strict=False):
        for way, colour in (("always", ACCENT), ("auto", STRIPE)):
            ratios = data_ratios(by_length, way)
            label = f"{model}, {way}"
            ax.plot(
                list(ratios), list(ratios.values()), line, color=colour, marker="o", ms=3,
                label=label,
            )  # fmt: skip
    ax.axhline(1, color=INK, lw=0.8)
    ax.set(xscale="log", xlabel="N, tokens", ylabel="time / time of sdpa", ylim=(0, None))
    ax.legend(loc="lower left")
    ax.set_title(draw_prefills.__doc__)


def draw(results: dict):
    """Calls of the widest heads with the longest tail, and prefills where they were measured."""
    from matplotlib import pyplot as plt

    use_style()
    rows, about = results["rows"], results["settings"]
    calls = [row for row in rows if row["part"] == "calls"]
    ours = [row for row in calls if row["way"] == "anchor"] or calls
    shapes = list(map(heads_of, ours))
    heads = WIDE if WIDE in shapes else shapes[-1]
    tail = max(row["tail"] or 0 for row in calls)
    prefills = data_prefills(rows)
    figure, axes = plt.subplots(1, 2 if prefills else 1, figsize=(11, 4.6), squeeze=False)
    draw_calls(*data_calls(rows, heads, tail), axes[0, 0])
    if prefills:
        draw_prefills(prefills, axes[0, 1])
    of_calls = f"{heads[0]} / {heads[1]} heads of {heads[2]}, planted stripes, tail {tail}"
    both = f"Left: {of_calls}. Right: medians, θ = 12" if prefills else of_calls
    caption(figure, f"{about['device']}, torch {about['torch']}, bfloat16. {both}.")
    return figure
