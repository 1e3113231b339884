"""Measuring goes on where it stopped, and the page says what its numbers say."""

import json

import pytest

from anchor_lab.__main__ import main
from anchor_lab.analysis.intervals import wilson
from anchor_lab.experiments.retrieval import measure as retrieval
from anchor_lab.experiments.retrieval.figure import data_answers
from anchor_lab.experiments.retrieval.measure import POOLED, Cell, Part
from anchor_lab.experiments.retrieval.page import EXPERIMENT, fullest
from anchor_lab.experiments.store import Store, read
from anchor_lab.methods import METHODS
from tests.anchor_lab.experiments.retrieval.test_figure import cell
from tests.tree import RESULTS

HERE = RESULTS / "retrieval"
ROWS = (*retrieval.UNMATCHED, "StreamingLLM")
SMALL = {512: Part(1, ROWS, ("single", "variables"), (0.5,))}


@pytest.fixture
def committed():
    return read(HERE / "retrieval.json")


def test_the_committed_page_is_that_of_the_committed_numbers(committed):
    page = HERE / "retrieval.md"
    assert page.read_text() == EXPERIMENT.page(committed, page)


def test_the_committed_numbers_are_those_of_the_committed_plan(committed):
    rows = committed["rows"]
    wanted = [
        each
        for each in retrieval.cells(retrieval.PLAN)
        if each.row == "Dense" or each.task in retrieval.answerable_tasks(rows, each.length)
    ]
    found = [Cell(*(row[name] for name in Cell._fields)) for row in rows]
    assert sorted(wanted, key=str) == sorted(found, key=str)
    for each in rows:
        assert each["prompts"] == retrieval.PLAN[each["length"]].prompts
        assert [each["low"], each["high"]] == pytest.approx(
            wilson(each["right"] / each["asked"], each["prompts"])
        )
        if each["density"] is not None:
            assert each["kept"] == pytest.approx(each["density"], abs=0.07), each


def test_every_row_is_of_a_method():
    methods = {row.split(",")[0] for row in retrieval.ROWS}
    assert methods | set(retrieval.LATER) == set(METHODS)
    assert len(set(retrieval.ROWS)) == len(retrieval.ROWS)


@pytest.mark.parametrize("length", [1024, 8192, 16384])
def test_rows_of_other_means_have_the_same_regions_and_groups(length):
    configs = {
        row: retrieval.sweep_at(row, length)[0].config
        for row in ("AnchorAttention", *retrieval.POOLED, "PooledTopK")
    }
    regions = {(c.group_size, c.init_blocks * c.block_size) for c in configs.values()}
    assert regions == {(min(2048, length // 4), 128)}
    sizes = {row: config.block_size for row, config in configs.items()}
    assert sizes == {"AnchorAttention": 128, "PooledTopK": 128, **retrieval.POOLED}


def test_a_run_stops_goes_on_and_skips_what_dense_attention_cannot_do(tmp_path):
    asked, saved, now = [], [], iter(range(100))

    def measure(each):
        asked.append(each)
        return {"right": 0 if each.task == "variables" else 2, "asked": 4}

    def go_on():
        store = Store(tmp_path / "found.json", Cell._fields, {})
        done = retrieval.fill(store, SMALL, measure, 2.5, lambda: next(now))
        saved.append([tuple(row.values()) for row in store.rows])
        return done

    assert not go_on()
    assert asked == [(512, None, "Dense", "single"), (512, None, "Dense", "variables")]
    assert go_on()
    assert asked[2:] == [
        (512, None, retrieval.REGIONS, "single"),
        (512, 0.5, "StreamingLLM", "single"),
    ]
    assert go_on()
    assert len(asked) == 4
    assert [len(rows) for rows in saved] == [2, 4, 4]
    assert saved[1][3] == (512, 0.5, "StreamingLLM", "single", 2, 4)


def test_results_of_other_settings_are_refused(tmp_path):
    out = tmp_path / "found.json"
    call = ["--quick", "--device", "cpu", "--time-s", "-1", "--out", str(out)]
    other = {str(length): part.prompts for length, part in SMALL.items()}
    out.write_text(json.dumps({"settings": {"seeds": [0, 10_000], "prompts": other}, "rows": []}))
    with pytest.raises(ValueError, match=r"found.json holds results made with prompts .*'512': 1"):
        EXPERIMENT.measure(EXPERIMENT.parser().parse_args(call))


def test_the_command_measures_and_writes(monkeypatch, tmp_path, capsys):
    """The rows of `SMALL` are what the command finds, after a run that was over too soon."""
    monkeypatch.setattr(retrieval, "PLAN", SMALL)
    monkeypatch.setattr("anchor_lab.experiments.retrieval.page.render", lambda *_, **__: "page")
    monkeypatch.setattr("anchor_lab.experiments.retrieval.page.data_smaller_means", len)
    out = tmp_path / "small.json"
    call = ["retrieval", "--device", "cpu", "--out", str(out)]
    assert main([*call, "--time-s", "-1"]) == 1
    assert "call again" in capsys.readouterr().err
    assert not out.with_suffix(".md").exists()
    assert main(call) == 0
    results = read(out)
    found = {tuple(row[name] for name in Cell._fields): row for row in results["rows"]}
    dense = found[512, None, "Dense", "single"]
    assert (dense["right"], dense["asked"], dense["kept"]) == (1, 1, None)
    regions = found[512, None, retrieval.REGIONS, "single"]
    assert "theta=-inf" in regions["config"]
    matched = found[512, 0.5, "StreamingLLM", "single"]
    assert matched["kept"] == pytest.approx(0.5, abs=0.02)
    assert all(row["run"] == 0 for row in results["rows"])
    assert results["runs"][0].keys() == {"date"}
    assert {"model_sha256", "torch", "transformers", "device"} < results["settings"].keys()
    assert out.with_suffix(".md").read_text() == "page"
    assert out.with_suffix(".png").stat().st_size > 1000


def test_a_quick_run_has_its_page_and_picture(tmp_path):
    out = tmp_path / "quick.json"
    assert main(["retrieval", "--quick", "--device", "cpu", "--out", str(out)]) == 0
    page = out.with_suffix(".md").read_text()
    assert "Prompts: 2 at 512." in page
    assert "| Dense | 100 (34–100) | 1 |" in page
    assert "Why AnchorAttention finds" in page
    assert out.with_suffix(".png").exists()


VERDICTS = {
    "PooledMaximum": "The mean anchor is",
    "StripeOracle": "Sharing one list of keys in a group",
    "DifferenceOracle": "The test on each row's own scores does not lose them.",
}


def page_of(rows):
    """The page of rows that nobody measured."""
    settings = {"device": "none", "torch": "2", "transformers": "5"}
    results = {"settings": settings, "runs": [{"date": "today"}], "rows": rows}
    return EXPERIMENT.page(results, HERE / "retrieval.md")


@pytest.mark.parametrize("better", [*VERDICTS, "ConstantThreshold"])
def test_findings_follow_the_numbers(better):
    cells = [cell("Dense", None, 98), cell("AnchorAttention, θ = −∞", None, 20, kept=0.25)]
    for row in ("AnchorAttention", *POOLED, *VERDICTS, "ConstantThreshold"):
        cells.append(cell(row, 0.5, 95 if row == better else 21))
    said = page_of(cells)
    assert f"At least nine tenths of that: {better}." in said
    assert "θ = −∞, hold 20 (13–29)" in said
    others = [row for row in (*VERDICTS, "ConstantThreshold") if row != better]
    for row in others:
        assert row in said.split("no better than that are ")[1].split(".")[0]
    for row, subject in VERDICTS.items():
        line = next(line for line in said.splitlines() if f"(`{row}`)" in line)
        if row == "PooledMaximum":
            assert (f"{subject} what loses them." in line) == (row == better)
        elif row == "StripeOracle":
            assert (f"{subject} is not what loses them" in line) == (row == better)
        else:
            assert (subject in line) == (row == better)
    line = next(line for line in said.splitlines() if "(`ConstantThreshold`)" in line)
    assert ("loses what one constant keeps" in line) == (better == "ConstantThreshold")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({32: 21, 8: 21}, "means of 32 21 (14–30), means of 8 21 (14–30). With 50% of the pairs"),
        ({32: 21, 8: 80}, "With 50% of the pairs AnchorAttention, means of 8 finds more."),
    ],
)
def test_smaller_means_are_said_to_find_more_when_they_do(found, words):
    rows = [cell("Dense", None, 98), cell("AnchorAttention, θ = −∞", None, 20, kept=0.25)]
    rows += [cell(row, 0.5, 21) for row in ("AnchorAttention", *VERDICTS, "ConstantThreshold")]
    rows += [cell(row, 0.5, found[size]) for row, size in POOLED.items()]
    assert words in page_of(rows)
    assert ("they find no more." in page_of(rows)) == (found[8] == 21)


def test_the_length_with_the_most_rows_is_told_about():
    cells = [cell("Dense", None, 98, length=n) for n in (1024, 2048, 4096)]
    for n, rows in ((1024, 10), (2048, 9), (4096, 3)):
        cells += [cell(f"row {i}", 0.5, 50, length=n) for i in range(rows)]
    assert fullest(data_answers(cells), 0.5) == 2048
