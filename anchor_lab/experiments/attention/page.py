"""What `anchor_lab.experiments.attention.measure` found, as Markdown; also what the figure takes its numbers from."""

import json
from collections.abc import Callable
from itertools import pairwise
from math import exp, inf, log
from pathlib import Path

REFERENCE_DENSITY = 0.05  # at which lengths are compared
DENSITY_LENGTH = 131_072  # at which densities are compared
DENSE = ("sdpa-flash", "sdpa-cudnn")

# What one row of a table is made of: the cells on the same inputs, by method.
Row = dict[str, dict]


def break_even(times: dict[int, tuple[float, float]]) -> float:
    """The length from which on the first time is the smaller one.

    Interpolated between the last two measured lengths around the crossing: the logarithm of the
    ratio is taken as linear in log N.

    Args:
        times: by length, (the method's, the other's).

    Returns:
        The length; 0 when the first is smaller at all lengths, inf when it is not at the last.
    """
    points = [(log(n), log(ours / theirs)) for n, (ours, theirs) in sorted(times.items())]
    if not points or points[-1][1] >= 0:
        return inf
    for (x0, y0), (x1, y1) in reversed(list(pairwise(points))):
        if y0 >= 0:
            return exp(x0 + (x1 - x0) * y0 / (y0 - y1))
    return 0.0


def by_inputs(results: dict) -> dict[tuple, Row]:
    """The cells by (source, layer, n, density), then by method."""
    rows: dict[tuple, Row] = {}
    for cell in results["cells"]:
        inputs = (cell["source"], cell["layer"], cell["n"], cell["density"])
        rows.setdefault(inputs, {})[cell["method"]] = cell
    return rows


def reference_density(rows: dict[tuple, Row]) -> float:
    """The density at which lengths are compared: 5 %, or what was measured first instead."""
    densities = [density for source, _, _, density in rows if source == "planted"]
    if REFERENCE_DENSITY in densities or not densities:
        return REFERENCE_DENSITY
    return densities[0]


def by_length(rows: dict[tuple, Row]) -> dict[int, Row]:
    """Planted inputs of the reference density, by ascending length."""
    wanted = reference_density(rows)
    found = {n: row for (_, _, n, density), row in rows.items() if density == wanted}
    return dict(sorted(found.items()))


def by_density(rows: dict[tuple, Row]) -> tuple[int, dict[float, Row]]:
    """The length with most densities, the longest of several, and its planted inputs."""
    found: dict[int, dict[float, Row]] = {}
    for (source, _, n, density), row in rows.items():
        if source == "planted":
            found.setdefault(n, {})[density] = row
    if not found:
        return 0, {}
    n = max(found, key=lambda n: (len(found[n]), n == DENSITY_LENGTH, n))
    return n, dict(sorted(found[n].items()))


def of_captures(rows: dict[tuple, Row]) -> dict[tuple[str, int, int], Row]:
    """Inputs that a model made, by its name, length and layer, ascending."""
    found = {
        (source, n, layer): row
        for (source, layer, n, _), row in rows.items()
        if source != "planted"
    }
    return dict(sorted(found.items()))


def crossing(rows: dict[tuple, Row], other: str) -> tuple[float, list[int]]:
    """`break_even` of the project with another method, and the lengths it rests on."""
    times = {
        n: (row["anchor"]["ms"]["median"], row[other]["ms"]["median"])
        for n, row in by_length(rows).items()
        if is_ok(row, "anchor", other)
    }
    return break_even(times), list(times)


def is_ok(row: Row, *methods: str) -> bool:
    """All of these methods were measured on the row's inputs."""
    return all(method in row and row[method]["status"] == "ok" for method in methods)


def number(x: float) -> str:
    """Three digits; whole numbers from 100 on."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def percent(x: float) -> str:
    return f"{100 * x:.3g} %"


Column = tuple[str, Callable[[Row], str]]


def _column(header: str, method: str, text: Callable[[dict], str]) -> Column:
    """A column about one method; where it has no result, its status."""

    def entry(row: Row) -> str:
        if is_ok(row, method):
            return text(row[method])
        return row[method]["status"] if method in row else "–"

    return header, entry


def _time(header: str, method: str) -> Column:
    def text(cell: dict) -> str:
        ms = cell["ms"]
        return f"{number(ms['median'])} [{number(ms['p10'])}–{number(ms['p90'])}]"

    return _column(header, method, text)


def _rate(header: str, method: str) -> Column:
    return _column(
        header, method, lambda cell: f"{number(cell['ms']['median'])} ({number(cell['tflops'])})"
    )


def _field(header: str, method: str, name: str, form: Callable = number) -> Column:
    return _column(header, method, lambda cell: form(cell[name]))


def _quotient(header: str, method: str) -> Column:
    def entry(row: Row) -> str:
        if not is_ok(row, "anchor", method):
            return "–"
        return f"{row[method]['ms']['median'] / row['anchor']['ms']['median']:.2f}"

    return header, entry


def _sum_of_stages(row: Row) -> str:
    stages = ("stage1", "stage2", "stage3")
    if not is_ok(row, *stages):
        return "–"
    return number(sum(row[stage]["ms"]["median"] for stage in stages))


def _of_any(text: Callable[[dict], str]) -> Callable[[Row], str]:
    """What is the same for all methods, from one that has a result."""
    return lambda row: next((text(c) for c in row.values() if c["status"] == "ok"), "–")


TIMES = (
    _time("AnchorAttention, ms", "anchor"),
    _time("SDPA flash, ms", "sdpa-flash"),
    _time("SDPA cuDNN, ms", "sdpa-cudnn"),
    _time("FlexAttention, ms", "flex"),
    _quotient("flash / ours", "sdpa-flash"),
    _quotient("cuDNN / ours", "sdpa-cudnn"),
    _quotient("Flex / ours", "flex"),
)
KEPT = _field("pairs kept", "anchor", "kept", percent)
FLOOR = (
    _field("floor, ms", "anchor", "floor_ms"),
    _field("ours / floor", "anchor", "floor_ratio"),
)
ERROR = _field("error, ours", "anchor", "error_mean", "{:.2g}".format)
FLEX_ERROR = _field("error, Flex", "flex", "error_mean", "{:.2g}".format)
IN_BLOCKS = _field("pairs in Flex's blocks", "flex", "kept", percent)
STAGES = tuple(_rate(f"stage {i}, ms", f"stage{i}") for i in (1, 2, 3))
END_TO_END_COLUMNS = (
    KEPT,
    *TIMES,
    *FLOOR,
    ERROR,
    _field("error, cuDNN", "sdpa-cudnn", "error_mean", "{:.2g}".format),
    _column("repeats", "anchor", lambda cell: str(cell["ms"]["repeats"])),
)
STAGE_COLUMNS = (
    *STAGES,
    ("sum", _sum_of_stages),
    _rate("end to end, ms", "anchor"),
    *(_field(f"stage {i} / floor", f"stage{i}", "floor_ratio") for i in (1, 2, 3)),
)
DENSITY_COLUMNS = (
    KEPT,
    *TIMES,
    *STAGES,
    *FLOOR,
    IN_BLOCKS,
    ERROR,
    FLEX_ERROR,
)
MEMORY_COLUMNS = (
    ("inputs and output", _of_any(lambda cell: number(cell["input_output_mib"]))),
    _field("AnchorAttention", "anchor", "extra_mib"),
    _field("SDPA flash", "sdpa-flash", "extra_mib"),
    _field("SDPA cuDNN", "sdpa-cudnn", "extra_mib"),
    _field("FlexAttention, block tables included", "flex", "extra_mib"),
)
CAPTURE_COLUMNS = (
    ("heads", _of_any(lambda cell: "{1} / {2} of {3}".format(*cell["heads"]))),
    KEPT,
    *TIMES,
    *FLOOR,
    IN_BLOCKS,
    ERROR,
    FLEX_ERROR,
    _field("ours, worst head", "anchor", "error_worst_head", "{:.2g}".format),
)


def page(path: Path) -> str:
    """The file of results at `path` as Markdown, with its picture, which lies beside it.

    Where results of later kernels lie in the same folder, the first line leads to them.
    """
    results = json.loads(path.read_text())
    title, rest = table(results).split("\n\n", 1)
    parts = [title, *_later(path, results), f"![{in_words(results)}]({path.stem}.png)", rest]
    return "\n\n".join(parts)


def _later(path: Path, results: dict) -> list[str]:
    """A line for each file of results beside this one that later kernels made."""
    mine, lines = results["runs"][-1], []
    for other in sorted(path.parent.glob("attention*.json")):
        run = json.loads(other.read_text())["runs"][-1]
        if run["kernels"] != mine["kernels"] and run["date"] > mine["date"]:
            lines.append(
                f"**These kernels, {mine['kernels']}, are older than those of "
                f"[{other.stem}.md]({other.stem}.md), {run['kernels']}, measured on "
                f"{run['device']}.**"
            )
    return lines


def in_words(results: dict) -> str:
    """What the picture shows, for those who cannot see it."""
    rows = by_inputs(results)
    said = [f"Four panels, {results['runs'][-1]['device']}."]

    def ends(found: dict, method: str) -> str:
        times = [row[method]["ms"]["median"] for row in found.values() if is_ok(row, method)]
        return f"{number(times[0])} to {number(times[-1])} ms" if times else "not measured"

    if lengths := by_length(rows):
        first, last = min(lengths), max(lengths)
        said.append(f"Time of a call from {first} to {last} tokens: {ends(lengths, 'anchor')}.")
    both = [n for n, row in lengths.items() if is_ok(row, "anchor", "sdpa-cudnn")]
    if both:
        row = lengths[both[-1]]
        ours, cudnn = (row[method]["ms"]["median"] for method in ("anchor", "sdpa-cudnn"))
        said.append(f"At {both[-1]} tokens cuDNN takes {cudnn / ours:.2g} times as long.")
    n, densities = by_density(rows)
    if densities:
        low, high = percent(min(densities)), percent(max(densities))
        said.append(
            f"Time from {low} to {high} stripes at {n} tokens: {ends(densities, 'anchor')}, cuDNN "
            f"{ends(densities, 'sdpa-cudnn')}; its stage 3 {ends(densities, 'stage3')}."
        )
    gains = [
        row["sdpa-cudnn"]["ms"]["median"] / row["anchor"]["ms"]["median"]
        for row in of_captures(rows).values()
        if is_ok(row, "anchor", "sdpa-cudnn")
    ]
    if gains:
        said.append(
            f"On layers of a model cuDNN's time over ours is {min(gains):.2f} to {max(gains):.2f}."
        )
    return " ".join(said)


def table(results: dict) -> str:
    """The results as Markdown."""
    rows = by_inputs(results)
    at = f"{percent(reference_density(rows))} stripes"
    lengths = {(str(n),): row for n, row in by_length(rows).items()}
    n, of_densities = by_density(rows)
    densities = {(percent(density),): row for density, row in of_densities.items()}
    captures = {tuple(map(str, key)): row for key, row in of_captures(rows).items()}
    memory = f"Peak memory above inputs and output, MiB, {at}"
    devices = ", ".join(dict.fromkeys(run["device"] for run in results["runs"]))
    parts = [
        f"# Attention on a GPU: {devices}",
        _conditions(results),
        _section(f"End to end, {at}", ["N"], END_TO_END_COLUMNS, lengths),
        _break_even_text(rows),
        _section(f"Stages, {at}", ["N"], STAGE_COLUMNS, lengths),
        _section(f"By stripe density, N = {n}", ["stripes"], DENSITY_COLUMNS, densities),
        _section(memory, ["N"], MEMORY_COLUMNS, lengths),
        _section("Activations of a model", ["model", "N", "layer"], CAPTURE_COLUMNS, captures),
        _gaps(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, names: list[str], columns: tuple[Column, ...], rows: dict) -> str:
    """A titled table whose rows begin with the entries of their key; "" without rows."""
    if not rows:
        return ""
    header = [*names, *(header for header, _ in columns)]
    entries = [[*key, *(entry(row) for _, entry in columns)] for key, row in rows.items()]
    return f"## {title}\n\n{markdown(header, entries)}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _conditions(results: dict) -> str:
    """What was measured on what, one line for each run."""
    ok = [cell for cell in results["cells"] if cell["status"] == "ok"]
    notes = sorted({cell["note"] for cell in ok if cell["method"] in DENSE})
    shapes = [cell["heads"] for cell in ok if cell["source"] == "planted"]
    shape = "B = {}, {} query / {} kv heads, D = {}".format(*shapes[0]) if shapes else "none"
    text = (
        "Medians [10th–90th percentile] of one call, in brackets (TFLOP/s on kept pairs). bf16, "
        f"causal; block 128, step 16, θ = 12. Planted inputs: {shape}. FlexAttention gets the "
        f"128 x 128 blocks that hold a kept pair.{''.join(f' {note}.' for note in notes)} "
        "`kernels` is the beginning of the SHA-256 of their sources."
    )
    names = ("date", "device", "torch", "triton", "cuda", "cudnn", "driver", "kernels")
    header = ["run", *names, "matrix, TFLOP/s", "copy, TB/s", "command"]
    rows = [
        [
            str(place),
            *(str(run[name]) for name in names),
            number(run["matrix_tflops"]),
            number(run["copy_tbs"]),
            f"`{run['command']}`",
        ]
        for place, run in enumerate(results["runs"])
    ]
    return f"{text}\n\n{markdown(header, rows)}"


def _break_even_text(rows: dict[tuple, Row]) -> str:
    lines = []
    for method, name in (("sdpa-cudnn", "SDPA cuDNN"), ("sdpa-flash", "SDPA flash")):
        length, measured = crossing(rows, method)
        if not measured:
            text = "no length has both"
        elif length == inf:
            text = f"none up to N = {measured[-1]}"
        elif length == 0:
            text = f"below N = {measured[0]}, the shortest measured"
        else:
            text = f"N = {length:.0f}, interpolated in log N"
        lines.append(f"- Break-even with {name}: {text}.")
    return "\n".join(lines)


def _gaps(results: dict) -> str:
    """What has no result, and why."""
    rows = [
        [
            cell["source"] if cell["layer"] is None else f"{cell['source']}, {cell['layer']}",
            str(cell["n"]),
            "–" if cell["density"] is None else percent(cell["density"]),
            cell["method"],
            cell["status"],
            cell["message"].replace("|", "\\|"),
        ]
        for cell in results["cells"]
        if cell["status"] != "ok"
    ]
    header = ["inputs", "N", "stripes", "method", "status", "message"]
    return f"## Not measured\n\n{markdown(header, rows)}" if rows else ""
