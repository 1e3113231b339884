"""The tables of README.md, notebooks/README.md and pages of docs/, made from what is committed.

    python -m tools.front_page

README.md                three_answers, pays, loses (`tools/three_answers.py`; pays ends with the
                         sentence of `tools/calls.py`), beats (`tools/standing.py`)
docs/measured.md         kernels (`tools/calls.py`), texts (`tools/standing.py`), layers, lost,
                         speed, reference, choice (`tools/measured.py`)
docs/limits.md           asked, losing, asking, reach, small (`tools/limits.py`)
docs/how-to/bring_answers_back.md    by_length (`tools/limits.py`)
docs/installing.md       tour: the table that notebook 00 holds
pages on several GPUs    gpus, held: of results/parallel
docs/how-to/run_benchmarks.md  benchmark: of results/benchmark

notebooks/README.md is the course, from the notebooks' headers: a first cell is a title, a
question, and a table with the rows time, needs and paper. Where CITATION.cff names a public
`repository-code`, it begins with badges that open the course of this version on Binder and Colab,
and with the pinned install for Colab.
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
from anchor_lab.experiments.benchmark import page as benchmark
from anchor_lab.experiments.course import RESULTS, committed
from anchor_lab.experiments.losses.finished import finished_rows
from anchor_lab.experiments.parallel.page import beyond_paper, in_short
from anchor_lab.experiments.rivals import page as rivals
from tools import calls, limits, measured, standing, three_answers, tour
from tools.notebooks import ROOT

COURSE = ROOT / "notebooks"
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


def course(found: Sequence[Header]) -> str:
    """The course as a Markdown table."""
    rows = [
        (
            f"[{header.title}]({header.path.as_posix()})",
            header.question,
            f"{header.seconds} s",
            header.rows["time"].partition(", ")[2].removesuffix(" of memory") or "–",
        )
        for header in found
    ]
    return page.markdown(["notebook", "question", "time", "memory"], rows) + "\n"


def course_page(found: Sequence[Header], citation: dict) -> str:
    """notebooks/README.md, with ways to open this version elsewhere if its address is public."""
    repository = citation.get("repository-code", "").rstrip("/")
    return render(
        "course.md.j2",
        course=course(found),
        repository=repository,
        place=repository.removeprefix("https://github.com/"),
        version=citation["version"],
        first="notebooks/00_start_here.ipynb",
    )


def first_run(notebook: Path) -> str:
    """What `make tour` ends with, by the table that the committed notebook holds."""
    table = tour.format_table(tour.layer_table(nbformat.read(notebook, as_version=4)))
    return f"```text\n{table}\n```\n"


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
    found, docs = headers(), ROOT / "docs"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    h100, h200 = (
        store.read(RESULTS / "attention" / f"{name}.json")
        for name in ("attention_h100", "attention")
    )
    compared = pandas.DataFrame(store.read_table(RESULTS / "compare" / "compare.csv.gz"))
    asked = store.read(RESULTS / "retrieval" / "retrieval.json")["rows"]
    written = store.read(RESULTS / "retrieval" / "written.json")["rows"]
    crossover, smollm2, timed = map(committed, ("crossover", "smollm2", "side_by_side"))
    lost = [store.read(path) for path in sorted((RESULTS / "losses").glob("*.json"))]
    lost = [{**one, "rows": finished_rows(one["rows"])} for one in lost]
    recalls = rivals.EXPERIMENT.read(RESULTS / rivals.EXPERIMENT.file)
    parallel, lengths, answers = map(committed, ("parallel", "lengths", "answers"))
    by_page = {
        ROOT / "README.md": {
            "three_answers": three_answers.three_answers(
                crossover, smollm2, answers, lost, recalls, lengths
            ),
            "pays": f"{three_answers.pays(crossover, lengths)}\n{calls.calls(timed)}",
            "loses": three_answers.loses(smollm2),
            "beats": "\n".join(
                (standing.beats(lost, recalls), standing.beyond(committed("equal_time")))
            ),
        },
        docs / "measured.md": {
            "kernels": calls.kernels(timed, "../"),
            "layers": measured.layers(lengths),
            "lost": measured.lost(lost),
            "texts": standing.texts(lost, recalls, lengths),
            "speed": measured.speed(h200, h100),
            "reference": measured.reference(committed("reference")),
            "choice": measured.choice(compared, asked),
        },
        docs / "limits.md": {
            "asked": limits.asked(smollm2, answers, crossover),
            "losing": limits.losing(lost, recalls, lengths),
            "asking": limits.asking(crossover),
            "reach": limits.reach(crossover, lengths),
            "small": limits.small(
                store.read(RESULTS / "model" / "evaluation.json"), written, asked
            ),
        },
        docs / "how-to" / "bring_answers_back.md": {"by_length": limits.by_length(answers)},
        docs / "installing.md": {"tour": first_run(COURSE / "00_start_here.ipynb")},
        docs / "how-to" / "run_benchmarks.md": {
            "benchmark": benchmark.in_short(committed("benchmark"))
        },
        docs / "how-to" / "use_more_than_one_gpu.md": {"gpus": in_short(parallel)},
        docs / "memory_and_communication.md": {"held": beyond_paper(parallel)},
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
