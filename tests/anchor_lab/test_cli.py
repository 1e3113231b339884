"""The command line: help, versions, and one line for what goes wrong."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import torch

from anchor_lab import cli
from anchor_lab.commands import common, compare
from anchor_lab.sources import planted
from anchor_models import capture_qkv, load_bundled
from anchor_models.texts import read_text


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


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    ("module", "name"), [("anchor_lab.cli", "inspect"), ("anchor_lab.__main__", "ablations")]
)
def test_an_output_without_greek_gets_question_marks(encoding, module, name):
    code = f"import sys; from {module} import main; sys.exit(main([{name!r}, '--help']))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr
    assert b"?" in run.stdout
    assert "θ" not in run.stdout.decode(encoding)


def test_nothing_heavy_is_imported_for_the_help():
    code = (
        "import sys\nfrom anchor_lab.cli import main\nmain([])\n"
        "heavy = {'transformers', 'pandas', 'pyarrow', 'matplotlib', 'triton'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


# -- compare


# Of 300 tokens only smaller groups than a model's leave anything to choose.
SMALL = ["--length", "300", "--group", "128", "--layers", "1", "--heads", "0", "--methods"]


def test_compare_writes_a_table_a_figure_and_what_they_were_made_from(
    tmp_path, capsys, monkeypatch
):
    asked = ["compare", *SMALL, "StreamingLLM", "AnchorAttention", "--out", str(tmp_path)]
    assert cli.main([*asked, "--parquet"]) == 0
    shown = capsys.readouterr().out
    assert "bundled, document, 300 tokens, groups of 128, 1 heads" in shown
    assert {path.name for path in tmp_path.iterdir()} == {
        *("compare.csv", "compare.parquet", "compare.png", "settings.json")
    }
    table = pd.read_parquet(tmp_path / "compare.parquet")
    assert len(table) == 7 + 10
    assert (table["recall_min"] <= table["recall_p10"]).all()
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["length"] == 300
    assert settings["group_size"] == 128
    # Nothing is left to do: the same command shows the same without running the model.
    before = (tmp_path / "compare.csv").read_text()
    monkeypatch.setattr("anchor_lab.sources.capture_qkv", None)
    assert cli.main(asked) == 0
    assert capsys.readouterr().out == shown
    assert (tmp_path / "compare.csv").read_text() == before


def test_compare_refuses_a_folder_of_other_settings(tmp_path, capsys):
    asked = ["compare", *SMALL, "Dense", "--out", str(tmp_path)]
    assert cli.main(asked) == 0
    capsys.readouterr()
    assert cli.main([*asked, "--seed", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds results made with text_sha256" in line


@pytest.mark.parametrize(
    ("more", "group", "tail", "correction"),
    [
        (["--length", "2304"], 2048, 0, None),
        (["--group", "256", "--tail", "50", "--correction", "delta"], 256, 50, "delta"),
    ],
)
def test_compare_hands_on_what_it_was_asked_for(
    tmp_path, monkeypatch, more, group, tail, correction
):
    seen = []

    def stop(*given):
        seen.extend(given)
        raise ValueError("seen enough")

    monkeypatch.setattr("anchor_lab.experiments.compare.runs.run_comparison", stop)
    asked = "compare --length 300 --layers 1 2 --heads 0 5 --methods AnchorAttention --seed 4"
    asked = [*asked.split(), "--dtype", "bfloat16", "--out", str(tmp_path), *more]
    assert cli.main(asked) == 2
    source, results, chosen, layers, heads, _, rows, size, added = seen
    assert added == results.settings.get("correction") == correction
    assert rows == results.settings["tail"] == tail
    assert size == results.settings["group_size"] == group
    assert (source.about["dtype"], layers, heads) == ("bfloat16", [1, 2], [0, 5])
    text = read_text("document", load_bundled()[1], source.length, 4)
    assert source.about["text_sha256"] == text.sha256
    assert results.path.parent == tmp_path
    assert {method.config.group_size for method in chosen["AnchorAttention"]} == {group}


def test_compare_takes_a_text_of_ones_own(tmp_path, capsys):
    (tmp_path / "book.txt").write_text("The harbour was quiet that evening. " * 40)
    asked = ["compare", *SMALL, "Dense", "--out", str(tmp_path / "out")]
    assert cli.main([*asked, "--text", str(tmp_path / "book.txt")]) == 0
    assert "bundled, book.txt, 300 tokens" in capsys.readouterr().out
    assert set(pd.read_csv(tmp_path / "out" / "compare.csv")["text"]) == {"book.txt"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "Sparse"], "methods must be of Dense, StreamingLLM"),
        (["--layers", "8"], "layers must be in 0..7, got 8"),
        (["--heads", "-1"], "heads must be in 0..7, got -1"),
        (["--group", "100"], "group_size must be a multiple of the block size 128, got 100"),
        (["--length", "0"], "length must be at least 1, got 0"),
        (["--length", "99999"], "length must be at most the model's"),
        (
            ["--text", "nowhere.txt"],
            "text must be document, retrieval, - or a text file, got 'nowhere.txt', no such file",
        ),
        (["--text", "."], "- or a text file, got '.', a folder"),
        (["--out", __file__], f"out must be a folder, got {__file__!r}, a file"),
        (["--device", "abacus"], "device must be one that PyTorch has here, got 'abacus'"),
        (["--model", "./nowhere"], "model must be 'bundled', a folder"),
        (["--length", "100"], "prompt must have more tokens than a group, 128, got 100"),
        (["--group", "2048"], "got 300: one group is dense with any threshold; take a longer"),
    ],
)
def test_compare_refuses_in_one_line(tmp_path, capsys, more, message):
    asked = ["compare", *SMALL, "AnchorAttention"]
    assert cli.main([*asked, "--out", str(tmp_path), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_text_that_is_not_there_is_refused_before_a_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr("anchor_models.models.load_pretrained", None)
    assert cli.main(["compare", "--text", "nowhere.txt"]) == 2
    assert "got 'nowhere.txt', no such file" in capsys.readouterr().err


@pytest.fixture
def capture(tmp_path):
    tokens = read_text("document", load_bundled()[1], 300).tokens
    capture_qkv(load_bundled()[0], tokens, [1], dtype=None, save_to=tmp_path / "mine")
    return str(tmp_path / "mine")


def test_compare_takes_a_saved_capture(tmp_path, capsys, capture):
    for name, more in (("model", []), ("capture", ["--capture", capture])):
        asked = ["compare", *SMALL, "StreamingLLM", "AnchorAttention", *more]
        assert cli.main([*asked, "--out", str(tmp_path / name)]) == 0
    shown = capsys.readouterr().out
    assert "capture mine, 300 tokens, groups of 128, 1 heads" in shown
    model, saved = (pd.read_csv(tmp_path / x / "compare.csv") for x in ("model", "capture"))
    assert set(saved["text"]) == {"mine"}
    pd.testing.assert_frame_equal(model.drop(columns="text"), saved.drop(columns="text"))


def test_compare_plants_stripes(tmp_path, capsys, monkeypatch):
    from anchor_lab.experiments.compare import figure as figures

    notes = []
    draw = figures.comparison_figure
    monkeypatch.setattr(
        figures, "comparison_figure", lambda *given: notes.append(given[2]) or draw(*given)
    )
    asked = ["compare", "--planted", "--length", "600", "--methods", "AnchorAttention", "Dense"]
    asked += ["--group", "128", "--out", str(tmp_path)]
    assert cli.main(asked) == 0
    said = "planted stripes, 0.03 of the keys, seed 0, 600 tokens, groups of 128, 2 heads"
    shown = capsys.readouterr().out
    floor = compare.least_density(600, 128)
    assert f"{said}. First group and windows alone are {floor:.3f} of the pairs" in shown
    assert "Mean recall beyond the first group where 60% of dense" in shown
    assert notes == [said]
    table = pd.read_csv(tmp_path / "compare.csv")
    assert sorted(set(table["head"])) == [0, 4]  # the first of each key head
    for more in (["--seed", "1"], ["--planted", "0.05"]):
        assert cli.main([*asked, *more]) == 2
        assert "holds results made with planted {'density': 0.03" in capsys.readouterr().err


def test_compare_hands_on_what_a_capture_or_planted_stripes_are_asked_for(monkeypatch):
    seen = []

    def stop(*given):
        seen.append(given)
        raise ValueError("seen enough")

    monkeypatch.setattr("anchor_lab.sources.saved_capture", stop)
    monkeypatch.setattr("anchor_lab.sources.planted", stop)
    more = ["--length", "500", "--device", "cuda:1"]
    for asked in (
        ["--capture", "a.safetensors"],
        ["--capture", "a.safetensors", *more],
        ["--planted"],
        ["--planted", "0.2", "--seed", "3", *more],
    ):
        assert cli.main(["compare", *asked]) == 2
    assert seen == [
        (Path("a.safetensors"), None, "cpu"),
        (Path("a.safetensors"), 500, "cuda:1"),
        (None, 0.03, 0, "cpu"),
        (500, 0.2, 3, "cuda:1"),
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("--capture a --planted", "--capture a makes no use of --planted"),
        ("--capture a --model bundled", "--capture a makes no use of --model"),
        ("--capture a --seed 0", "--capture a makes no use of --seed"),
        ("--capture a --text b --dtype float32", "--capture a makes no use of --dtype, --text"),
        ("--planted --model bundled", "--planted 0.03 makes no use of --model"),
        ("--planted 0.1 --text document", "--planted 0.1 makes no use of --text"),
        ("--planted --dtype bfloat16", "--planted 0.03 makes no use of --dtype"),
        ("--text a.txt --seed 0", "--text a.txt makes no use of --seed"),
        ("--capture nowhere", "path must be a capture's file or folder, found none at nowhere"),
        ("--planted 1.5", "density must be in [0, 1], got 1.5"),
        ("--planted nan", "density must be in [0, 1], got nan"),
        ("--planted --length 0", "length must be at least 1, got 0"),
        ("--planted --length 2048", "prompt must have more tokens than a group, 2048, got 2048"),
        ("--planted --length 2100 --layers 1", "layers must be in 0..0, got 1"),
        ("--planted --length 2100 --heads 8", "heads must be in 0..7, got 8"),
        ("--planted --device abacus", "device must be one that PyTorch has here, got 'abacus'"),
    ],
)
def test_compare_refuses_what_a_source_has_no_use_for_or_has_not(tmp_path, capsys, asked, message):
    assert cli.main(["compare", *asked.split(), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "compare.csv").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--length", "301"], "length must be in 1..300, the tokens of mine, got 301"),
        (["--layers", "0"], "layers must be in 1..1, got 0"),
        (["--heads", "8"], "heads must be in 0..7, got 8"),
        (["--group", "384"], "prompt must have more tokens than a group, 384, got 300"),
    ],
)
def test_compare_refuses_what_a_capture_has_not(tmp_path, capsys, capture, more, message):
    out = str(tmp_path / "out")
    small = ["--group", "128", *more]
    assert cli.main(["compare", "--capture", capture, "--out", out, *small]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_capture_needs_safetensors(monkeypatch, capsys):
    monkeypatch.setattr(common, "find_spec", lambda name: None if name == "safetensors" else True)
    assert cli.main(["compare", "--capture", "a"]) == 2
    assert "compare --capture needs safetensors: pip install" in capsys.readouterr().err


def test_compare_takes_one_query_head_of_each_key_head_unless_told():
    def source(heads, key_heads):
        return replace(planted(64), heads=heads, key_heads=key_heads)

    some = source(range(8), 2)
    assert compare.chosen_heads(None, some) == [0, 4]
    assert compare.chosen_heads(["all"], some) is None
    with pytest.raises(ValueError, match="numbers, or all alone, got all beside 3"):
        compare.chosen_heads(["all", 3], some)
    assert compare.chosen_heads([3, 5], some) == [3, 5]
    assert compare.chosen_heads(None, source(range(3), 3)) == [0, 1, 2]
    assert compare.chosen_heads(None, source((2, 3, 6, 7), 2)) == [2, 6]


def test_the_level_of_the_summary_is_one_that_first_group_and_windows_leave_room_for():
    floors = {n: compare.least_density(n, 2048) for n in (2304, 4096, 8192)}
    assert floors[4096] == pytest.approx(0.531, abs=5e-4)
    assert [compare.level_above(x) for x in floors.values()] == [0.9, 0.6, 0.5]
    assert compare.least_density(4096, 2048, tail=2048) == 1.0
    assert compare.level_above(1.0) == 1.0


def test_a_missing_package_is_named_with_its_extra(monkeypatch, capsys):
    monkeypatch.setattr(common, "find_spec", lambda name: None if name == "tqdm" else True)
    assert cli.main(["compare"]) == 2
    assert "compare needs tqdm: pip install '.[models,lab,notebooks]'" in capsys.readouterr().err
