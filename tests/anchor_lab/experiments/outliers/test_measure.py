"""The experiment on outlier rows with the bundled model: every row, resumed, written up."""

import argparse
import re
from contextlib import nullcontext

import pytest
import torch

from anchor_lab.experiments.outliers import figure, measure, reading, variants
from anchor_lab.experiments.outliers.page import EXPERIMENT, data_answers, data_few, values
from anchor_lab.experiments.outliers.texts import CALIBRATION, KINDS, texts_of, tokens_of
from anchor_lab.experiments.store import Store, read, write_json
from anchor_models import Captured, load_bundled
from tests.tree import ROOT

SHORT = {"paper": variants.FIXED["paper"], "rows": variants.FIXED["rows"]}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What a quick run on the bundled model writes, of two parts and the calibrated one."""
    path = tmp_path_factory.mktemp("outliers") / "quick.json"
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        assert run(path) == 0
    return path


def prepare(patch):
    patch.chdir(ROOT)
    patch.setattr(measure, "FIXED", SHORT)
    patch.setattr(measure, "QUICK_LENGTHS", (2100,))
    patch.setattr(measure, "QUICK_ASKED", 2100)
    patch.setattr(measure, "GRID", (1.0, 12.0))


def run(path, *more) -> int:
    fixed = ["--quick", "--model", "bundled", "--device", "cpu", "--out", str(path)]
    return EXPERIMENT.run([*fixed, *more])


def test_every_text_and_variant_has_its_row(out):
    rows = read(out)["rows"]
    found = [(row["part"], row["text"], row["variant"]) for row in rows]
    assert found == [
        ("dense", "prose", "dense"),
        ("paper", "prose", "paper, θ = 12"),
        ("rows", "prose", "R = 1, 7/6"),
        ("thetas", CALIBRATION, "calibrated to 0.95, R = 4"),
        ("calibrated", "prose", "calibrated to 0.95, R = 4"),
        ("answers", "single", "dense"),
        ("answers", "single", "paper, θ = 12"),
    ]
    assert {row["length"] for row in rows} == {2100}
    dense, paper, one = rows[:3]
    assert (dense["density"], dense["cost"]) == (1.0, 0.0)
    assert dense["recall"] == pytest.approx(1.0)
    assert one["cost"] == pytest.approx(2 * paper["cost"], abs=2e-5)
    assert all(len(row["losses"]) <= measure.RUNS for row in rows[:3])
    assert [len(layer) for layer in rows[3]["thetas"]] == [8] * 8


def test_losses_are_the_models_own_beyond_the_first_group(out):
    model, tokenizer = load_bundled()
    tokens = torch.tensor([tokens_of("prose", tokenizer, 2100, ROOT)])
    with torch.no_grad():
        logits = model(tokens).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")[2048:]
    row = read(out)["rows"][0]
    assert len(losses) == 51
    assert row["losses"] == pytest.approx(losses.tolist(), abs=1e-3)


def test_many_tokens_are_kept_as_means_of_runs():
    _, tokenizer = load_bundled()
    tokens = torch.tensor([tokens_of("prose", tokenizer, 2048 + 130, ROOT)])
    losses = torch.arange(tokens.shape[1] - 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "token_losses", lambda model, tokens: losses)
        patch.setattr(reading, "reading", lambda *_: nullcontext(reading.Kept([0.5, 0.7], [1.0])))
        found = measure.read_text(None, tokens, variants.FIXED["paper"]()[0])
    # 129 predictions in 64 runs: the first has three, each other two.
    assert found["losses"][:2] == [2049.0, 2051.5]
    assert len(found["losses"]) == 64
    assert (found["density"], found["recall"]) == (0.6, 1.0)


def test_a_prompt_of_one_group_is_refused(tmp_path, capsys):
    assert run(tmp_path / "a.json", "--lengths", "2049") == 2
    assert "--lengths must be at least 2050, got 2049" in capsys.readouterr().err


def test_a_run_that_stopped_goes_on_with_what_is_missing_alone(out, tmp_path, monkeypatch):
    prepare(monkeypatch)
    whole = read(out)
    left = [row for row in whole["rows"] if row["part"] not in ("rows", "calibrated")]
    write_json(tmp_path / "a.json", whole["settings"], left, whole["runs"])
    asked, original = [], measure.read_text
    monkeypatch.setattr(
        measure,
        "read_text",
        lambda model, tokens, variant: (
            asked.append(variant.name) or original(model, tokens, variant)
        ),
    )
    monkeypatch.setattr(measure, "capture_qkv", None)  # the thresholds are there
    assert run(tmp_path / "a.json", "--time-s", "0") == 1  # nothing is begun
    assert asked == []
    for _ in range(2):  # the second time nothing is left
        assert run(tmp_path / "a.json") == 0
    assert asked == ["R = 1, 7/6", "calibrated to 0.95, R = 4"]
    again = {measure_key(row): row for row in read(tmp_path / "a.json")["rows"]}
    for row in whole["rows"]:
        assert again[measure_key(row)].get("losses") == row.get("losses")


def measure_key(row):
    return tuple(row[name] for name in measure.KEY)


def test_long_prompts_are_read_in_fewer_ways(tmp_path):
    store = Store(tmp_path / "a.json", measure.KEY, {})
    texts = {
        (n, kind): torch.zeros(1, 1) for n in (8192, 32_768) for kind in (*KINDS, CALIBRATION)
    }

    def count(n, parts):
        jobs = measure.loss_jobs(store, None, texts, n, KINDS, parts, quick=False)
        return len(list(jobs)) - len(KINDS)  # the dense ones

    every = [one for make in variants.FIXED.values() for one in make()]
    parts = tuple(variants.FIXED)
    assert count(8192, parts) == len(KINDS) * len(every)
    assert count(32_768, parts) == len(KINDS) * sum(one.long for one in every)
    assert count(8192, ("bound",)) == len(KINDS) * len(variants.FIXED["bound"]())
    assert count(32_768, ("calibrated",)) == len(KINDS) * len(variants.CALIBRATIONS)


def test_what_is_asked_is_among_the_variants():
    known = {one.name for make in variants.FIXED.values() for one in make()}
    assert set(measure.ANSWERING) <= known


def test_heads_are_calibrated_to_the_least_threshold_that_suffices(monkeypatch):
    random = torch.Generator().manual_seed(0)
    q, k, v = (2 * torch.randn(1, heads, 2300, 16, generator=random) for heads in (4, 2, 2))
    q[:, 0] *= 0.1  # of a head whose weights lie everywhere
    x = Captured(q, k, v, 0.25)
    for make in variants.CALIBRATIONS.values():
        found = measure.calibrate(x, make, 0.9)
        recall = {}
        for theta in measure.GRID:
            method = make((theta,) * 4)
            kept = method.all_kept(q, k, 0.25)
            rows = reading.attend(q, k, v, kept, method.config, 0.25, 2**22)[1][0, :, 2048:]
            recall[theta] = rows.mean(-1)
        for head, theta in enumerate(found):
            enough = [one for one in measure.GRID if recall[one][head] >= 0.9]
            assert theta == (enough or measure.GRID[-1:])[0]
        assert len(set(found)) > 1


@pytest.mark.parametrize("kind", [*KINDS, CALIBRATION])
def test_texts_have_the_length_asked_for_and_repeat(kind):
    _, tokenizer = load_bundled()
    ids = tokens_of(kind, tokenizer, 3000, ROOT)
    assert len(ids) == 3000
    assert ids == tokens_of(kind, tokenizer, 4000, ROOT)[:3000]
    words = tokenizer.decode(ids)
    told = {"chat": "On your list for the", "records": "correction to record", "code": "def "}
    assert told.get(kind, " the ") in words


def test_a_text_that_somebody_brings_takes_the_place_of_all(tmp_path):
    _, tokenizer = load_bundled()
    (tmp_path / "emma.txt").write_text("“Très bien”, said she. " * 400, "utf-8")
    found = texts_of(KINDS, tokenizer, 1000, tmp_path / "emma.txt")
    assert list(found) == ["emma"]
    assert tokenizer.decode(found["emma"]).count("“Très bien”, said she.") > 50
    assert len(found["emma"]) == 1000
    with pytest.raises(ValueError, match=r"length must be at most .* for emma, got 100000"):
        texts_of(KINDS, tokenizer, 100_000, tmp_path / "emma.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "argument --text: must be a UTF-8 file, got .*gone.txt"),
        ("latin.txt", b"tr\xe8s bien", "argument --text: must be a UTF-8 file, got .*latin.txt"),
        ("story.txt", b"Once.", "argument --text: must be called otherwise than prose, .*, story"),
    ],
)
def test_a_text_that_cannot_be_taken_is_refused_in_a_line(
    tmp_path, capsys, name, content, message
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit):
        run(tmp_path / "a.json", "--text", str(tmp_path / name))
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "a.json").exists()


def test_other_texts_and_longer_ones_than_there_are_are_refused():
    _, tokenizer = load_bundled()
    with pytest.raises(ValueError, match=r"kind must be one of prose, .* got 'poem'"):
        tokens_of("poem", tokenizer, 10, ROOT)
    with pytest.raises(ValueError, match=r"length must be at most .* for prose, got 10000000"):
        tokens_of("prose", tokenizer, 10_000_000, ROOT)


# -- what page and picture are made of


def results() -> dict:
    """Two texts of two runs, read densely, as published at two thresholds, and otherwise."""

    def row(part, variant, text, losses, density, cost=0.0):
        return {
            "part": part, "length": 8192, "text": text, "variant": variant, "losses": losses,
            "density": density, "recall": 0.9, "cost": cost,
        }  # fmt: skip

    rows = []
    for text, base in (("prose", 1.0), ("code", 2.0)):
        rows += [
            row("dense", "dense", text, [base, base + 1], 1.0),
            row("rows", "R = 1, 7/6", text, [base + 0.01, base + 1.01], 0.48, 0.02),
            row("bound", "all rows, θ₂ = 3", text, [base, base + 1], 0.9),
            row("paper", "paper, θ = 12", text, [base + 0.02, base + 1.02], 0.6),
            row("paper", "paper, θ = 7", text, [base + 0.06, base + 1.08], 0.4),
        ]
    rows.append(row("means", "two means, θ = 9", "prose", [1.0, 1.0], 0.5))  # code is missing
    return {"settings": {}, "runs": [{"date": "2026-01-01"}], "rows": rows}


def test_what_is_saved_is_against_the_paper_with_as_many_pairs():
    lines = figure.data_lines(results()["rows"], 8192)
    assert [line.variant for line in lines] == [
        "paper, θ = 12", "paper, θ = 7", "R = 1, 7/6", "all rows, θ₂ = 3",
    ]  # fmt: skip
    found = {line.variant: line for line in lines}
    one = found["R = 1, 7/6"]
    assert one.lost == pytest.approx(0.01)
    assert one.interval == pytest.approx((0.01, 0.01))
    assert one.pairs == pytest.approx(0.5)
    # Halfway between .02 and .06, and between .02 and .08, less .01.
    saved, low, high = figure.data_saved(one, lines)
    assert saved == pytest.approx((0.03 + 0.04) / 2)
    assert 0.03 - 1e-9 <= low < saved < high <= 0.04 + 1e-9
    assert figure.data_saved(found["all rows, θ₂ = 3"], lines) is None
    assert figure.data_saved(found["paper, θ = 7"], lines)[0] == pytest.approx(0)


def test_the_page_says_which_is_better_and_what_each_text_lost():
    (table,) = values(results())["tables"]
    assert table["better"] == ["R = 1, 7/6"]
    assert table["texts"] == ["prose", "code"]
    assert table["by_text"][1] == ["paper, θ = 7", "0.0700", "0.0700"]
    line = table["lines"][2]
    assert line[:2] == ["rows", "R = 1, 7/6"]
    assert line[3:6] == ["0.480", "0.9000", "2 %"]
    assert line[6].startswith("0.0350 (0.03")


def test_answers_count_where_dense_attention_finds_half():
    def row(task, variant, found):
        return {
            "part": "answers", "length": 8064, "text": task, "variant": variant, "found": found,
            "density": 0.5,
        }  # fmt: skip

    rows = [
        row("single", "dense", [1, 1, 1, 0]),
        row("single", "paper, θ = 12", [1, 0, 0, 1]),
        row("variable", "dense", [1, 0, 0, 0]),
        row("variable", "paper, θ = 12", [1, 0, 0, 0]),
    ]
    assert data_few(rows) == ["variable"]
    ((name, density, dense, own, lost, won),) = data_answers(rows)
    assert (name, density, lost, won) == ("paper, θ = 12", "0.500", "2", "1")
    assert dense.startswith("3 of 4 (")
    assert own.startswith("2 of 4 (")


def test_the_page_of_a_run_is_written_with_its_picture(out):
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    assert out.with_suffix(".png").exists()
    assert "](quick.png)" in page
    assert "extension" in page.splitlines()[0]
    assert "| rows | R = 1, 7/6 |" in page


def test_options_name_the_parts():
    parser = argparse.ArgumentParser()
    measure.options(parser)
    assert parser.parse_args([]).parts == measure.PARTS
    with pytest.raises(SystemExit):
        parser.parse_args(["--parts", "dense"])
