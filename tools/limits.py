"""Numbers of docs/limits.md, and what answers lose by length, which a how-to says too.

asked      how many answers README counts, and how many where prefills gain
losing     what texts lose
asking     what asking costs
small      what the bundled model loses
by_length  answers lost with a tail, for docs/how-to/bring_answers_back.md
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from anchor_lab.experiments import page
from anchor_lab.experiments.advice import facts
from anchor_lab.experiments.answers.course import DEFAULT, data_asked
from anchor_lab.experiments.answers.measure import TAILS
from anchor_lab.experiments.answers.page import data_cells, data_telling
from anchor_lab.experiments.crossover.figure import data_prefills, data_ratios, over_sdpa
from anchor_lab.experiments.crossover.rule import of_prefill, share_kept
from anchor_lab.experiments.crossover.share import data_dense
from anchor_lab.experiments.lengths.figure import data_heads
from anchor_lab.experiments.losses.measure import TEXTS
from anchor_lab.experiments.model.page import of_heads
from anchor_lab.experiments.retrieval.figure import data_answers
from anchor_lab.experiments.smollm2.page import answers as numbers
from anchor_models.backend import TAIL
from anchor_ref import AnchorConfig
from tools.standing import OURS as METHOD
from tools.standing import data_others, data_standing

THETA = AnchorConfig().theta
TOKENS = 8192  # of the prompts that ask
AIMS = {32_768: 2.0, 65_536: 3.0}  # how many times as fast a whole prefill was to be
NEVER_SLOWER = 1.03  # of sdpa's time, that no prefill was to take more than
OURS, BARE = f"AnchorAttention, θ = {THETA:g}", "AnchorAttention, θ = −∞"
EVERY, BUT_RETRIEVAL, SMALL_BLOCKS = (
    "every head",
    "all but the retrieval heads",
    "every head, blocks of 8",
)
render = partial(page.render, folder=Path(__file__).parent)


def asked(smollm2: dict, answers: dict, crossover: dict) -> str:
    """How many prompts README's answers are of, and what was asked where prefills gain.

    Args:
        smollm2, answers, crossover: of the experiments of these names.
    """
    rows, faster = answers["rows"], facts.faster_from(facts.prefills(crossover["rows"]))
    found = numbers(smollm2["rows"])
    longest, _, _ = found[-1]  # README has no shorter ones of several kinds
    counts = data_asked(rows)
    return render(
        "asked.md.j2",
        few=" or ".join(str(count) for count in sorted({count for _, count, _ in found})),
        asked=[(page.spaced(n), x.prompts) for n, x in counts.items() if n >= longest],
        faster=None if faster is None else page.spaced(faster),
        gaining=[
            (
                page.spaced(n),
                counts[n].prompts,
                kinds_asked(rows, n),
                counts[n].dense,
                counts[n].ours,
            )
            for n in facts.gaining(list(counts), faster)
        ],
    )


def kinds_asked(rows: Sequence[dict], n: int) -> list[str]:
    """Task and place of the cells that were asked at a length with the tail of models.

    Args:
        rows: of `python -m anchor_lab answers`.
        n: tokens.
    """
    return [
        f"{task}, {placement}"
        for (length, task, placement), found in data_telling(data_cells(rows)).items()
        if length == n and DEFAULT in found
    ]


def by_length(answers: dict) -> str:
    """Answers that dense attention finds and that are lost, with the tail of models and a longer.

    Args:
        answers: of `python -m anchor_lab answers`.
    """
    longest = max(TAILS)
    told, longer = (
        [
            (page.spaced(n), x.lost, x.dense)
            for n, x in data_asked(answers["rows"], f"tail {tail}").items()
        ]
        for tail in (TAIL, longest)
    )
    return render(
        "by_length.md.j2",
        tail=TAIL,
        losses=told,
        longest=longest,
        longer=longer,
    )


def losing(files: Sequence[dict], table: dict, lengths: dict) -> str:
    """What is lost of texts that repeat themselves, and of others: longer, or brought.

    Args:
        files, table: as in `data_standing`.
        lengths: of `python -m anchor_lab lengths`.
    """
    found = data_standing(files, table)
    return render(
        "losing.md.j2",
        texts=TEXTS,
        lost=found.page,
        theta=THETA,
        usual=page.digits(found.lost[THETA][METHOD].mean, 3),
        others=[one.page for one in data_others(files, found.n, lengths)],
    )


def asking(crossover: dict) -> str:
    """What `when="auto"` adds to prefills that it leaves dense.

    Args:
        crossover: of `python -m anchor_lab crossover`.

    Raises:
        ValueError: it left none dense.
    """
    found = _asking(crossover["rows"])
    if not found:
        raise ValueError('crossover must hold a prefill that when="auto" left dense, got none')
    return render(
        "asking.md.j2",
        device=crossover["settings"]["device"],
        most=page.percent(max(found)[0]),
        lengths=[page.spaced(f(n for _, n in found)) for f in (min, max)],
    )


def _asking(rows: Sequence[dict]) -> list[tuple[float, int]]:
    """What `when="auto"` adds to each prefill that it leaves dense, and its length."""
    return [
        (over_sdpa(ways, "auto") - 1, n)
        for by_length in data_prefills(rows).values()
        for n, ways in by_length.items()
        if {"auto", "sdpa"} <= ways.keys() and ways["auto"]["sparse_layers"] == 0
    ]


def reach(crossover: dict, lengths: dict) -> str:
    """How much faster whole prefills of the real model were to be, are, and could be.

    Could: were choosing and starting free, and a pair that is kept no dearer than one of dense
    attention. Its heads keep what `lengths` found, and the tail's rows everything.

    Args:
        crossover: of `python -m anchor_lab crossover`.
        lengths: of `python -m anchor_lab lengths`.

    Raises:
        ValueError: a length of `AIMS` was not measured.
    """
    dense = data_dense(crossover["rows"])["smollm2"]
    ratios = data_ratios(data_prefills(crossover["rows"])["smollm2"], "always")
    heads = data_heads(lengths["rows"], lengths["settings"]["thetas"])
    if missing := AIMS.keys() - (dense.keys() & ratios.keys() & heads.keys()):
        raise ValueError(f"lengths must be measured, got none of {sorted(missing)}")
    found = []
    for n, aim in AIMS.items():
        tail = share_kept(n, 0.0, TAIL) - share_kept(n, 0.0)
        kept = min(1.0, heads[n]["thetas"][THETA]["density"] + tail)
        share = dense[n]["share"]
        times = (aim, 1 / ratios[n], 1 / of_prefill(share, kept))
        shares = (page.percent(x) for x in (share, kept))
        found.append((page.spaced(n), *shares, *(page.digits(x, 2) for x in times)))
    return render(
        "reach.md.j2",
        rows=found,
        theta=THETA,
        most=NEVER_SLOWER,
        worst=page.digits(1 + max(_asking(crossover["rows"]))[0], 3),
        device=crossover["settings"]["device"],
    )


def small(evaluation: dict, written: Sequence[dict], asked: Sequence[dict]) -> str:
    """What the bundled model keeps, and the facts that it loses without a tail.

    Args:
        evaluation: results/model/evaluation.json.
        written, asked: rows of results/retrieval/written.json and retrieval.json.
    """
    rows = evaluation["rows"]
    longest = max(row["length"] for row in rows if row["part"] == "heads")
    heads = of_heads([x for x in rows if x["part"] == "heads" and x["length"] == longest])
    causes = {row["sparse"]: row for row in rows if row["part"] == "causes"}
    prose = next(x for x in written if (x["length"], x["theta"]) == (TOKENS, str(THETA)))
    tasks = data_answers(asked)[TOKENS]
    return render(
        "small.md.j2",
        theta=THETA,
        heads=heads,
        longest=page.spaced(longest),
        tokens=page.spaced(TOKENS),
        books=causes[EVERY],
        dense=causes[BUT_RETRIEVAL],
        blocks=causes[SMALL_BLOCKS],
        retrieval=len(heads["retrieval"]),
        read=sum(prose["read"]) / len(prose["read"]),
        written=(sum(prose["written"]), len(prose["written"])),
        tasks=tasks[OURS][None].share,
        bare=tasks[BARE][None].share,
    )
