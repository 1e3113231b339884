"""One runner for all experiments: what it measures, where it writes, what it refuses."""

import json
from functools import partial

import pytest

from anchor_lab import __main__ as runner
from anchor_lab.experiments.experiment import QUICK, RESULTS, Experiment, progress_by
from anchor_lab.experiments.store import Store

ABOUT = "What is counted?\n\nMore about it.\n"


def measure(seen, options):
    seen.append(options)
    if options.count < 0:
        return 3
    store = Store(options.out, ["n"], {"quick": options.quick}, {"date": "today"})
    store.add([{"n": n} for n in range(options.count)])
    return 0


def draw(results):
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots()
    ax.plot([row["n"] for row in results["rows"]])
    return figure


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """What `measure` was asked for; the only experiment there is, in a folder of its own."""
    seen = []
    counting = Experiment(
        name="counting",
        about=ABOUT,
        measure=partial(measure, seen),
        page=lambda results, path: f"{path.name}: {len(results['rows'])} rows\n",
        draw=draw,
        file="counting/counting.json",
        options=lambda parser: parser.add_argument("--count", type=int, default=2),
    )
    monkeypatch.setattr(runner, "EXPERIMENTS", {"counting": counting})
    monkeypatch.chdir(tmp_path)
    return seen


def names(folder):
    return {path.name for path in folder.iterdir()}


WRITTEN = {"counting.json", "counting.md", "counting.png"}


def test_numbers_page_and_picture_lie_in_the_folder_of_the_experiment(seen, capsys):
    assert runner.main(["counting"]) == 0
    folder = RESULTS / "counting"
    assert names(folder) == WRITTEN
    assert (folder / "counting.md").read_text() == "counting.md: 2 rows\n"
    assert capsys.readouterr().out == f"{folder / 'counting.md'} is written\n"


def test_a_quick_run_leaves_the_results_alone(seen):
    assert runner.main(["counting", "--quick"]) == 0
    assert seen[0].quick
    assert names(QUICK / "counting") == WRITTEN
    assert not RESULTS.exists()


@pytest.mark.parametrize("more", [[], ["--quick"]])
def test_out_names_the_file_and_what_lies_beside_it(seen, tmp_path, more):
    out = tmp_path / "mine" / "a.json"
    assert runner.main(["counting", "--out", str(out), "--device", "meta", *more]) == 0
    assert names(tmp_path / "mine") == {"a.json", "a.md", "a.png"}
    assert names(tmp_path) == {"mine"}
    assert (seen[0].device, seen[0].out) == ("meta", out)


def test_a_table_is_made_again_without_measuring(seen):
    assert runner.main(["counting", "--count", "5"]) == 0
    for file in ("counting.md", "counting.png"):
        (RESULTS / "counting" / file).unlink()
    assert runner.main(["counting", "--table"]) == 0
    assert len(seen) == 1
    assert names(RESULTS / "counting") == WRITTEN
    assert (RESULTS / "counting" / "counting.md").read_text() == "counting.md: 5 rows\n"
    with pytest.raises(FileNotFoundError):
        runner.main(["counting", "--table", "--quick"])


def test_what_goes_wrong_is_the_status_and_leaves_no_page(seen):
    assert runner.main(["counting", "--count", "-1"]) == 3
    assert not RESULTS.exists()


def test_an_experiment_for_a_gpu_says_so_where_there_is_none(seen, monkeypatch, capsys):
    counting = runner.EXPERIMENTS["counting"]
    needy = Experiment(**{**vars(counting), "needs_cuda": True})
    monkeypatch.setattr(runner, "EXPERIMENTS", {"counting": needy})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert runner.main(["counting", "--quick"]) == 2
    assert "counting needs a CUDA device" in capsys.readouterr().err
    assert seen == []


def test_a_picture_is_none_of_an_experiment_without_one(seen, tmp_path):
    bare = Experiment(**{**vars(runner.EXPERIMENTS["counting"]), "draw": None})
    assert bare.run(["--out", str(tmp_path / "a.json")]) == 0
    assert names(tmp_path) == {"a.json", "a.md"}


@pytest.mark.parametrize(("file", "page"), [("a.csv.gz", "a.md"), ("a.b.csv", "a.b.md")])
def test_the_page_of_a_table_has_its_name(tmp_path, file, page):
    one = Experiment(
        "one", ABOUT, lambda options: 0, lambda *_: "", "one/a.csv", read=lambda path: {}
    )
    one.write_page(tmp_path / file)
    assert names(tmp_path) == {page}


def test_a_name_that_is_none_is_refused_with_those_there_are(seen, capsys):
    assert runner.main(["caunting"]) == 2
    assert capsys.readouterr().err == "name must be one of counting, got 'caunting'\n"


@pytest.mark.parametrize("asked", [[], ["--help"]])
def test_without_a_name_it_says_what_there_is_to_run(seen, capsys, asked):
    assert runner.main(asked) == 0
    shown = capsys.readouterr().out
    assert "counting  What is counted?" in shown
    assert "--table" in shown


def test_help_of_an_experiment_is_its_own(seen, capsys):
    with pytest.raises(SystemExit):
        runner.main(["counting", "--help"])
    shown = capsys.readouterr().out
    assert "More about it." in shown
    assert "--count" in shown


@pytest.mark.parametrize("one", runner.EXPERIMENTS.values(), ids=lambda one: one.name)
def test_every_experiment_has_a_title_and_committed_results(one):
    from tests.tree import RESULTS as committed

    assert one.title.endswith((".", "?"))
    assert (committed / one.file).exists()
    assert json.dumps(one.file).count("/") == 1


def test_a_file_made_with_something_else_is_refused_in_a_line_and_stays(seen, tmp_path, capsys):
    out = tmp_path / "a.json"
    assert runner.main(["counting", "--quick", "--out", str(out)]) == 0
    before = out.read_bytes()
    capsys.readouterr()
    assert runner.main(["counting", "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "holds results made with quick True, this run has False" in said.err
    assert said.err.count("\n") == 1
    assert not said.out  # no page is written
    assert out.read_bytes() == before


@pytest.mark.parametrize("name", ["losses", "outliers"])
@pytest.mark.parametrize("words", ["", "only a few words"])
def test_a_text_that_is_too_short_is_refused_in_a_line(name, words, tmp_path, capsys):
    brought, out = tmp_path / "brief.txt", tmp_path / "a.json"
    brought.write_text(words)
    asked = [name, "--quick", "--device", "cpu", "--model", "bundled"]
    assert runner.main([*asked, "--text", str(brought), "--out", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--text must be a file that the run can read, got {brought}: length must be" in said
    assert "for brief, got" in said
    assert not out.exists()


def test_a_fault_that_no_text_has_brought_keeps_its_traceback(seen, monkeypatch):
    counting = runner.EXPERIMENTS["counting"]

    def wrong(_):
        raise ValueError("count must be even")

    monkeypatch.setattr(
        runner, "EXPERIMENTS", {"counting": Experiment(**{**vars(counting), "measure": wrong})}
    )
    with pytest.raises(ValueError, match="count must be even"):
        runner.main(["counting", "--quick"])


@pytest.mark.parametrize("more", [[], ["--table"]])
def test_a_folder_in_place_of_a_file_is_refused(seen, tmp_path, more, capsys):
    with pytest.raises(SystemExit, match="2"):
        runner.main(["counting", "--out", str(tmp_path), *more])
    assert f"--out must be a file, got the folder {tmp_path}" in capsys.readouterr().err
    assert not seen


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_a_bar_and_a_log_a_line_for_each_part(capsys, monkeypatch, terminal):
    left = ["a1", "a2", "b1"]
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert list(progress_by(left, lambda one: one[0], "reading")) == left
    said = capsys.readouterr().err
    assert (said == "reading: a: 2 of 3 done\nreading: b: 3 of 3 done\n") is not terminal
    assert ("100%" in said) is terminal
