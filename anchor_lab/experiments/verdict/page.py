"""Who is ahead where on a real language model, and which of the paper's claims hold here?

    python -m anchor_lab verdict    writes verdict.md and .png from the results that lie beside it

Measures nothing: every number is of the experiments losses, rivals, answers, lengths, side_by_side
and crossover, read from their files. What is not there is said to be missing. Times of methods
without a kernel here are modelled, and marked so.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from anchor_lab.experiments import store
from anchor_lab.experiments.answers.counts import MARGIN, Counts, shown, together
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.losses.finished import comparable
from anchor_lab.experiments.losses.page import unread
from anchor_lab.experiments.page import digits, number, percent, render, spaced
from anchor_lab.experiments.rivals.figure import RECALLS
from anchor_lab.experiments.rivals.measure import TEXT_COLUMNS
from anchor_lab.experiments.rivals.page import kind_of, published
from anchor_lab.experiments.side_by_side.page import input_tables
from anchor_lab.experiments.verdict import ahead, claims, figure, words
from anchor_lab.experiments.verdict.ahead import LENGTHS, LEVELS, LONG, LOSSES, Ranking, Value
from anchor_lab.experiments.verdict.asked import Way, asked_at, cells_at, comparisons
from anchor_lab.experiments.verdict.missing import missing, no_line, not_asked
from anchor_lab.experiments.verdict.times import WORDS, Clock, Kind, Time, equal_recall, timed_rows
from anchor_lab.methods import METHODS
from anchor_models.backend import TAIL

MADE_FOR = "columns and blocks"  # of the experiment side_by_side, a file of its own
SOURCES = {
    "losses": "losses/losses.json",
    LONG: "losses/long.json",
    "rivals": "rivals/rivals.csv.gz",
    "answers": "answers/answers.json",
    "lengths": "lengths/lengths.json",
    "side_by_side": "side_by_side/side_by_side.json",
    "crossover": "crossover/crossover.json",
    MADE_FOR: "side_by_side/made_for.json",
}
PAPER, DEFAULT = "tail 0", f"tail {TAIL}"  # ways of answers: as published, as in models
UNREAD = " Read so long, the model gains nothing from far tokens on the whole, see below."
SIGNS = {Kind.MEASURED: "", Kind.CHOICE_MODELLED: " c", Kind.MODELLED: " m", Kind.DRAWN_OUT: " x"}


def gather(out: Path) -> dict:
    """Results of each of `SOURCES` by name, those that are there; of losses what is comparable.

    Args:
        out: the page, in a folder beside theirs.
    """
    found = store.read_beside(out, SOURCES, TEXT_COLUMNS)
    found |= {name: comparable(found[name]) for name in LOSSES if name in found}
    return {name: one for name, one in found.items() if one is not None}


def measure(options: argparse.Namespace) -> int:
    """Nothing is measured; 2 with a line on stderr where there is nothing to read."""
    if not {*LOSSES, "rivals"} & gather(options.out).keys():
        print(
            "python -m anchor_lab losses or rivals must come first: there is nothing to compare",
            file=sys.stderr,
        )
        return 2
    return 0


def page(results: dict, path: Path) -> str:
    """The verdict as Markdown."""
    return render("verdict/page.md.j2", picture=f"{path.stem}.png", **values(results))


def values(results: dict) -> dict:
    """What the template is filled with."""
    clocks = ahead.clocks_of(results)
    lengths = [of_length(results, n, clock) for n, clock in clocks.items()]
    asked = [one for one in lengths if one["compared"]] or lengths[:1]
    sentence = words.of_answers(
        asked[0]["asked"] or LENGTHS[0], asked[0]["compared"], PAPER, DEFAULT
    )
    few = [words.too_few(one["asked"], one["too_few"]) for one in lengths if one["too_few"]]
    return {
        "sources": [
            f"[{name}](../{file.split('.')[0]}.md)"
            for name, file in SOURCES.items()
            if name in results
        ],
        "devices": sorted({x["settings"].get("device", "?") for x in results.values()}),
        "missing": missing(results, lengths, SOURCES),
        "sentences": [
            *(f"{one['sentence']}{UNREAD if one['gains_nothing'] else ''}" for one in lengths),
            " ".join([*([sentence] if asked[0]["compared"] or not few else []), *few]),
        ],
        "claims": [list(astuple(one)) for one in claims.all_claims(results, clocks)],
        "paper": claims.PAPER,
        "recalls": [f"{recall:g}" for recall in RECALLS],
        "signs": [f"*{SIGNS[kind].strip()}* {said}" for kind, said in WORDS.items() if kind],
        "header": [
            *("method", "kind"),
            *(f"{budget} {percent(level)}" for budget in ("time", "cost") for level in LEVELS),
        ],
        "margin": f"{100 * MARGIN:g}",
        "tail": TAIL,
        "lengths": lengths,
        "made_for": input_tables(results.get(MADE_FOR, {"rows": []})["rows"]),
    }


def of_length(results: dict, n: int, clock: Clock | None) -> dict:
    """Everything about one length."""
    loss_lines, recall_lines = ahead.lines_of(results, n)
    losses, recalls = ahead.rankings(loss_lines, recall_lines, clock)
    asked = results.get("answers", {"rows": []})["rows"]
    worse, all_worse = unread_at(results, n)
    compared = comparisons(asked, n, [*loss_lines, *recall_lines], clock)
    dense = None if clock is None else min(clock.dense.values())
    dense_found = {cell: x["dense"] for cell, x in cells_at(asked, n).items()}
    too_few = dense_alone(list(dense_found.values()))
    at_recall = equal_recall(results.get("side_by_side"), clock, n)
    return {
        "n": spaced(n),
        "asked": asked_at(asked, n),
        "compared": compared,
        "answered": bool(compared) or too_few is not None,
        "too_few": too_few,
        "few": [
            [task, placement, shown(one.dense, one.prompts)]
            for (_, task, placement), one in dense_found.items()
            if not compared and not one.says_something
        ],
        "sentence": words.of_length(n, losses, recalls, at_recall, published(METHODS), dense),
        "by_recall": words.by_recall(n, recalls, dense) if losses and recalls else None,
        "clock": None if clock is None else about_times(clock),
        "losses": table_of(losses, 4),
        "recalls": table_of(recalls, 3),
        "lacking": {
            "losses": no_line(loss_lines),
            "recalls": no_line(recall_lines),
            "answers": not_asked(asked, n),
        },
        "ours": ours_by_theta(loss_lines, clock) if loss_lines else [],
        "looked_at": looked_at(results.get("side_by_side"), n),
        "equal_recall": [
            [recall, name, number(ms), percent(ms / clock.dense_ms), how_known(name)]
            for recall, times in at_recall.items()
            for name, ms in times.items()
        ],
        "answers": [
            {
                "asked": one.asked,
                "ways": len(one.ways),
                "dense": shown(one.dense.dense, one.dense.prompts),
                "lines": [answers_line(way, clock) for way in one.ways],
            }
            for one in compared
        ],
        "worse": worse,
        "gains_nothing": bool(losses) and all_worse,
    }


def unread_at(results: dict, n: int) -> tuple[list[str], bool]:
    """Texts of the losses of one length that are read worse at once than in pieces; if all are."""
    for one in ahead.losses_of(results):
        if one["settings"]["tokens"] == n:
            texts = unread(one["settings"], results.get("lengths"))
            return texts, bool(texts) and len(texts) == len(one["settings"]["texts"])
    return [], False


def answers_line(way: Way, clock: Clock | None) -> list[str]:
    """A way, what it finds, and what it costs."""
    return [
        way.label,
        shown(way.counts.ours, way.counts.prompts),
        "yes" if way.counts.keeps() else "**no**",
        "–" if way.total_cost is None else percent(way.total_cost),
        *time_cells(way.time, clock),
    ]


def dense_alone(found: Sequence[Counts]) -> Counts | None:
    """All that dense attention was asked at one length, where it finds too few everywhere."""
    if not found or any(one.says_something for one in found):
        return None
    return together(found)


def looked_at(side_by_side: dict | None, n: int) -> list[str]:
    """Heads or layers that were timed at equal recall."""
    rows = timed_rows(side_by_side, n)
    return list(dict.fromkeys(row["source"] for row in rows if row["part"] == "recall"))


def how_known(name: str) -> str:
    """Of a time at equal recall."""
    return WORDS[Kind.MEASURED if name == OURS else Kind.CHOICE_MODELLED]


def time_cells(time: Time | None, clock: Clock | None) -> list[str]:
    """Milliseconds, share of cuDNN's, and how it is known."""
    if time is None or clock is None:
        return ["–", "–", "not known"]
    return [number(time.share * clock.dense_ms), percent(time.share), WORDS[time.kind]]


def table_of(rankings: Sequence[Ranking], decimals: int) -> list[list[str]]:
    """A row for each method, a column for each level of each budget; those first that are best
    where most can be spent."""
    if not rankings:
        return []
    order = dict.fromkeys(name for one in rankings[::-1] for name in one.found)

    def cell(value: Value | None) -> str:
        if value is None:
            return "–"
        sign = "" if value.kind is None else SIGNS[value.kind]
        return f"{digits(value.value, decimals)}{sign}".replace("-", "−")

    return [
        [name, kind_of(name), *(cell(one.found.get(name)) for one in rankings)] for name in order
    ]


def ours_by_theta(lines: Sequence[dict], clock: Clock | None) -> list[list[str]]:
    """AnchorAttention where whole models were read: θ, pairs, loss, time, and by the model what
    its tiles would take in the block-sparse kernel."""
    found = []
    for line in sorted((x for x in lines if x["method"] == OURS), key=lambda x: x["density"]):
        loss = ahead.loss_of(line)
        model = None
        if clock is not None and clock.line is not None:
            scored = line["total_cost"] - line["executed_density"]
            model = clock.line.at(line["executed_density"]).share + scored
        found.append(
            [
                line["configuration"],
                percent(line["density"]),
                percent(line["total_cost"]),
                f"{loss.value:.4f} ({loss.low:.4f} to {loss.high:.4f})",
                *time_cells(ahead.time_of(line, clock), clock)[:2],
                "–" if model is None else percent(model),
            ]
        )
    return found


def about_times(clock: Clock) -> dict:
    """What the page says about the times of one length."""
    line = clock.line
    best = min(clock.dense, key=clock.dense.__getitem__)
    near = [
        abs(own.share / time - 1)
        for density, time in clock.checked
        if (own := clock.of_ours(density)) is not None
    ]
    kept = [share for share, _ in clock.ours.get(0, [])]
    return {
        "dense_ms": number(clock.dense_ms),
        "best": best,
        "best_ms": number(clock.dense[best] * clock.dense_ms),
        "best_share": percent(clock.dense[best]),
        "kept": [percent(share) for share in (kept[0], kept[-1])] if kept else None,
        "near": percent(max(near)) if near else None,
        "calls": len(near),
        "line": None
        if line is None
        else {
            "start": digits(line.start, 3),
            "rate": digits(line.rate, 3),
            "runs": line.runs,
            "from": percent(line.lowest),
            "to": percent(line.highest),
            "error": percent(line.error),
            "worst": percent(line.worst),
            "missed": clock.missed,
        },
    }


EXPERIMENT = Experiment(
    name="verdict",
    about=__doc__,
    measure=measure,
    page=page,
    file="verdict/verdict.md",
    draw=figure.draw,
    read=gather,
)
