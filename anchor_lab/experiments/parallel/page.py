"""The page of one prompt on many GPUs, and what other pages take from it."""

from collections.abc import Callable, Iterable
from pathlib import Path

from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.page import digits, number, percent, render, spaced
from anchor_lab.experiments.parallel import measure
from anchor_models.parallel.cost import GIB
from anchor_models.smollm2 import NAME

METHOD = "anchor_attention"
NAMES = {"one": "1 GPU", "sequence": "sequence", "tensor": "tensor"}


def page(results: dict, _path: Path) -> str:
    """The numbers as Markdown."""
    return render("parallel/page.md.j2", **values(results))


def values(results: dict) -> dict:
    """What the template is filled with; the list of a part that was not measured is empty."""
    rows = results["rows"]
    done, refused = prefills(rows)
    whole = {_case(row): row for row in done if row["mode"] == "one" and row["tail"] != 0}
    return {
        "settings": results["settings"],
        "date": results["runs"][-1]["date"],
        "small": all(row["model"] != NAME for row in done),
        "prefills": [prefill(row, whole[_case(row)]) for row in done if row["tail"] != 0],
        "refused": [(row["model"], spaced(row["tokens"]), row["refused"]) for row in refused],
        "checks": [
            (row["model"], spaced(row["tokens"]), number(1e3 * row["checks"]))
            for row in done
            if row["mode"] == "sequence" and row["tail"]
        ],
        "spread": spread(done),
        "tails": tails(done),
        "tail_beside_one": tail_beside_one(done),
        "logits": [
            [
                *_named(row),
                row["dtype"],
                *(each(row[name], "{:.1e}".format) for name in ("difference", "typical")),
                each(row["same token"], percent),
            ]
            for row in rows
            if row["part"] == "logits"
        ],
        "attention": [
            [spaced(row["tokens"]), row["backend"]]
            + [digits(1000 * row[name], 2) for name in ("one", "all", "exchange")]
            + [each(row["difference"], "{:.1e}".format)]
            for row in rows
            if row["part"] == "attention"
        ],
        "answers": [
            [*_named(row), _code(row["written"]), row["answer"]]
            for row in rows
            if row["part"] == "answers"
        ],
        "unanswered": [
            spaced(row["tokens"])
            for row in rows
            if row["part"] == "answers" and not row["found"] and _is_first(row)
        ],
        "lost": lost_on_one(rows),
    }


def lost_on_one(rows: Iterable[dict]) -> list[str]:
    """Lengths at which one GPU answers with dense attention, and with AnchorAttention does not.

    What ranks write there is no fault of sharing a prompt.
    """
    ones = [row for row in rows if row["part"] == "answers" and row["mode"] == "one"]
    found = {(row["model"], row["tokens"], row["attention"]): row["found"] for row in ones}
    return [
        spaced(n)
        for (model, n, attention), right in found.items()
        if attention != "sdpa" and not right and found.get((model, n, "sdpa"))
    ]


def prefills(rows: Iterable[dict]) -> tuple[list[dict], list[dict]]:
    """Those that ran, and those that were refused."""
    found = [row for row in rows if row["part"] == "prefill"]
    return (
        [row for row in found if not row["refused"]],
        [row for row in found if row["refused"]],
    )


def prefill(row: dict, whole: dict) -> list[str]:
    """A line: seconds beside one GPU's, then what each rank held at most, and what it sent."""
    return [
        *_named(row),
        digits(row["seconds"], 3),
        f"{whole['seconds'] / row['seconds']:.2f} ×",
        each(row["peak"], lambda size: digits(size / GIB, 2) if size else "–"),
        digits(row["paper"] / GIB, 2),
        each(row["sent"], lambda size: digits(size / GIB, 3)),
    ]


def spread(done: Iterable[dict]) -> list[list[str]]:
    """A line for each prefill: attention of each rank, and what uneven shares cost.

    Ranks that compute the whole prompt, each by itself, wait for nobody: what their times differ
    by is what differs without uneven shares.
    """
    return [
        [
            *_named(row),
            each(row["attention_ms"], number),
            f"{busiest(row['attention_ms']):.3f}",
            each(row["waits_ms"], number),
            "–"
            if row["mode"] == "one"
            else percent(_mean(row["waits_ms"]) / (1e3 * row["seconds"])),
            each(row["exchange_ms"], number),
        ]
        for row in done
        if row["tail"] != 0
    ]


def tails(done: list[dict]) -> list[list[str]]:
    """A line for each prefill of AnchorAttention: what attention with a tail takes more."""
    pairs = _with_and_without_tail(done)
    found = []
    for (*case, mode), (row, other) in pairs.items():
        whole = pairs.get((*case, "one"))
        gains = [
            f"{alone['seconds'] / shared['seconds']:.2f} ×"
            for alone, shared in zip(whole or (), (row, other), strict=False)
        ]
        found.append(
            [
                row["model"],
                spaced(row["tokens"]),
                NAMES[mode],
                each(other["attention_ms"], number),
                each(_added(row, other), lambda ms: digits(ms, 2)),
                digits(1e3 * (row["seconds"] - other["seconds"]), 1),
                *(gains[::-1] or ["–", "–"]),
            ]
        )
    return found


def tail_beside_one(done: list[dict]) -> list[float]:
    """What a tail adds to the attention of the busiest rank over what it adds on one GPU, sorted.

    1 / P where heads share it evenly and half of the heads take half of the time.
    """
    added = {case: max(_added(*pair)) for case, pair in _with_and_without_tail(done).items()}
    return sorted(
        ms / added[*case, "one"]
        for (*case, mode), ms in added.items()
        if mode != "one" and added.get((*case, "one"), 0) > 0
    )


def _with_and_without_tail(done: list[dict]) -> dict[tuple, tuple[dict, dict]]:
    """Prefills that ran both ways, by what else tells them apart."""
    without = {(*_case(row), row["mode"]): row for row in done if row["tail"] == 0}
    cases = {(*_case(row), row["mode"]): row for row in done if row["tail"]}
    return {case: (row, without[case]) for case, row in cases.items() if case in without}


def _added(row: dict, other: dict) -> list[float]:
    """Milliseconds of attention that a rank has more of with a tail, of each rank."""
    pairs = zip(row["attention_ms"], other["attention_ms"], strict=True)
    return [one - none for one, none in pairs]


def in_short(results: dict) -> str:
    """The table of the how-to page: of each way seconds, and what the widest rank held."""
    done, refused = prefills(results["rows"])
    found: dict[tuple, dict[str, dict]] = {}
    for row in done:
        if row["tail"] != 0:
            found.setdefault(_case(row), {})[row["mode"]] = row
    lines = [
        [
            model,
            spaced(tokens),
            way,
            *(
                f"{digits(modes[mode]['seconds'], 3)} s, {_held(modes[mode])}"
                if mode in modes
                else "refused"
                for mode in NAMES
            ),
        ]
        for (model, tokens, way), modes in found.items()
    ]
    settings = results["settings"]
    return render(
        "parallel/in_short.md.j2",
        settings=settings,
        date=results["runs"][-1]["date"],
        lines=lines,
        heads=["model", "tokens", "attention", "1 GPU"]
        + [f"{settings['ranks']} GPUs, {mode} parallel" for mode in ("sequence", "tensor")],
        refused=sorted({(row["model"], row["refused"]) for row in refused}),
    )


def beyond_paper(results: dict) -> str:
    """A sentence: the memory that was held at most over that of the formulas; empty without."""
    done, _ = prefills(results["rows"])
    found = [max(row["peak"]) / row["paper"] for row in done if max(row["peak"])]
    if not found:
        return ""
    return (
        f"The memory that they held at most was {min(found):.1f} to {max(found):.1f} times the\n"
        "sum of the formulas, which name what has to be there, not what a framework holds beside\n"
        "it.\n"
    )


def busiest(taken: list[float]) -> float:
    """The longest share over the mean one: 1 where the work is even."""
    return max(taken) / _mean(taken)


def each(found: Iterable | None, shown: Callable) -> str:
    """The numbers of all ranks, rank 0's first; a dash for what was not measured."""
    return " / ".join("–" if x is None else shown(x) for x in found or [None])


def _held(row: dict) -> str:
    return f"{max(row['peak']) / GIB:.1f} GiB" if max(row["peak"]) else "–"


def _mean(found: list[float]) -> float:
    return sum(found) / len(found)


def _code(words: str) -> str:
    """What a model wrote, in a cell of a table: a line break or a bar of its own would end it."""
    return f"`{words}`".replace("\n", "\\n").replace("|", "\\|")


def _is_first(row: dict) -> bool:
    """Dense attention on one GPU, which the prompt was chosen by."""
    return row["mode"] == "one" and row["attention"] == "sdpa"


def _case(row: dict) -> tuple:
    return row["model"], row["tokens"], row["attention"]


def _named(row: dict) -> list[str]:
    mode = NAMES.get(row["mode"], row["mode"])
    return [row["model"], spaced(row["tokens"]), row["attention"], mode]


EXPERIMENT = Experiment(
    name="parallel",
    about=measure.__doc__,
    measure=measure.measure,
    page=page,
    file="parallel/parallel.json",
)
