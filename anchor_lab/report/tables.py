"""The report's numbers as HTML: cards, tables, words in their context."""

from collections.abc import Iterable, Sequence
from html import escape

from anchor_lab.report.cost import Estimate, Rates, estimate
from anchor_lab.report.results import Results, calibration
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import identification_cost


def html_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    marked: int = -1,
    words: Sequence[int] = (),
) -> str:
    """A table whose cells are HTML already; row `marked` stands out, columns `words` are text."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = (' class="words"' if column in words else "" for column in range(len(cells)))
        return "".join(f"<{tag}{kind}>{x}</{tag}>" for kind, x in zip(kinds, cells, strict=True))

    lines = [f"<tr>{line('th', heads)}</tr>"] if any(heads) else []
    for number, row in enumerate(rows):
        kind = ' class="marked"' if number == marked else ""
        lines.append(f"<tr{kind}>{line('td', row)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def cards(results: Results, theta: float, target: float, rates: Rates) -> str:
    """The answer first: five numbers."""
    at = results.thetas.index(theta)
    found = _estimate(results, at, rates)
    reached = float(results.recall[at].mean())
    shown = (
        (f"{theta:g}", "θ shown here" if reached >= target else f"θ, short of {target:g}"),
        (f"{reached:.3f}", "recall, mean over heads"),
        (f"{float(results.density[at].mean()):.0%}", "density: pairs computed"),
        (f"{found.attention_speedup:.2f}×", f"attention on {rates.device}, estimated"),
        (f"{found.prefill_speedup:.2f}×", "whole prefill there, estimated"),
    )
    return (
        '<div class="cards">'
        + "".join(
            f"<div><b>{number}</b><span>{escape(what)}</span></div>" for number, what in shown
        )
        + "</div>"
    )


def theta_table(results: Results, theta: float, rates: Rates) -> str:
    """Recall, density and estimated speed-ups at every second θ measured, and at `theta`."""
    choosing = float(identification_cost(AnchorConfig(), results.n, results.n))
    rows, marked = [], -1
    for at, value in enumerate(results.thetas):
        if at % 2 and value != theta:
            continue
        if value == theta:
            marked = len(rows)
        recall, density = results.recall[at], float(results.density[at].mean())
        found = _estimate(results, at, rates)
        rows.append(
            (
                f"{value:g}",
                f"{float(recall.mean()):.3f}",
                f"{float(results.p10[at].mean()):.3f}",
                f"{float(recall.min()):.3f}",
                f"{density:.3f}",
                f"{1 / (density + choosing):.2f}×",
                f"{found.attention_speedup:.2f}×",
                f"{found.prefill_speedup:.2f}×",
            )
        )
    heads = (
        "θ", "recall", "10th pct", "worst head", "density",
        "fewer FLOP", "attention", "prefill",
    )  # fmt: skip
    return html_table(heads, rows, marked)


def calibration_table(results: Results, target: float, theta: float) -> str:
    """One θ for all heads against one for each, at the same target."""
    at, per_head = results.thetas.index(theta), calibration(results, target)
    reached, density = (
        [value for row in table.values() for value in row]
        for table in (per_head.reached, per_head.density)
    )
    values = sorted({value for row in per_head.thetas.values() for value in row})
    rows = (
        (
            f"θ = {theta:g} for all heads",
            f"{float(results.recall[at].mean()):.3f}",
            f"{float(results.recall[at].min()):.3f}",
            f"{float(results.density[at].mean()):.3f}",
        ),
        (
            f"θ by head, {values[0]:g} to {values[-1]:g}",
            f"{sum(reached) / len(reached):.3f}",
            f"{min(reached):.3f}",
            f"{sum(density) / len(density):.3f}",
        ),
    )
    return html_table(("threshold", "recall", "worst head", "density"), rows, words=(0,))


def heads_table(rows: Sequence[dict], most: int = 4) -> str:
    """The sparsest heads, then the least sparse ones."""
    shown = rows if len(rows) <= 2 * most else [*rows[:most], *rows[-most:]]
    return html_table(
        ("layer", "head", "density", "recall", "10th pct", "worst row"),
        (
            (
                str(row["layer"]),
                str(row["head"]),
                f"{row['density']:.3f}",
                f"{row['recall']:.3f}",
                f"{row['p10']:.3f}",
                f"{row['least']:.3f}",
            )
            for row in shown
        ),
    )


def far_keys_table(rows: Sequence[dict], kept: set[int]) -> str:
    """Keys far away that matter, in their words; those that the method keeps are marked so."""
    return html_table(
        ("key", "in its words", "mass", "kept", "asked by", "weight"),
        (
            (
                str(row["key"]),
                f"{escape(row['before'])}<mark>{escape(row['word'])}</mark>{escape(row['after'])}",
                f"{row['mass']:.4%}",
                "stripe" if row["key"] in kept else "–",
                f"{escape(row['asked by'])}",
                f"{row['weight']:.3f}",
            )
            for row in rows
        ),
        words=(1, 4),
    )


def settings_table(results: Results, rates: Rates) -> str:
    """What was run, and which rates the estimate takes."""
    settings, about = results.settings, results.about
    found = [
        ("model", f"{settings['model']} ({about['class']}, {about['parameters'] / 1e6:,.0f} M)"),
        ("text", f"{settings['text']}, SHA-256 of its tokens {settings['text_sha256'][:12]}…"),
        ("tokens", f"{settings['length']:,}"),
        ("weights", settings["dtype"]),
        (
            "measured",
            f"{len(results.layers)} of {about['layers']} layers, {len(results.heads)} of "
            f"{about['heads']} heads, θ from {results.thetas[0]:g} to {results.thetas[-1]:g}",
        ),
        *(
            (f"layer {layer}", f"not measured, not in the estimate: {why}")
            for layer, why in results.skipped.items()
        ),
        (
            "estimate for",
            f"{rates.device}, measured {rates.date}: dense {rates.dense:.0f} TFLOP/s, stages "
            f"{rates.stage1:.0f}, {rates.stage2:.0f} and {rates.stage3:.0f}, matrix product "
            f"{rates.matrix:.0f}; overhead {rates.overhead_ms:.1f} ms a call",
        ),
    ]
    return html_table(
        ("", ""), ((escape(name), escape(value)) for name, value in found), words=(0, 1)
    )


def _estimate(results: Results, at: int, rates: Rates) -> Estimate:
    """Of the whole model, as if the heads not looked at were like those that were.

    Layers that could not be measured are left out of attention: a sliding window costs the same
    with both.
    """
    layers = results.about["layers"] - len(results.skipped)
    return estimate(
        results.density[at].mean().expand(layers, results.about["heads"]),
        results.n,
        results.head_dim,
        results.about["linear_parameters"],
        rates,
    )
