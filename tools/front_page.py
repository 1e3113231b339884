"""The tables of README.md, notebooks/README.md and pages of docs/, made from what is committed.

    python -m tools.front_page

course      from the notebooks' headers: a first cell is a title, a question, and a table with the
            rows time, needs and paper
real        from results/smollm2: a real language model's pairs, times and answers
speed       from results/attention, the newest times of the kernels
choice      from results/compare and results/retrieval: what methods keep, and what is lost
gpus, held  from results/parallel: one prompt on several GPUs, in the pages of docs/ about that

Where CITATION.cff names a public `repository-code`, notebooks/README.md begins with badges that
open the course of this version on Binder and Colab, and with the pinned install for Colab.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
import pandas
import yaml

from anchor_lab.experiments import page, store
from anchor_lab.experiments.attention.cells import (
    by_inputs,
    by_length,
    crossing,
    is_ok,
    median_ms,
)
from anchor_lab.experiments.compare.equal import at_equal, budget_for, mean_curves
from anchor_lab.experiments.parallel.page import beyond_paper, in_short
from anchor_lab.experiments.retrieval.figure import data_answers
from anchor_lab.experiments.smollm2.figure import data_lengths, data_times
from anchor_lab.experiments.smollm2.page import answers
from anchor_models.backend import TAIL
from anchor_ref import AnchorConfig
from tools.notebooks import ROOT

COURSE = ROOT / "notebooks"
RESULTS = ROOT / "results"
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
THETA = AnchorConfig().theta
SECONDS = re.compile(r"(\d+) s on two CPU cores")
render = partial(page.render, folder=Path(__file__).parent)


@dataclass(frozen=True)
class Header:
    """What a notebook says of itself.

    Attributes:
        path: relative to the folder of the course.
        title: without the number sign.
        question: one paragraph.
        rows: of its table: "time", "needs", "paper".
    """

    path: Path
    title: str
    question: str
    rows: dict[str, str]

    @property
    def seconds(self) -> int:
        """Time of a run.

        Raises:
            ValueError: the header names none.
        """
        found = SECONDS.search(self.rows.get("time", ""))
        if found is None:
            raise ValueError(
                f"{self.path} must say how many seconds it takes, see `make notebooks`"
            )
        return int(found.group(1))


def read_header(path: Path) -> Header:
    """The header of the notebook at `path`.

    Raises:
        ValueError: it lacks a title or a question.
    """
    first = nbformat.read(path, as_version=4).cells[0].source
    title = re.match(r"# (.+)\n", first)
    question = re.search(r"\*\*Question\.\*\* (.+?)(?:\n\n|$)", first, re.DOTALL)
    if title is None or question is None:
        raise ValueError(f"{path.name} must begin with a title and a question")
    rows = dict(re.findall(r"^\| (\w+) \| (.+?) \|$", first, re.MULTILINE))
    inside = path.relative_to(COURSE)
    return Header(inside, title.group(1), " ".join(question.group(1).split()), rows)


def headers() -> list[Header]:
    """Of all notebooks that are numbered, in reading order."""
    return [read_header(path) for path in sorted(COURSE.glob("[0-9][0-9]_*.ipynb"))]


def course(found: Sequence[Header], folder: str, questions: bool = True) -> str:
    """The course as a Markdown table; `folder` leads to the notebooks."""
    rows = [
        (
            f"[{header.title}]({folder}{header.path.as_posix()})",
            *[header.question] * questions,
            f"{header.seconds} s",
            header.rows["time"].partition(", ")[2].removesuffix(" of memory") or "–",
        )
        for header in found
    ]
    titles = ["notebook", *["question"] * questions, "time", "memory"]
    return page.markdown(titles, rows) + "\n"


def course_page(found: Sequence[Header], citation: dict) -> str:
    """notebooks/README.md, with ways to open this version elsewhere if its address is public."""
    repository = citation.get("repository-code", "").rstrip("/")
    return render(
        "course.md.j2",
        course=course(found, ""),
        repository=repository,
        place=repository.removeprefix("https://github.com/"),
        version=citation["version"],
        first="notebooks/00_start_here.ipynb",
    )


def real(results: dict) -> str:
    """What a real language model keeps, how long that takes, and whether it answers.

    Args:
        results: of `python -m anchor_lab smollm2`.
    """
    rows, tail = results["rows"], f"tail {TAIL}"
    times = data_times(rows)
    needs = {n: found for (n, theta), found in data_lengths(rows).items() if theta == THETA}
    return render(
        "real.md.j2",
        rows=[
            (
                page.spaced(n),
                page.percent(needs[n]["density"]),
                page.digits(needs[n]["recall"], 3),
                *(f"{page.number(times[n][way])} ms" for way in (tail, "cudnn")),
                f"{times[n]['cudnn'] / times[n][tail]:.2f}",
            )
            for n in times
        ],
        answers=[(page.spaced(n), count, *found) for n, count, found in answers(rows)],
        settings=results["settings"],
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
        other_even=_even(other),
    )


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
    rows = []
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
    )


def filled(text: str, tables: dict[str, str]) -> str:
    """`text` with each table between its marks `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: a mark is not there exactly once.
    """
    for name, content in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the page must hold {begin} and {end} once each")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{content}{end}{rest.split(end)[1]}"
    return text


def pages() -> dict[Path, str]:
    """The files that hold the tables, as they should be."""
    found, readme = headers(), ROOT / "README.md"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    h100, h200 = (
        store.read(RESULTS / "attention" / f"{name}.json")
        for name in ("attention_h100", "attention")
    )
    compared = pandas.DataFrame(store.read_table(RESULTS / "compare" / "compare.csv.gz"))
    asked = store.read(RESULTS / "retrieval" / "retrieval.json")["rows"]
    tables = {
        "course": course(found, "notebooks/", questions=False),
        "real": real(store.read(RESULTS / "smollm2" / "smollm2.json")),
        "speed": speed(h100, h200),
        "choice": choice(compared, asked),
    }
    parallel = store.read(RESULTS / "parallel" / "parallel.json")
    by_page = {
        readme: tables,
        ROOT / "docs" / "how-to" / "use_more_than_one_gpu.md": {"gpus": in_short(parallel)},
        ROOT / "docs" / "memory_and_communication.md": {"held": beyond_paper(parallel)},
    }
    return {
        COURSE / "README.md": course_page(found, citation),
        **{path: filled(path.read_text(encoding="utf-8"), x) for path, x in by_page.items()},
    }


def main() -> int:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
