"""Figures of notebook 12: what `anchor_lab.experiments.attention.measure` measured of time, floor and memory."""

from math import exp, inf, log

from anchor_lab.drawing.style import ACCENT, INIT, INK, STRIPE, WINDOW

STAGES = {"stage1": "1 anchor", "stage2": "2 stripes", "stage3": "3 sparse"}
# Name, colour and line of each method.
METHODS = {
    "anchor": ("AnchorAttention", STRIPE, "-"),
    "sdpa-cudnn": ("dense, cuDNN", INK, "-"),
    "sdpa-flash": ("dense, flash", INK, "--"),
    "flex": ("FlexAttention", ACCENT, "-."),
}
# Where a line's name stands, seen from its end; right beside it unless said here.
_BESIDE = {"sdpa-flash": (-6, 8), "sdpa-cudnn": (6, -2), "flex": (-6, 4), "floor": (6, -5)}
DENSITY = 0.05  # of the stripes, at which lengths are compared


def cells(results: dict, method: str, density: float = DENSITY) -> dict[int, dict]:
    """Results of one method on planted inputs, by ascending length; what was not measured is left
    out.

    Args:
        results: what `anchor_lab.experiments.attention.measure` wrote.
        method: a name in `METHODS` or `STAGES`.
        density: share of the candidates that are stripes.
    """
    found = {
        cell["n"]: cell
        for cell in results["cells"]
        if (cell["source"], cell["method"], cell["density"]) == ("planted", method, density)
        and cell["status"] == "ok"
    }
    return dict(sorted(found.items()))


def data_race(results: dict) -> dict[str, tuple[list[int], list[float]]]:
    """Median ms of a call by length: every method, and the least that our work could take."""
    lines = {
        method: {n: cell["ms"]["median"] for n, cell in cells(results, method).items()}
        for method in METHODS
    }
    lines["floor"] = {n: cell["floor_ms"] for n, cell in cells(results, "anchor").items()}
    return {name: (list(line), list(line.values())) for name, line in lines.items() if line}


def break_even(ours: dict[int, float], theirs: dict[int, float]) -> float:
    """The length from which on ours takes less time.

    Between the two measured lengths around the last crossing log(ours / theirs) is taken as
    linear in log N.

    Returns:
        The length; 0 when ours is faster at all lengths, inf when it is not at the last.
    """
    both = sorted(ours.keys() & theirs.keys())
    ratio = {n: log(ours[n] / theirs[n]) for n in both}
    slower = [n for n in both if ratio[n] >= 0]
    if not slower:
        return 0.0
    if slower[-1] == both[-1]:
        return inf
    before, after = slower[-1], both[both.index(slower[-1]) + 1]
    share = ratio[before] / (ratio[before] - ratio[after])
    return exp(log(before) + share * (log(after) - log(before)))


def draw_race(lines: dict[str, tuple[list[int], list[float]]], ax) -> None:
    """From which length on is it faster?

    `lines` are those of `data_race`; one of any other name is drawn thin and named at its start.
    """
    for name, (lengths, times) in lines.items():
        if name in METHODS or name == "floor":
            label, colour, dash = METHODS.get(name, ("floor of our work", STRIPE, ":"))
            place, at, leader, width = (lengths[-1], times[-1]), _BESIDE.get(name, (6, 0)), {}, 1.6
            side = "right" if name in ("flex", "sdpa-flash") else "left"
        else:
            label, colour, dash, width = name, "#6A6A6A", "-", 0.9
            # High above its start, where no line passes.
            place, at, side = (lengths[0], times[0]), (0, 95), "left"
            leader = {
                "arrowprops": {"arrowstyle": "-", "color": colour, "lw": 0.6, "relpos": (0, 0)}
            }
        ax.plot(
            lengths, times, dash, color=colour, lw=width, marker="o", ms=2 * width, zorder=width
        )
        ax.annotate(
            label,
            place,
            at,
            textcoords="offset points",
            color=colour,
            ha=side,
            va="center",
            **leader,
        )
    ticks = lines["anchor"][0]
    ax.set(xscale="log", yscale="log", xlabel="N, tokens", ylabel="ms a call")
    ax.set_xticks(ticks, [short(n) for n in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlim(ticks[0] / 1.3, ticks[-1] * 8)


def data_shares(results: dict) -> dict[str, list]:
    """Share of each stage in the sum of the three, by length.

    Returns:
        n; and by each of `STAGES` its shares.
    """
    times = {stage: cells(results, stage) for stage in STAGES}
    lengths = [n for n in times["stage1"] if all(n in of_stage for of_stage in times.values())]
    total = {n: sum(times[stage][n]["ms"]["median"] for stage in STAGES) for n in lengths}
    shares = {
        stage: [times[stage][n]["ms"]["median"] / total[n] for n in lengths] for stage in STAGES
    }
    return {"n": lengths, **shares}


def draw_shares(data: dict[str, list], ax) -> None:
    """Which stage takes the time?"""
    below = [0.0] * len(data["n"])
    for (stage, name), colour, hatch in zip(
        STAGES.items(), (WINDOW, INIT, STRIPE), ("", "//", ""), strict=True
    ):
        shares = data[stage]
        ax.bar(range(len(below)), shares, bottom=below, color=colour, ec="white", hatch=hatch)
        ax.annotate(
            name,
            (len(below) - 0.5, below[-1] + shares[-1] / 2),
            (6, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )
        below = [low + share for low, share in zip(below, shares, strict=True)]
    ax.set_xticks(range(len(below)), [short(n) for n in data["n"]])
    ax.set(xlabel="N, tokens", ylabel="share of the time", xlim=(-0.6, len(below) - 0.5))


def data_roofline(results: dict, n: int) -> dict:
    """Work for each byte, and the speed reached: the stages, the whole, dense attention.

    Args:
        results: what `anchor_lab.experiments.attention.measure` wrote.
        n: a measured length.

    Returns:
        peak: TFLOP/s of a large matrix product; bandwidth: TB/s of a copy, both of this device.
        points: by name (FLOP a byte, TFLOP/s).
    """
    names = {**STAGES, "anchor": "all three", "sdpa-cudnn": "dense, cuDNN"}
    run, points = results["runs"][-1], {}
    for method, name in names.items():
        cell = cells(results, method).get(n)
        if cell is not None:
            points[name] = (cell["flop"] / cell["bytes"], cell["tflops"])
    return {"peak": run["matrix_tflops"], "bandwidth": run["copy_tbs"], "points": points}


def draw_roofline(data: dict, ax) -> None:
    """How near does each stage come to what the device can do?"""
    peak, bandwidth = data["peak"], data["bandwidth"]
    most = 12 * max(intensity for intensity, _ in data["points"].values())
    knee = peak / bandwidth
    ax.plot([knee / 30, knee, most], [peak / 30, peak, peak], color=INK, lw=1.5)
    ax.annotate(
        "memory: a copy's speed",
        (knee / 8, peak / 8),
        (8, -8),
        textcoords="offset points",
    )
    ax.annotate(
        "arithmetic: a matrix product's speed",
        (most, peak),
        (0, 5),
        textcoords="offset points",
        ha="right",
    )
    for name, (intensity, speed) in data["points"].items():
        colour = INK if name.startswith("dense") else STRIPE
        ax.plot(intensity, speed, "o", color=colour, ms=6)
        above = name == STAGES["stage3"]  # the whole lies right below it
        ax.annotate(
            name,
            (intensity, speed),
            (0, 6) if above else (7, -2),
            textcoords="offset points",
            color=colour,
            va="bottom" if above else "top",
            weight="bold",
        )
    ax.set(xscale="log", yscale="log", xlabel="FLOP for each byte", ylabel="TFLOP/s")
    ax.set(xlim=(knee / 30, most), ylim=(peak / 40, 1.8 * peak))


def data_memory(results: dict) -> dict[str, tuple[list[int], list[float]]]:
    """MiB that a call holds besides inputs and output, by length, and these themselves."""
    found = {}
    for method in ("anchor", "flex"):
        line = {n: cell["extra_mib"] for n, cell in cells(results, method).items()}
        found[METHODS[method][0]] = (list(line), list(line.values()))
    io = {n: cell["input_output_mib"] for n, cell in cells(results, "anchor").items()}
    found["q, k, v and output"] = (list(io), list(io.values()))
    return found


def draw_memory(lines: dict[str, tuple[list[int], list[float]]], ax) -> None:
    """How much memory does a call need beside its inputs?"""
    for (name, (lengths, sizes)), colour, dash in zip(
        lines.items(), (STRIPE, ACCENT, INK), ("-", "-.", "--"), strict=True
    ):
        ax.plot(lengths, sizes, dash, color=colour, marker="o", ms=3)
        inside = lengths[-1] < max(max(places) for places, _ in lines.values())
        ax.annotate(
            name,
            (lengths[-1], sizes[-1]),
            (-6, 6) if inside else (6, 0),  # others go on to the right of its end
            textcoords="offset points",
            color=colour,
            ha="right" if inside else "left",
            va="center",
        )
    ticks = max((lengths for lengths, _ in lines.values()), key=len)
    ax.set(xscale="log", yscale="log", xlabel="N, tokens", ylabel="MiB")
    ax.set_xticks(ticks, [short(n) for n in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlim(ticks[0] / 1.3, ticks[-1] * 8)


def data_layers(results: dict) -> list[tuple[str, int, int, float, float]]:
    """Layers of models: (model, N, layer, share of the pairs kept, dense time / ours)."""
    times: dict[tuple, dict[str, dict]] = {}
    for cell in results["cells"]:
        if cell["source"] != "planted" and cell["status"] == "ok":
            place = (cell["source"], cell["n"], cell["layer"])
            times.setdefault(place, {})[cell["method"]] = cell
    return [
        (
            *place,
            of["anchor"]["kept"],
            of["sdpa-cudnn"]["ms"]["median"] / of["anchor"]["ms"]["median"],
        )
        for place, of in sorted(times.items())
        if {"anchor", "sdpa-cudnn"} <= of.keys()
    ]


def draw_layers(rows: list[tuple[str, int, int, float, float]], ax) -> None:
    """Which layers of a real model gain?"""
    places = sorted({(model, n) for model, n, *_ in rows})
    for (model, n), colour, mark in zip(places, (ACCENT, STRIPE, INIT, INK), "osD^", strict=False):
        points = [(kept, gain) for m, length, _, kept, gain in rows if (m, length) == (model, n)]
        ax.plot(*zip(*points, strict=True), mark, color=colour, ms=5)
        ax.annotate(
            f"{model} model, {short(n)} tokens",
            left_below(points),
            (0, -12),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    ax.axhline(1, color="#9A9A9A", lw=0.8)
    ax.annotate(
        "as fast as dense",
        (0.01, 1),
        (0, -3),
        textcoords="offset points",
        xycoords=("axes fraction", "data"),
        va="top",
    )
    ax.set(xlabel="share of the pairs kept", ylabel="dense time / ours", ylim=(0, None))


def left_below(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Under what words may stand that begin at the leftmost point: the lowest of the left half."""
    left = min(points)[0]
    middle = (left + max(points)[0]) / 2
    return left, min(y for x, y in points if x <= middle)


def short(n: int) -> str:
    """131072 -> 128k, 1048576 -> 1M."""
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if n >= unit and n % unit == 0:
            return f"{n // unit}{name}"
    return str(n)
