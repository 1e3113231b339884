"""What an experiment is to the one command that runs them all, `python -m anchor_lab NAME`."""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anchor_lab.experiments.environment import lacks_cuda
from anchor_lab.experiments.store import OtherResults, read, write_whole

# Of the repository, where its commands are run.
RESULTS = Path("results")
QUICK = Path("build") / "quick"  # what is no result leaves the results alone


def progress(left: list, **more):
    """What is left to do, with progress on stderr where that is a terminal; `more` is tqdm's."""
    from tqdm import tqdm

    return tqdm(left, file=sys.stderr, disable=None, **more)


def progress_by(left: list, part: Callable[[Any], str], desc: str) -> Iterator:
    """As `progress`; where stderr is no terminal, as in a log, a line for each part that is done.

    Args:
        left: what is left to do; what belongs to a part lies together.
        part: what the part is called that something belongs to.
        desc: what is done.
    """
    if sys.stderr.isatty():
        yield from progress(left, desc=desc)
        return
    for done, one in enumerate(left, 1):
        yield one
        if done == len(left) or part(left[done]) != part(one):
            print(f"{desc}: {part(one)}: {done} of {len(left)} done", file=sys.stderr, flush=True)


def call_each(jobs: list[Callable[[], None]], until: float) -> int:
    """Do one job after the other, none begun after `until` of `time.monotonic`.

    Returns:
        What `measure` is to return: 1 when the time was over before all was done.
    """
    for job in progress(jobs):
        if time.monotonic() > until:
            print("not all is there: call again to go on", file=sys.stderr)
            return 1
        job()
    return 0


@dataclass(frozen=True)
class Experiment:
    """A question: how its numbers are measured, drawn and written up.

    Attributes:
        name: of its folder, and what the command calls it.
        about: docstring of the module that measures; its first line is the title.
        measure: fills the file `options.out`; returns 0, or the exit status of what went wrong.
        page: the numbers as Markdown, given what `read` found and the page's path.
        file: where the numbers go, below `results`: "NAME/NAME.json".
        draw: the numbers as a figure; None for an experiment without one.
        options: adds what `measure` reads besides --device, --quick and --out; --device is left
            out where a CUDA device is needed.
        read: the numbers of a file.
        needs_cuda: whether measuring needs a CUDA device, --quick included.
        page_file: where the page of the results belongs if not beside them. That of another file
            lies beside it all the same.
    """

    name: str
    about: str
    measure: Callable[[argparse.Namespace], int]
    page: Callable[[dict, Path], str]
    file: str
    draw: Callable[[dict], Any] | None = None
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    read: Callable[[Path], dict] = read
    needs_cuda: bool = False
    page_file: Path | None = None

    @property
    def title(self) -> str:
        return self.about.splitlines()[0]

    def run(self, arguments: Sequence[str]) -> int:
        """Measure, then write page and figure.

        Returns:
            The exit status: 0, what measuring returned, or 2 with a line on stderr for a file
            that was made with something else, or for a --text that will not do.
        """
        parser = self.parser()
        options = parser.parse_args(arguments)
        if options.out is not None and options.out.is_dir():
            parser.error(f"--out must be a file, got the folder {options.out}")
        options.command = self.command_line(arguments)
        options.out = options.out or (QUICK if options.quick else RESULTS) / self.file
        if not options.table:
            if self.needs_cuda and lacks_cuda(f"anchor_lab {self.name}"):
                return 2
            try:
                status = self.measure(options)
            except OtherResults as problem:
                print(problem, file=sys.stderr)
                status = 2
            except ValueError as problem:
                # A text that somebody brought may be too short; without one the fault is ours.
                if getattr(options, "text", None) is None:
                    raise
                print(
                    f"--text must be a file that the run can read, got {options.text}: {problem}",
                    file=sys.stderr,
                )
                status = 2
            if status:
                return status
        self.write_page(options.out)
        return 0

    def command_line(self, arguments: Sequence[str]) -> str:
        """The command for the record; of absolute paths the last part, which is no folder of ours.

        `measure` finds it as `options.command`.
        """
        short = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
        return shlex.join(["python", "-m", "anchor_lab", self.name, *short])

    def write_page(self, out: Path) -> None:
        """NAME.md, or `page_file`, and NAME.png beside the file of numbers."""
        results, page = self.read(out), _beside(out, ".md")
        out.parent.mkdir(parents=True, exist_ok=True)  # of a page about others' numbers
        if self.page_file is not None and out == RESULTS / self.file:
            page = self.page_file
        if self.draw is not None:
            from matplotlib import pyplot as plt

            figure = self.draw(results)
            figure.savefig(_beside(out, ".png"))
            plt.close(figure)
        write_whole(page, self.page(results, page))
        print(f"{page} is written")

    def parser(self) -> argparse.ArgumentParser:
        """--device, --table, --quick, --out and the experiment's own."""
        made = argparse.ArgumentParser(
            prog=f"python -m anchor_lab {self.name}",
            description=self.about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if not self.needs_cuda:  # those take the current CUDA device
            device = "cuda" if torch.cuda.is_available() else "cpu"
            made.add_argument("--device", default=device, help=f"default here: {device}")
        made.add_argument(
            "--table", action="store_true", help="no measuring, only page and figure"
        )
        made.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
        default = f"default: {RESULTS / self.file}, or {QUICK / self.file} with --quick"
        made.add_argument("--out", type=Path, help=default)
        self.options(made)
        return made


def _beside(out: Path, ending: str) -> Path:
    """The page or picture of a file of numbers, .json, .csv or .csv.gz."""
    return out.with_name(out.name.removesuffix(".gz").rpartition(".")[0] + ending)
