"""The tables of README.md and notebooks/README.md, made from what is committed.

    python -m tools.front_page

course      from the notebooks' headers: a first cell is a title, a question, and a table with the
            rows time, needs and paper
speed       from results/attention/attention_h100.json, the newest times of the kernels
choice      from results/compare/compare.csv.gz and retrieval.json: what methods keep, and what is lost

Where CITATION.cff names a public `repository-code`, notebooks/README.md begins with badges that
open the course of this version on Binder and Colab, and with the pinned install for Colab.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml

from anchor_lab.experiments.attention.page import (
    by_inputs,
    by_length,
    crossing,
    is_ok,
    number,
    percent,
)
from anchor_lab.experiments.compare.equal import at_equal, budget_for, mean_curves
from anchor_lab.experiments.retrieval.figure import data_answers
from anchor_lab.experiments.store import read_table
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
SECONDS = re.compile(r"(\d+) s on two CPU cores")
BADGES = """[![Binder](https://mybinder.org/badge_logo.svg)]({binder}) [![Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})

Binder installs what `environment.yml` pins. On Colab run this first, then restart the session:

    !git clone --depth 1 --branch v{version} {repository} anchor
    %cd anchor
    !pip install -c constraints.txt '.[all]'

"""
ABOUT = """# The course

Made by `python -m tools.front_page` from the notebooks' headers. Times are those of one run on two
CPU cores; `make notebooks` writes them.

"""


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


def table(found: list[Header], folder: str, questions: bool = True) -> str:
    """The course as a Markdown table; `folder` leads to the notebooks."""
    titles = ["notebook", *["question"] * questions, "time", "memory"]
    lines = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
    for header in found:
        memory = header.rows["time"].partition(", ")[2].removesuffix(" of memory") or "–"
        link = f"[{header.title}]({folder}{header.path.as_posix()})"
        cells = [link, *[header.question] * questions, f"{header.seconds} s", memory]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def badges(citation: dict) -> str:
    """Ways to open this version of the course elsewhere; nothing without a public address."""
    repository = citation.get("repository-code", "").rstrip("/")
    if not repository:
        return ""
    place = f"{repository.removeprefix('https://github.com/')}"
    version = citation["version"]
    first = "notebooks/00_start_here.ipynb"
    return BADGES.format(
        binder=f"https://mybinder.org/v2/gh/{place}/v{version}?labpath={first}",
        colab=f"https://colab.research.google.com/github/{place}/blob/v{version}/{first}",
        repository=repository,
        version=version,
    )


def speed(results: dict, other: dict) -> str:
    """Times beside those of dense attention, on what, and from which length on it pays.

    Args:
        results: of `anchor_lab.experiments.attention.measure`, whose times are shown.
        other: the same of another device, for its length alone.
    """
    rows = by_inputs(results)
    lines = [
        "| tokens | pairs kept | AnchorAttention | cuDNN | FlashAttention-2 | cuDNN / ours |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for n, row in by_length(rows).items():
        if n in SHOWN and is_ok(row, "anchor"):
            ours = row["anchor"]["ms"]["median"]
            cudnn = _milliseconds(row, "sdpa-cudnn")
            ratio = f"{cudnn / ours:.1f}" if cudnn else "–"
            cells = [_time(ours), _time(cudnn), _time(_milliseconds(row, "sdpa-flash")), ratio]
            kept = percent(row["anchor"]["kept"])
            lines.append(f"| {spaced(n)} | {kept} | {' | '.join(cells)} |")
    run = results["runs"][rows_run(results)]
    even, other_even = (
        spaced(round(crossing(found, "sdpa-cudnn")[0], -2)) for found in (rows, by_inputs(other))
    )
    other_device = other["runs"][rows_run(other)]["device"]
    about = (
        f"{run['device']}, {run['date']}, torch {run['torch']}, Triton {run['triton']}; bf16, 32 "
        "query and 8 kv heads of 128, 5 % planted stripes; medians. It overtakes cuDNN at "
        f"{even} tokens. Stages, densities, memory, a model's own activations: "
        "[results/attention/attention_h100.md](results/attention/attention_h100.md). In another machine, with "
        f"one {other_device}, it does so at {other_even}: "
        "[results/attention/attention.md](results/attention/attention.md)."
    )
    return "\n".join([*lines, "", about, ""])


def spaced(n: float) -> str:
    """A whole number in groups of three digits."""
    return f"{n:,.0f}".replace(",", "\u202f")


def choice(frame, cells: list[dict]) -> str:
    """What methods keep at one density, what a recall costs them, and the answers they lose.

    Args:
        frame: the rows of results/compare/compare.csv.gz.
        cells: those of results/retrieval/retrieval.json.
    """
    curves = mean_curves(frame[frame["text"] == "document"])
    recall = at_equal(curves, "density", HALF)
    density = budget_for(curves, "density", RECALL)
    answers = data_answers(cells, ASKED_TOKENS)
    lines = [
        f"| method | recall with half of the pairs | pairs for recall {RECALL:g} | "
        "answers found with half of the pairs |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, title in METHODS.items():
        found, low, high = (f"{100 * x:.0f}" for x in answers[name][HALF])
        numbers = f"{recall[name]:.3f} | {100 * density[name]:.0f} % | {found} % ({low}–{high})"
        lines.append(f"| {title} | {numbers} |")
    dense = f"{100 * answers['Dense'][None][0]:.0f} %"
    about = (
        "The bundled model. Recall: 8192 tokens of prose, mean over its 64 heads "
        "([results/compare/compare.md](results/compare/compare.md)). Answers: numbers hidden in "
        f"{spaced(ASKED_TOKENS)} tokens and asked for, 95 % interval; dense attention finds "
        f"{dense} ([results/retrieval/retrieval.md](results/retrieval/retrieval.md), which also shows why). "
        "Recall alone does not tell who answers. The oracle is the best at its own rule; a "
        "difference test lets heads differ more, and can need fewer pairs."
    )
    return "\n".join([*lines, "", about, ""])


def rows_run(results: dict) -> int:
    """The run that the project's own times are of: one for all lengths.

    Raises:
        ValueError: they are of several.
    """
    runs = {row["anchor"]["run"] for row in by_length(by_inputs(results)).values()}
    if len(runs) != 1:
        raise ValueError(f"lengths must be of one run, got runs {sorted(runs)}")
    return runs.pop()


def _milliseconds(row: dict, method: str) -> float | None:
    return row[method]["ms"]["median"] if is_ok(row, method) else None


def _time(ms: float | None) -> str:
    return "–" if ms is None else f"{number(ms)} ms"


def filled(text: str, tables: dict[str, str]) -> str:
    """`text` with each table between its marks `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: a mark is not there exactly once.
    """
    for name, content in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"README.md must hold {begin} and {end} once each")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{content}{end}{rest.split(end)[1]}"
    return text


def pages() -> dict[Path, str]:
    """The files that hold the tables, as they should be."""
    found = headers()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    cells = list(_json("retrieval/retrieval.json")["cells"].values())
    tables = {
        "course": table(found, "notebooks/", questions=False),
        "speed": speed(_json("attention/attention_h100.json"), _json("attention/attention.json")),
        "choice": choice(read_table(RESULTS / "compare" / "compare.csv.gz"), cells),
    }
    readme = ROOT / "README.md"
    return {
        COURSE / "README.md": ABOUT + badges(citation) + table(found, ""),
        readme: filled(readme.read_text(encoding="utf-8"), tables),
    }


def _json(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def main() -> int:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
