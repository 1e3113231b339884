"""The report's numbers as HTML: cards, tables, words in their context."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from anchor_lab.report.far_keys import FarKey
from anchor_lab.report.forecast import (
    ASSUMED,
    attention_alone,
    forecast,
    prefill_speedup,
    rounded,
)
from anchor_lab.report.inspected import InspectedHeads, calibration
from anchor_models.backend import TAIL
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import identification_cost


@cache
def _templates():
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return found.get_template("tables.html.j2").module


def html_table(
    heads: Sequence[str], rows: Iterable[Sequence], marked: int = -1, words: Sequence[int] = ()
) -> str:
    """A table; row `marked` stands out, columns `words` are text.

    Args:
        heads: of the columns; no line for them if all are empty.
        rows: cells of each; a float is shown with three decimals, `Markup` as it is.
    """
    return str(_templates().table(heads, rows, marked, words))


def forecasts(found: InspectedHeads, theta: float, costs: Sequence[dict]) -> str:
    """What to do, first on the device asked about, then on others: in words, and by length.

    Args:
        found: of a model.
        theta: one that was measured.
        costs: coefficients of each device, see `forecast.forecast`.
    """
    from markupsafe import Markup

    shown = []
    for values in costs:
        told = forecast(found, theta, values)
        rows = [
            (
                f"{x.tokens:,}{'' if x.measured else ' *'}",
                x.density,
                f"{x.expected.anchor:.3g}",
                f"{x.expected.dense:.3g}",
                f"{x.expected.speedup:.2f}×",
                "faster" if x.expected.gain else "slower" if x.expected.speedup < 1 else "even",
            )
            for x in told.table
        ]
        heads = ("tokens", "density", "ms a layer", "sdpa, ms", "speed", "")
        here = [x.tokens for x in told.table].index(found.n)
        table = Markup(html_table(heads, rows, here, words=(5,)))
        shown.append((told.device, str(told), told.reasons(), table))
    return str(_templates().forecasts(shown, ASSUMED))


def cards(found: InspectedHeads, theta: float, target: float, values: dict) -> str:
    """The numbers at the θ shown: recall, density beside its floor, expected speed."""
    at = found.thetas.index(theta)
    expected = forecast(found, theta, attention_alone(values)).here.expected
    reached = float(found.recall[at].mean())
    shown = [
        (f"{theta:g}", "θ shown here" if reached >= target else f"θ, short of {target:g}"),
        (f"{reached:.3f}", "recall beyond the first group, mean over heads"),
        (rounded(float(found.density[at].mean())), "density: pairs computed"),
        (rounded(found.floor), "its floor: first group and windows, with any θ"),
        (f"{expected.speedup:.2f}×", f"attention on {values['device']}, expected"),
    ]
    if (whole := prefill_speedup(found, expected, values)) is not None:
        shown.append((f"{whole:.2f}×", "whole prefill there, expected"))
    return str(_templates().cards(shown))


def theta_table(found: InspectedHeads, theta: float, values: dict) -> str:
    """Recall, density and expected speed at every second θ measured, and at `theta`."""
    choosing = float(identification_cost(AnchorConfig(), found.n, found.n))
    shown = [at for at, value in enumerate(found.thetas) if at % 2 == 0 or value == theta]
    rows = []
    for at in shown:
        recall, density = found.recall[at], float(found.density[at].mean())
        speed = forecast(found, found.thetas[at], attention_alone(values)).here.expected.speedup
        means = (recall.mean(), found.p10[at].mean(), recall.min())
        gains = (f"{1 / (density + choosing):.2f}×", f"{speed:.2f}×")
        rows.append((f"{found.thetas[at]:g}", *map(float, means), density, found.floor, *gains))
    heads = (
        "θ", "recall beyond", "10th pct", "worst head", "density", "its floor",
        "fewer FLOP", "attention",
    )  # fmt: skip
    return html_table(heads, rows, shown.index(found.thetas.index(theta)))


def calibration_table(found: InspectedHeads, target: float, theta: float) -> str:
    """One θ for all heads against one for each, at the same target."""
    at, per_head = found.thetas.index(theta), calibration(found, target)
    values, reached, density = (
        [value for row in table.values() for value in row]
        for table in (per_head.thetas, per_head.reached, per_head.density)
    )
    one = (found.recall[at].mean(), found.recall[at].min(), found.density[at].mean())
    rows = (
        (f"θ = {theta:g} for all heads", *map(float, one)),
        (
            f"θ by head, {min(values):g} to {max(values):g}",
            sum(reached) / len(reached),
            min(reached),
            sum(density) / len(density),
        ),
    )
    return html_table(("threshold", "recall beyond", "worst head", "density"), rows, words=(0,))


def lost(said: Sequence[tuple[str, bool]], answers: Sequence[Sequence[str]]) -> str:
    """What predictions and answers lose, in words, and the answers by task.

    Args:
        said: sentences, each with whether it advises against use, which makes it bold.
        answers: found with dense attention and with AnchorAttention, by task; may be none.
    """
    from markupsafe import Markup

    heads = ("task", "question", "dense", "AnchorAttention", "lost", "won", "")
    table = html_table(heads, answers, words=(0, 1, 6)) if answers else ""
    return str(_templates().lost(said, Markup(table)))


def heads_table(rows: Sequence[dict]) -> str:
    """The four sparsest heads, then the four least sparse ones."""
    shown = rows if len(rows) <= 8 else [*rows[:4], *rows[-4:]]
    names = {"layer": "layer", "head": "head", "density": "density", "recall": "recall"}
    names |= {"p10": "10th pct", "least": "worst row"}
    return html_table(list(names.values()), ([row[name] for name in names] for row in shown))


def far_keys_table(
    far: Sequence[FarKey], words: Sequence[str], kept: set[int], reach: int = 4
) -> str:
    """Keys far away that matter, with the words around them; those that the method keeps marked.

    Args:
        far: from `strongest_far_keys`.
        words: text of every token.
        kept: the group's stripes.
        reach: tokens shown to each side of a key, and before the query that asks hardest.
    """
    from markupsafe import Markup

    def span(start: int, stop: int) -> str:
        return "".join(words[max(0, start) : stop]).replace("\n", "⏎")

    rows = (
        (
            x.key,
            Markup("{}<mark>{}</mark>{}").format(
                span(x.key - reach, x.key),
                span(x.key, x.key + 1),
                span(x.key + 1, x.key + reach + 1),
            ),
            f"{100 * x.mass:.4f} %",
            "stripe" if x.key in kept else "–",
            span(x.query - reach, x.query + 1),
            x.weight,
        )
        for x in far
    )
    heads = ("key", "in its words", "mass", "kept", "asked by", "weight")
    return html_table(heads, rows, words=(1, 4))


def settings_table(found: InspectedHeads, costs: Sequence[dict]) -> str:
    """What was run, and how sure the expected times are."""
    settings, model = found.settings, found.model
    rows = [
        ("model", f"{settings['model']} ({model['class']}, {model['parameters'] / 1e6:,.0f} M)"),
        ("text", f"{settings['text']}, SHA-256 of its tokens {settings['text_sha256'][:12]}…"),
        ("tokens", f"{found.n:,}"),
        ("weights", settings["dtype"]),
        (
            "measured",
            f"{len(found.layers)} of {model['layers']} layers, {len(found.heads)} of "
            f"{model['heads']} heads, θ from {found.thetas[0]:g} to {found.thetas[-1]:g}",
        ),
        *(
            (f"layer {layer}", f"not measured, on neither side of a prefill: {why}")
            for layer, why in found.skipped.items()
        ),
        *((f"times on {values['device']}", _how_sure(values)) for values in costs),
    ]
    return html_table(("", ""), rows, words=(0, 1))


def _how_sure(values: dict) -> str:
    made = values.get("kernels")
    told = "measured before by crossover" if made else "measured for this page, in float32 or bf16"
    error = values.get("error")
    told += "" if error is None else f"; a side's time may be off by {rounded(error)}"
    return (
        f"{told}; a gain must be larger than {rounded(values['margin'])}; with a tail of {TAIL} "
        "rows, which nothing else here has"
    )
