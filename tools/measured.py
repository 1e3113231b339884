"""Tables of docs/measured.md: layers of a real model, long inputs, a CPU, the bundled model.

layers     from results/lengths: a real language model's pairs and times
lost       from results/losses: what its predictions lose, by text
speed      from results/attention, up to a million tokens, on two devices
reference  from results/reference: PyTorch on a CPU
choice     from results/compare and results/retrieval: what methods keep of the bundled model, and
           which answers it loses
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import pandas

from anchor_lab.experiments import page
from anchor_lab.experiments.attention.cells import (
    by_inputs,
    by_length,
    crossing,
    is_ok,
    median_ms,
)
from anchor_lab.experiments.compare.equal import at_equal, budget_for, mean_curves
from anchor_lab.experiments.lengths import prefills
from anchor_lab.experiments.lengths.figure import data_heads, data_times
from anchor_lab.experiments.losses import figure as losses
from anchor_lab.experiments.losses.measure import DENSE, GOALS, row_of, theta_label
from anchor_lab.experiments.losses.tokens import CLASSES, NEW
from anchor_lab.experiments.retrieval.figure import data_answers
from anchor_models.backend import TAIL
from anchor_ref import AnchorConfig
from tools.standing import OURS, ranked

SHOWN = (16_384, 32_768, 131_072, 1_048_576)  # lengths in the table of speeds
METHODS = {  # of the table of choices
    "AnchorAttention": "AnchorAttention",
    "VerticalSlash": "vertical-slash (MInference)",
    "FlexPrefill": "FlexPrefill",
    "XAttention": "XAttention",
    "SpargeAttention": "SpargeAttn's selection",
    "FlashPrefill": "FlashPrefill",
    "StreamingLLM": "StreamingLLM",
    "StripeOracle": "*oracle: stripes by their true mass, one share for all heads*",
}
HALF, RECALL, ASKED_TOKENS = 0.5, 0.95, 8192
FILLS = 0.05  # of recall: who loses more to whole tiles is named
THETA = AnchorConfig().theta
render = partial(page.render, folder=Path(__file__).parent)


def lost(files: Sequence[dict]) -> str:
    """What AnchorAttention loses, a row for each text.

    Args:
        files: of `python -m anchor_lab losses`, the published θ among what they hold.
    """
    table = []
    files = sorted(files, key=lambda one: one["settings"]["tokens"])
    tokens = list(dict.fromkeys(one["settings"]["tokens"] for one in files))
    for one in files:
        rows = one["rows"]
        length = f", {page.spaced(one['settings']['tokens'])} tokens" if len(tokens) > 1 else ""
        ours = {theta: losses.data_lost(row_of(rows, OURS, theta_label(theta))) for theta in GOALS}
        order, counts = ranked(rows), row_of(rows, DENSE, "default")["counts"]
        for text in one["settings"]["texts"]:
            new = counts[text][CLASSES.index(NEW)] / sum(counts[text])
            table.append(
                (
                    losses.in_words([text]) + length,
                    page.percent(1 - new),
                    " / ".join(page.percent(x.density) for x in ours.values()),
                    " / ".join(page.digits(x.by_text[text], 3) for x in ours.values()),
                    f"number {order.index(OURS) + 1} of {len(order)}",
                )
            )
    return render(
        "lost.md.j2",
        rows=table,
        tokens=[page.spaced(n) for n in tokens],
        thetas=" / ".join(f"{theta:g}" for theta in GOALS),
        group=AnchorConfig().group_size,
    )


def layers(results: dict) -> str:
    """What a real language model's heads keep, and how long a layer's attention takes.

    Args:
        results: of `python -m anchor_lab lengths`.
    """
    rows, settings = results["rows"], results["settings"]
    heads = data_heads(rows, settings["thetas"])
    times = {
        n: {way: median(ways[way]["layers_ms"]) for way in (prefills.OURS, prefills.CUDNN)}
        for n, ways in data_times(rows).items()
        if {prefills.OURS, prefills.CUDNN} <= ways.keys() and n in heads
    }
    return render(
        "layers.md.j2",
        rows=[
            (
                page.spaced(n),
                page.percent(heads[n]["thetas"][THETA]["density"]),
                page.digits(heads[n]["thetas"][THETA]["recall"], 3),
                *(f"{page.number(ms)} ms" for ms in found.values()),
                f"{found[prefills.CUDNN] / found[prefills.OURS]:.2f}",
            )
            for n, found in times.items()
        ],
        texts=next(iter(heads.values()))["texts"],
        settings=settings,
        theta=THETA,
        tail=TAIL,
    )


def speed(results: dict, other: dict) -> str:
    """Times beside those of dense attention, on what, and from which length on it pays.

    Args:
        results: of `python -m anchor_lab attention`, whose times are shown.
        other: the same of another device, for its length alone.
    """
    rows = []
    for n, row in by_length(by_inputs(results)).items():
        if n in SHOWN and is_ok(row, "anchor"):
            ours, cudnn, flash = (
                median_ms(row[method]) if is_ok(row, method) else None
                for method in ("anchor", "sdpa-cudnn", "sdpa-flash")
            )
            times = ("–" if ms is None else f"{page.number(ms)} ms" for ms in (ours, cudnn, flash))
            ratio = page.digits(cudnn and cudnn / ours, 1)
            rows.append((page.spaced(n), page.percent(row["anchor"]["kept"]), *times, ratio))
    one_run(other)
    return render(
        "speed.md.j2",
        rows=rows,
        run=results["settings"] | one_run(results),
        even=_even(results),
        other_device=other["settings"]["device"],
        other_kernels=other["settings"]["kernels"],
        other_even=_even(other),
        **_own(results),
    )


def _own(results: dict) -> dict:
    """How the kernels fare on a model's own activations, layer by layer."""
    own = {
        where: row
        for where, row in by_inputs(results).items()
        if where[0] != "planted" and is_ok(row, "anchor", "sdpa-cudnn")
    }
    kept = [row["anchor"]["kept"] for row in own.values()]
    return {
        "theta": THETA,
        "layers": len(own),
        "least": min(kept, default=None),
        "most": max(kept, default=None),
        "slower": sum(
            median_ms(row["anchor"]) > median_ms(row["sdpa-cudnn"]) for row in own.values()
        ),
        "lengths": [page.spaced(n) for n in sorted({n for _, _, n, _ in own})],
    }


def one_run(results: dict) -> dict:
    """The run that the project's own times are of: one for all lengths.

    Raises:
        ValueError: they are of several.
    """
    runs = {row["anchor"]["run"] for row in by_length(by_inputs(results)).values()}
    if len(runs) != 1:
        raise ValueError(f"lengths must be of one run, got runs {sorted(runs)}")
    return results["runs"][runs.pop()]


def _even(results: dict) -> str:
    """The length from which on cuDNN takes longer, to two digits of hundreds."""
    return page.spaced(round(crossing(by_inputs(results), "sdpa-cudnn")[0], -2))


def choice(table: pandas.DataFrame, asked: Sequence[dict]) -> str:
    """What methods keep at one density, what a recall costs them, and the answers they lose.

    Args:
        table: the rows of results/compare/compare.csv.gz.
        asked: those of results/retrieval/retrieval.json.
    """
    curves = mean_curves(table[table["text"] == "document"])
    recall = at_equal(curves, "density", HALF)
    density = budget_for(curves, "density", RECALL)
    found = data_answers(asked)[ASKED_TOKENS]
    multiplied = at_equal(curves, "executed_density", HALF)
    rows, less = [], {name: float(recall[name] - multiplied[name]) for name in METHODS}
    scattered = [name for name in METHODS if less[name] > FILLS]
    rest = [less[name] for name in METHODS if less[name] <= FILLS]
    for name, title in METHODS.items():
        share, low, high = (100 * x for x in found[name][HALF][:3])
        right = f"{share:.0f} % ({low:.0f}–{high:.0f})"
        rows.append((title, recall[name], density[name], right))
    return render(
        "choice.md.j2",
        rows=rows,
        level=RECALL,
        asked=page.spaced(ASKED_TOKENS),
        dense=found["Dense"][None].share,
        bare=found["AnchorAttention, θ = −∞"][None].share,
        tiles=[(METHODS[name], recall[name], multiplied[name]) for name in scattered],
        rest=(min(rest), max(rest)),
    )


def reference(results: dict) -> str:
    """What the reference takes on a CPU, of dense attention's time.

    Args:
        results: of `python -m anchor_lab reference`.
    """
    rows = [(page.spaced(row["n"]), row["ratio"]) for row in results["rows"]]
    return render("reference.md.j2", rows=rows, run=results["runs"][-1])
