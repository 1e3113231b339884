"""What the programs of a kernel read, decide and wait for: the figures of notebooks 09 to 11."""

import heapq
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anchor_lab.drawing.maps import draw_regions, region_bounds
from anchor_lab.drawing.shapes import CENTRED, box, label
from anchor_lab.drawing.style import ACCENT, INIT, INK, SKIPPED, STRIPE, WINDOW, finish, panels
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import causal_scores, scaled_scores
from anchor_ref.regions import groups

# The largest sum of weights that the kernels accept without a running maximum, as a power of two:
# `anchor_kernels.online_softmax.weight_limit`.
LIMITS = {"float16": 15, "bfloat16 and float32": 24}

SMALL = {**CENTRED, "fontsize": 8}


def data_stage1_loads(
    config: AnchorConfig, n: int, first_row: int, tile: int
) -> dict[str, list | Tensor]:
    """The key tiles that one program of stage 1 loads for `tile` rows, in its order.

    The tiles that may need a mask come first: the initial region, then the diagonal. The other
    tiles of the window follow, the nearest first.

    Args:
        config: sizes of the regions.
        n: N, number of tokens.
        first_row: first row of the program, a multiple of `tile`.
        tile: rows, and keys, to a tile; it divides the block size.

    Returns:
        groups: of each group what `maps.region_bounds` gives.
        rows: first row of the program and the row after its last.
        tiles: (first key, end key, region) of each tile, region "initial" or "window".
    """
    own = next(group for group in groups(config, n, n) if first_row in group.rows)
    rows = first_row, min(first_row + tile, own.rows.stop)
    tiles = [(key, key + tile, "initial") for key in own.init[::tile]]
    tiles += [
        (key, min(key + tile, rows[1]), "window")
        for key in range(first_row, own.window_start - 1, -tile)
    ]
    return {"groups": region_bounds(config, n), "rows": torch.tensor(rows), "tiles": tiles}


def draw_stage1_loads(data: dict[str, list | Tensor], ax) -> None:
    """What does one program load?"""
    top, bottom = data["rows"].tolist()
    draw_regions(data["groups"], ax, alpha=0.3)
    colours = {"initial": INIT, "window": WINDOW}
    for number, (first, end, region) in enumerate(data["tiles"], 1):
        ax.add_patch(box(first, top, end - first, bottom - top, colours[region]))
        # The number stands where the diagonal does not hide the tile.
        ax.text((2 * first + end) / 3, (top + 2 * bottom) / 3, str(number), **SMALL)
    first, end, _ = next(tile for tile in data["tiles"] if tile[0] == top)
    ax.fill([first, end, end], [top, top, bottom], fc="white", ec=INK, hatch="////", lw=0)
    start, n, init, window = data["groups"][-1]
    ax.text((init + window) / 2, (start + n) / 2, "skipped", **CENTRED)
    ax.text(window + 2, n - 4, "window", va="bottom")
    line = {"arrowstyle": "-", "lw": 0.8}
    to_edge = {"arrowprops": {**line, "shrinkB": 0}}
    label(ax, "initial region", (init / 2, (start + top) / 2), (30, 0), **to_edge)
    label(ax, "hidden: later keys", (end, (top + bottom) / 2), (14, 12), arrowprops=line)


def show_stage1_loads(data: dict[str, list | Tensor], small_print: str) -> None:
    """The figure of `draw_stage1_loads`, with its words."""
    figure, ax = panels(size=(5.4, 5.0))
    draw_stage1_loads(data, ax)
    regions = [region for *_, region in data["tiles"]]
    finish(
        figure,
        draw_stage1_loads.__doc__,
        f"{small_print}; loaded in the order of the numbers.",
        f"The triangle of all tokens. In the band of one program's rows {len(regions)} tiles are "
        f"loaded: {regions.count('initial')} of the initial region, then the diagonal, half of "
        "it hidden, then those further back in the window.",
    )


def data_headroom(
    q: Float[Tensor, "Hq N D"],
    k: Float[Tensor, "Hkv N D"],
    config: AnchorConfig,
    scale: float,
    tile: int,
) -> dict[str, Tensor]:
    """How far stage 1's largest score lies above that of the initial region and the diagonal.

    The weights of a row are measured from the largest score of its first, masked tiles; the
    largest weight of the row is then 2^headroom.

    Args:
        q, k: queries and keys; query head h reads kv head h // (Hq / Hkv).
        config: sizes of the regions.
        scale: factor of q·k.
        tile: rows, and keys, to a tile.

    Returns:
        position: query positions, `[N]`.
        headroom: log2 of each row's largest weight, at least 0, `[Hq, N]`.
    """
    n = q.shape[1]
    bounds = [(g.init.stop, g.window_start) for g in groups(config, n, n) for _ in g.rows]
    init, window = torch.tensor(bounds, device=q.device).T[..., None]  # [N, 1] each
    key = torch.arange(n, device=q.device)
    scores = causal_scores(q[None].float(), k[None].float(), scale)[0]  # [Hq, N, N]
    largest, origin = (
        scores.masked_fill((key >= init) & (key < start), -torch.inf).amax(-1)
        for start in (window, key[:, None] // tile * tile)
    )
    return {"position": key.cpu(), "headroom": (largest - origin).cpu() / math.log(2)}


def draw_headroom(data: dict[str, Tensor], ax) -> None:
    """How large can a weight become?"""
    position, headroom = data["position"], data["headroom"]
    ax.scatter(position.expand_as(headroom), headroom, s=3, color=ACCENT, lw=0)
    for name, limit in LIMITS.items():
        ax.axhline(limit, color=STRIPE, lw=1)
        words = f"{name}: beyond $2^{{{limit}}}$ the tile is done again"
        look = {"ha": "right", "va": "bottom", "color": STRIPE}
        label(ax, words, (len(position), limit), (0, 3), **look)
    ax.set(xlabel="query position", ylabel="log₂ of the row's largest weight", ylim=(-0.8, 28))
    ax.set_xlim(0, len(position))


def show_headroom(data: dict[str, Tensor], small_print: str) -> None:
    """The figure of `draw_headroom`, with its words."""
    figure, ax = panels(size=(7.0, 3.0))
    draw_headroom(data, ax)
    headroom = data["headroom"]
    none = float((headroom == 0).float().mean())
    finish(
        figure,
        draw_headroom.__doc__,
        small_print,
        f"Logarithm of each row's largest weight, by query position. {none:.0%} of the points lie "
        f"at 0, the highest at {float(headroom.max()):.0f}; lines show where float16 and the "
        "wider types need another launch.",
    )


def data_chunks(
    config: AnchorConfig, n: int, chunk: int, kept: list[Int[Tensor, "_"]]
) -> dict[str, list]:
    """The candidates of each group, cut into chunks: one program of stage 2 for each.

    Args:
        config: sizes of the regions.
        n: N, number of tokens.
        chunk: keys that one program reads.
        kept: the stripes of each group, for one head.

    Returns:
        groups: of each group what `maps.region_bounds` gives.
        chunks: (group, first key, end key) in the order of the programs.
        kept: for each group the stripe positions.
    """
    chunks = [
        (g, key, min(key + chunk, group.candidates.stop))
        for g, group in enumerate(groups(config, n, n))
        for key in group.candidates[::chunk]
    ]
    kept = [keys.cpu() for keys in kept]
    return {"groups": region_bounds(config, n), "chunks": chunks, "kept": kept}


def draw_chunks(data: dict[str, list], ax) -> None:
    """Which keys does each program of stage 2 read?"""
    found, height = data["groups"], 0.62
    for g, ((_, end, init, window), keys) in enumerate(zip(found, data["kept"], strict=True)):
        _draw_band(init, window, end, ax, y=g, height=height)
        ax.vlines(keys + 0.5, g, g + height, color=STRIPE, lw=0.9)
    for number, (g, first, end) in enumerate(data["chunks"]):
        ax.plot([first + 1, end - 1], [g - 0.06] * 2, color=INK, lw=1.5, solid_capstyle="butt")
        ax.text((first + end) / 2, g - 0.15, f"program {number}", ha="center", fontsize=8)
    _, end, init, window = found[-1]
    below = len(found) - 1 + height + 0.08
    ax.text(0, below, "initial region", va="top")
    under = {"ha": "center", "va": "top"}
    ax.text((window + end) / 2, below, "window", **under)
    text = "candidates: all read, some kept"
    ax.text((init + window) / 2, below, text, color=STRIPE, **under)
    ax.set(xlim=(-1, end), ylim=(below + 0.45, -0.4), xlabel="key position")
    ax.set_yticks([g + height / 2 for g in range(len(found))], range(len(found)))
    ax.set_ylabel("group")


def show_chunks(data: dict[str, list], small_print: str) -> None:
    """The figure of `draw_chunks`, with its words."""
    figure, ax = panels(size=(7.0, 4.2))
    draw_chunks(data, ax)
    finish(
        figure,
        draw_chunks.__doc__,
        small_print,
        f"A row of keys for each of {len(data['groups'])} groups: initial region, candidates, "
        f"window. Brackets show how {len(data['chunks'])} programs share the candidates in "
        "chunks; thin lines among them are the stripes.",
    )


def data_split_error(
    pooled: Float[Tensor, "M D"], k: Float[Tensor, "N D"], scale: float, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Errors of scores whose products are formed from numbers of a half-precision dtype.

    Args:
        pooled: mean queries q̄_t, `[M, D]` float32.
        k: keys, `[N, D]`; they are rounded to `dtype` first, as the kernels receive them.
        scale: factor of q·k.
        dtype: float16 or bfloat16.

    Returns:
        rounded, split, float32: |score − float64 score| in natural-log units, ascending,
            `[M·N]`, for q̄ rounded once, q̄ as rounded part plus rounded rest, and q̄ as it is.
    """
    k = k.to(dtype).float()
    high = pooled.to(dtype).float()
    low = (pooled - high).to(dtype).float()
    exact = scaled_scores(pooled.double(), k.double(), scale)
    found = {
        "rounded": scaled_scores(high, k, scale),
        "split": (high @ k.mT + low @ k.mT) * scale,
        "float32": scaled_scores(pooled, k, scale),
    }
    return {
        name: (scores.double() - exact).abs().flatten().sort().values.cpu()
        for name, scores in found.items()
    }


def draw_split_error(data: dict[str, Tensor], ax) -> None:
    """How wrong is a score made from rounded queries?"""
    import seaborn as sns

    looks = {
        "rounded": (STRIPE, "-", "q̄ rounded", 6, "left"),
        "split": (ACCENT, "-", "two parts", 6, "left"),
        "float32": (INK, ":", "float32", -6, "right"),
    }
    for name, (colour, line, words, offset, side) in looks.items():
        sns.ecdfplot(data[name].clamp(min=1e-10).numpy(), color=colour, ls=line, ax=ax)
        at = data[name].quantile(0.4), 0.4
        label(ax, words, at, (offset, 0), ha=side, va="baseline", color=colour)
    ax.set(xscale="log", xlim=(1e-9, 1), ylim=(0, 1.02))
    ax.set(xlabel="error of the score", ylabel="share of scores with less")


def show_split_errors(errors: dict[torch.dtype, dict[str, Tensor]], small_print: str) -> None:
    """The figure of `draw_split_error`, one panel for each dtype, with its words."""
    figure, axes = panels(1, len(errors), size=(7.0, 2.9), sharey=True)
    said = []
    for ax, (dtype, error) in zip(axes, errors.items(), strict=True):
        draw_split_error(error, ax)
        name = str(dtype).removeprefix("torch.")
        ax.set_title(name)
        once, split = (float(error[how][-1]) for how in ("rounded", "split"))
        said.append(f"{name} {once:.2g} rounded once, {split:.1g} in two parts")
    finish(
        figure,
        draw_split_error.__doc__,
        small_print,
        f"Largest error of a score: {'; '.join(said)}.",
    )


def data_compaction(decisions: Bool[Tensor, "lists lanes"]) -> dict[str, Tensor]:
    """Decisions as words, and where each kept key goes in the common list.

    Args:
        decisions: one list of decisions a row; at most 62 lanes.

    Returns:
        decisions: as given.
        words: Σ decision << lane, `[lists]` int64.
        counts: decisions that are true, `[lists]`.
        starts: exclusive prefix sum of the counts, `[lists]`.
        places: where each kept key goes, −1 for the others, `[lists, lanes]`.
    """
    bits = decisions.long()
    counts = bits.sum(1)
    starts = counts.cumsum(0) - counts
    places = starts[:, None] + bits.cumsum(1) - 1
    return {
        "decisions": decisions,
        "words": (bits << torch.arange(bits.shape[1])).sum(1),
        "counts": counts,
        "starts": starts,
        "places": places.where(decisions, -1),
    }


def draw_compaction(data: dict[str, Tensor], ax) -> None:
    """Where does each kept key go?"""
    lists, lanes = data["decisions"].shape
    base, total = 1.5 * lists + 0.6, int(data["counts"].sum())
    left = {"ha": "right", "va": "center"}
    for at in range(total):
        ax.add_patch(box(at, base, 1, 0.8, STRIPE, alpha=0.25))
        ax.text(at + 0.5, base + 1.15, str(at), **SMALL)
    for row in range(lists):
        top = 1.5 * row
        for lane, place in enumerate(data["places"][row].tolist()):
            ax.add_patch(box(lane, top, 1, 0.8, SKIPPED if place < 0 else STRIPE))
            ax.text(lane + 0.5, top + 0.4, int(place >= 0), **SMALL)
            if place >= 0:
                ax.plot([lane + 0.5, place + 0.5], [top + 0.8, base], color=STRIPE, lw=0.7)
                ax.text(place + 0.5, base + 0.4, str(lane), **SMALL)
        word, count, start = (int(data[name][row]) for name in ("words", "counts", "starts"))
        words = f"word {word}, count {count}, begins at {start}"
        ax.text(lanes + 0.4, top + 0.4, words, va="center")
        ax.text(-0.3, top + 0.4, f"list {row}", **left)
    ax.text(-0.3, base + 0.4, "keys", **left)
    ax.text(-0.3, base + 1.15, "place", **left)
    ax.set(xlim=(-2, lanes + 6), ylim=(base + 1.5, -0.3))
    ax.set_axis_off()


def show_compaction(data: dict[str, Tensor], small_print: str) -> None:
    """The figure of `draw_compaction`, with its words."""
    figure, ax = panels(size=(7.0, 3.2))
    draw_compaction(data, ax)
    finish(
        figure,
        draw_compaction.__doc__,
        small_print,
        f"{len(data['counts'])} lists of bits. Lines lead from the {int(data['counts'].sum())} "
        "set bits to as many places side by side, which hold the keys of one list after the "
        "other; an empty list has none.",
    )


def data_gather(
    config: AnchorConfig, n: int, group: int, keys: Int[Tensor, "n"], tile: int
) -> dict[str, Tensor]:
    """Scattered stripes of one group, packed into tiles.

    Args:
        config: sizes of the regions.
        n: N, number of tokens.
        group: the group.
        keys: its stripes, ascending.
        tile: keys to a tile.

    Returns:
        bounds: end of the initial region, window start and end of the group, `[3]`.
        slots: the key in each place of each tile, `[tiles, tile]`; −1 beyond the last stripe.
    """
    found = groups(config, n, n)[group]
    slots = torch.full((-(-len(keys) // tile), tile), -1)
    slots.view(-1)[: len(keys)] = keys.cpu().long()
    end = found.rows.stop + found.shift
    return {"bounds": torch.tensor([found.init.stop, found.window_start, end]), "slots": slots}


def draw_gather(data: dict[str, Tensor], ax) -> None:
    """How do scattered keys become whole tiles?"""
    (init, window, end), slots = data["bounds"].tolist(), data["slots"]
    _draw_band(init, window, end, ax, y=0, height=1.0)
    # Tiles are spread under the candidates, whatever their number.
    tiles, tile = slots.shape
    pitch = end / tiles
    cell = 0.85 * pitch / tile
    for i in range(tiles):
        for j, key in enumerate(slots[i].tolist()):
            left = (i + 0.075) * pitch + j * cell
            if key < 0:
                ax.add_patch(box(left, 4, cell, 1, "white", lw=0.3, hatch="////", ec=INK))
                continue
            ax.add_patch(box(left, 4, cell, 1, STRIPE, lw=0.3))
            ax.add_patch(box(key, 0, 1, 1, STRIPE, lw=0))
            ax.plot([key + 0.5, left + cell / 2], [1.05, 3.95], color=STRIPE, lw=0.35)
        ax.text((i + 0.5) * pitch, 5.2, f"tile {i}", ha="center", va="top", fontsize=8)
    if hidden := int((slots < 0).sum()):
        ax.text(end, 5.9, f"{hidden} places hidden", ha="right", va="top", fontsize=8)
    for text, first, last in (
        ("initial", 0, init),
        ("stripes among skipped keys", init, window),
        ("window", window, end),
    ):
        ax.text((first + last) / 2, -0.2, text, ha="center", va="bottom")
    ax.set(xlim=(-1, end + 1), ylim=(6.4, -1), xticks=[])
    ax.set_yticks([0.5, 4.5], ["in memory", "in the program"])
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)


def show_gather(data: dict[str, Tensor], small_print: str) -> None:
    """The figure of `draw_gather`, with its words."""
    figure, ax = panels(size=(7.0, 3.0))
    draw_gather(data, ax)
    tiles, hidden = len(data["slots"]), int((data["slots"] < 0).sum())
    finish(
        figure,
        draw_gather.__doc__,
        f"{small_print}; grey is skipped.",
        "Above, keys in memory, with stripes scattered between initial region and window. Lines "
        f"gather them into {tiles} tiles; the last one ends in {hidden} hidden places.",
    )


def data_schedule(
    work: Int[Tensor, "programs"], processors: int, order: Int[Tensor, "programs"]
) -> dict[str, Tensor]:
    """When and where each program runs, if the next one always goes to the first free processor.

    Args:
        work: time that each program takes.
        processors: how many run at once.
        order: in which the programs are handed out.

    Returns:
        processor, start, end: of each program, in the order of `work`, `[programs]` int64.
    """
    free = [(0, p) for p in range(processors)]
    processor, start = torch.zeros(2, len(work), dtype=torch.int64)
    for program in order.tolist():
        time, p = heapq.heappop(free)
        processor[program], start[program] = p, time
        heapq.heappush(free, (time + int(work[program]), p))
    return {"processor": processor, "start": start, "end": start + work.cpu().long()}


def draw_schedule(data: dict[str, Tensor], ax) -> None:
    """When is the last program done?"""
    start, end = data["start"], data["end"]
    length = (end - start).float()
    # The longer, the darker: in a good schedule the dark ones stand at the left.
    shades = [(STRIPE, 0.25 + 0.75 * share) for share in (length / length.max()).tolist()]
    ax.barh(data["processor"], length, left=start, height=0.8, color=shades, ec="white", lw=0.8)
    done = int(end.max())
    ax.axvline(done, color=INK, lw=1)
    label(ax, f"all done: {done}", (done, -0.5), (-4, 4), ha="right", va="bottom")
    ax.set(xlabel="time, in tiles of keys", ylabel="multiprocessor")
    ax.set_yticks(range(int(data["processor"].max()) + 1))
    ax.invert_yaxis()


def show_schedules(schedules: dict[str, dict[str, Tensor]]) -> None:
    """The figure of `draw_schedule`, one panel for each order, with its words."""
    figure, axes = panels(len(schedules), size=(7.0, 2.1 * len(schedules)), sharex=True)
    for ax, (name, schedule) in zip(axes, schedules.items(), strict=True):
        draw_schedule(schedule, ax)
        ax.set_title(name.capitalize())
        if ax is not axes[-1]:
            ax.set_xlabel("")  # it is under the last
    done = [f"in {name} all are done after {int(x['end'].max())}" for name, x in schedules.items()]
    finish(
        figure,
        draw_schedule.__doc__,
        "Lists of the 8M model, layer 7, N = 512, θ = 5.5; one program each; long is dark.",
        "Schedules of the same lists on some multiprocessors, time in tiles of keys: "
        f"{'; '.join(done)}.",
    )


def _draw_band(init: int, window: int, end: int, ax, *, y: int, height: float) -> None:
    """The regions of one group as a band: initial region, what lies between, window."""
    for first, last, colour in ((0, init, INIT), (init, window, SKIPPED), (window, end, WINDOW)):
        ax.add_patch(box(first, y, last - first, height, colour))
