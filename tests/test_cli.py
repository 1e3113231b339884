"""The command line: help, versions, and one line for what goes wrong."""

import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from anchor_ref import cli
from anchor_ref.commands import compare


def refuse(monkeypatch, error):
    def run(options):
        raise error

    monkeypatch.setattr(compare, "run", run)


def test_without_a_subcommand_it_prints_help_with_every_command(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert name in shown
    assert compare.__doc__.splitlines()[0][:40] in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"anchor-ref {name}" in capsys.readouterr().out


def test_it_says_its_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"anchor-ref {version('anchor-attention')}\n"


def test_an_unknown_subcommand_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["compose"])
    assert stop.value.code == 2
    assert "compare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("length must be\n  at least 1,\n\ngot 0"), "length must be at least 1, got 0"),
        (FileNotFoundError(2, "No such file", "a.txt"), "[Errno 2] No such file: 'a.txt'"),
        (ImportError("compare needs pandas"), "compare needs pandas"),
        (OSError(), "OSError"),
    ],
)
def test_bad_input_is_one_line_and_status_2(monkeypatch, capsys, error, line):
    refuse(monkeypatch, error)
    assert cli.main(["compare"]) == 2
    shown = capsys.readouterr()
    assert shown.err == f"anchor-ref: error: {line}\n"
    assert shown.out == ""


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_lack_of_memory_is_one_line_with_advice(monkeypatch, capsys, error):
    refuse(monkeypatch, error)
    assert cli.main(["compare"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("anchor-ref: error: out of memory: take a shorter text")


def test_a_lack_of_memory_on_the_cpu_is_known_by_its_words(monkeypatch, capsys):
    monkeypatch.setattr(compare, "run", lambda options: torch.empty(2**58))
    assert cli.main(["compare"]) == 2
    assert "out of memory" in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    refuse(monkeypatch, RuntimeError("sizes do not match"))
    with pytest.raises(RuntimeError, match="sizes do not match"):
        cli.main(["compare"])


def test_an_interruption_is_one_line(monkeypatch, capsys):
    refuse(monkeypatch, KeyboardInterrupt())
    assert cli.main(["compare"]) == 130
    assert capsys.readouterr().err == "anchor-ref: error: interrupted\n"


def test_the_status_of_a_subcommand_is_the_status(monkeypatch):
    monkeypatch.setattr(compare, "run", lambda options: 3)
    assert cli.main(["compare"]) == 3


def test_nothing_heavy_is_imported_for_the_help():
    code = (
        "import sys\nfrom anchor_ref.cli import main\nmain([])\n"
        "heavy = {'transformers', 'pandas', 'pyarrow', 'matplotlib', 'triton'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
