"""What the pages in docs/ tell you to run runs, in their order, in a copy of the repository.

```bash, ```python           run, from the root of the copy
<!-- file: PATH --> ```python    written to PATH, to be used by what follows
```diff                      applied: lines of context must stand in the file exactly once
```output                    what the block before it prints; … stands for anything
```text                      an illustration
*Not run in the tests: …*    right above a block, with a reason from REASONS
"""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tree import ROOT

PAGES = sorted(ROOT.glob("docs/**/*.md"))
COPIED = (
    "anchor_ref",
    "kernels",
    "anchor_models",
    "anchor_lab",
    "results",
    "tests",
    "pyproject.toml",
)
KINDS = {"bash", "python", "diff", "output", "text"}
REASONS = {"needs a CUDA device", "needs a network"}

FENCE = re.compile(
    r"(?:^\*Not run in the tests: (?P<reason>[^*]+)\.\*\n\n)?"
    r"(?:^<!-- file: (?P<file>\S+) -->\n)?"
    r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, where it goes, why it is not run."""

    kind: str
    text: str
    file: str | None
    reason: str | None


def blocks(page: str) -> list[Block]:
    return [Block(m["kind"], m["text"], m["file"], m["reason"]) for m in FENCE.finditer(page)]


def applied(diff: str, folder: Path) -> None:
    """Change the files under `folder` as a diff without line numbers says."""
    for part in re.split(r"^--- a/.*\n(?=\+\+\+ b/)", diff, flags=re.MULTILINE)[1:]:
        name, *hunks = re.split(r"^@@\n", part, flags=re.MULTILINE)
        path = folder / name.strip().removeprefix("+++ b/")
        text = path.read_text()
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            times = text.count(old)
            assert times == 1, f"{path.name} must hold once, not {times} times:\n{old}"
            text = text.replace(old, new)
        path.write_text(text)


class Runner:
    """Runs the blocks of one page in a folder, one after the other."""

    def __init__(self, folder: Path):
        self.folder, self.names, self.printed, self.edited = folder, {}, "", False

    def run(self, block: Block) -> None:
        if block.reason is not None or block.kind == "text":
            self.printed = ""
        elif block.kind == "output":
            wanted = ".*".join(map(re.escape, block.text.split("…")))
            assert re.fullmatch(wanted, self.printed), f"printed:\n{self.printed}"
        elif block.kind == "diff":
            applied(block.text, self.folder)
            self.edited = True
        elif block.file is not None:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.kind == "bash":
            self.printed = self.start(["bash", "-euo", "pipefail", "-c", block.text])
        elif self.edited:  # of packages that are loaded here, the page has changed files
            self.printed = self.start([sys.executable, "-c", block.text])
        else:
            said = io.StringIO()
            with contextlib.chdir(self.folder), contextlib.redirect_stdout(said):
                exec(compile(block.text, "block", "exec"), self.names)
            self.printed = said.getvalue()

    def start(self, command: list[str]) -> str:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.folder}{os.pathsep}{self.folder / 'kernels'}",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",  # RULER makes its needles without a network
            "HF_DATASETS_OFFLINE": "1",
        }
        environment.pop("TRITON_INTERPRET", None)  # set for the tests of this process
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def copy(tmp_path):
    """The repository as a user has it, to be changed at will."""
    ignore = shutil.ignore_patterns("__pycache__", "*.png")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=ignore, copy_function=_link)
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def _link(source: str, target: str) -> None:
    """Files are copied, but for the model's weights, which no page changes."""
    if source.endswith(".safetensors"):
        os.symlink(source, target)
    else:
        shutil.copy(source, target)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_runs(page, copy):
    runner = Runner(copy)
    for block in blocks(page.read_text()):
        runner.run(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_of_a_kind_that_is_checked_or_says_why_not(page):
    text = page.read_text()
    found = blocks(text)
    assert len(found) == len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) / 2
    assert {block.kind for block in found} <= KINDS
    assert {block.reason for block in found} <= {None, *REASONS}
    said = re.findall(r"not run in the tests", text, re.IGNORECASE)
    assert len(said) == sum(block.reason is not None for block in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", FENCE.sub("", page.read_text())):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_index_names_every_page():
    index = ROOT / "docs" / "README.md"
    targets = re.findall(r"\]\(([^)]+\.md)\)", index.read_text())
    assert {(index.parent / x).resolve() for x in targets} == {*PAGES} - {index}


# The checks themselves.

SAYS = "Do this:\n\n```bash\necho one\n```\n\n```output\n{}\n```\n"


def test_a_command_that_fails_or_prints_something_else_is_found(tmp_path):
    for printed in ("one", "o…e", "…"):
        runner = Runner(tmp_path)
        for block in blocks(SAYS.format(printed)):
            runner.run(block)
    runner = Runner(tmp_path)
    command, output = blocks(SAYS.format("two"))
    runner.run(command)
    with pytest.raises(AssertionError, match=r"printed:\s+one"):
        runner.run(output)
    with pytest.raises(AssertionError, match="no such thing"):
        runner.run(blocks("```bash\necho no such thing >&2; false\n```\n")[0])
    with pytest.raises(ZeroDivisionError):
        runner.run(blocks("```python\n1 / 0\n```\n")[0])


def test_files_and_changes_are_made_and_a_change_that_does_not_fit_is_found(tmp_path):
    page = (
        "<!-- file: a/b.py -->\n```python\nx = 1\ny = 2\n```\n\n"
        "```diff\n--- a/a/b.py\n+++ b/a/b.py\n@@\n x = 1\n-y = 2\n+y = 3\n```\n\n"
        "```python\nprint(open('a/b.py').read())\n```\n"
    )
    runner = Runner(tmp_path)
    for block in blocks(page):
        runner.run(block)
    assert runner.printed == "x = 1\ny = 3\n\n"
    with pytest.raises(AssertionError, match="must hold once, not 0 times"):
        runner.run(blocks(page)[1])


def test_a_reason_is_read_from_right_above_its_block_only():
    mark = "*Not run in the tests: needs a CUDA device.*\n\n"
    assert blocks(f"{mark}```bash\nfalse\n```\n")[0].reason == "needs a CUDA device"
    assert blocks(f"{mark}Then:\n\n```bash\nfalse\n```\n")[0].reason is None
