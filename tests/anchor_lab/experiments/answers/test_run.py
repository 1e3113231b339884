"""Answers for a model's owner: the function, the command, what is kept and what is refused."""

import json

import pytest
import torch

from anchor_lab import cli
from anchor_lab.experiments.answers import run
from anchor_lab.experiments.answers.counts import Counts
from anchor_lab.experiments.answers.prompts import SHORT
from anchor_lab.experiments.answers.run import open_store, short_answers
from anchor_models import Calibration, load_bundled
from anchor_ref import AnchorConfig


class Answers:
    """In the place of the model's: what is asked, and an answer where a rule says so."""

    def __init__(self, monkeypatch, right=lambda task, way: True):
        self.asked, self.right = [], right
        monkeypatch.setattr(run, "answers", self)

    def __call__(self, model, tokenizer, prompts, way, new_tokens):
        (prompt,) = prompts
        self.asked.append((prompt, way))
        ours = way.theta is not None
        return [prompt.answer if self.right(len(self.asked), ours) else "nothing"]


def test_answers_are_counted_by_task_and_placement(monkeypatch):
    told = Answers(monkeypatch, right=lambda at, ours: not ours or at % 4 == 0)
    found = short_answers(
        *load_bundled(), length=2100, tasks=["words", "single"], prompts=3, theta=5.0, tail=7
    )
    assert list(found) == [("words", "end"), ("single", "end")]
    # Of prompts 2, 4, ... every second one is answered by ours.
    assert found["words", "end"] == Counts(3, 3, 1, 2, 0)
    assert found["single", "end"] == Counts(3, 3, 2, 1, 0)
    assert {(way.theta, way.tail) for _, way in told.asked} == {(None, 0), (5.0, 7)}
    assert all(prompt.tokens.shape == (1, 2100) for prompt, _ in told.asked)
    for dense, ours in zip(told.asked[::2], told.asked[1::2], strict=True):
        assert torch.equal(dense[0].tokens, ours[0].tokens)


def test_nothing_is_asked_twice_and_more_may_be_added(monkeypatch, tmp_path):
    told = Answers(monkeypatch)
    settings, about = load_bundled(), {"model": "m"}
    given = {"length": 2100, "tasks": ["single"]}
    for prompts, asked in ((2, 4), (2, 4), (3, 6)):
        found = short_answers(
            *settings, **given, prompts=prompts, store=open_store(tmp_path, about)
        )
        assert found["single", "end"].prompts == prompts
        assert len(told.asked) == asked
    found = short_answers(*settings, **given, prompts=2, seed=1, store=open_store(tmp_path, about))
    assert len(told.asked) == 6  # seeds 1 and 2 are there


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"length": 2048}, "length must be longer than a group of 2048 tokens, .* got 2048"),
        ({"prompts": 0}, "prompts must be at least 1, got 0"),
        ({"tasks": ["maths"]}, "tasks must be one of single, .* got 'maths'"),
        ({"placements": ["here"]}, "placements must be one of end, .* got 'here'"),
        ({"tasks": []}, "tasks and placements must name at least one each"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_read(monkeypatch, given, message):
    told = Answers(monkeypatch)
    with pytest.raises(ValueError, match=message):
        short_answers(*load_bundled(), **given)
    assert not told.asked


# -- the command


def test_a_log_gets_a_line_for_each_cell_that_was_asked(tmp_path, capsys, monkeypatch):
    """stderr is no terminal here, where tqdm would be silent."""
    Answers(monkeypatch)
    asked = ["--prompts", "2", "--tasks", "single", "words", "--placements", "end", "turn"]
    assert command(tmp_path, *asked) == 0
    assert capsys.readouterr().err.splitlines() == [
        "answers: single, end: 4 of 16 done",
        "answers: single, turn: 8 of 16 done",
        "answers: words, end: 12 of 16 done",
        "answers: words, turn: 16 of 16 done",
    ]


def command(tmp_path, *more) -> int:
    return cli.main(["answers", "--length", "2100", "--out", str(tmp_path / "out"), *more])


def test_the_command_asks_a_model_and_says_what_came_of_it(tmp_path, capsys, monkeypatch):
    asked = ["--tasks", "single", "--prompts", "2", "--new-tokens", "8"]
    assert command(tmp_path, *asked) == 0
    said = capsys.readouterr().out
    assert "bundled, 2100 tokens, θ = 12, a tail of 512" in said
    assert "single end 2 of 2 (34–100 %) 2 of 2 (34–100 %) 0 0" in " ".join(said.split())
    assert said.splitlines()[-1].startswith("Dense attention finds 2 of 2 (34–100 %), Anchor")
    rows = json.loads((tmp_path / "out" / "answers.json").read_text())["rows"]
    assert [row["way"] for row in rows] == ["dense", "ours"] * 2
    assert all(row["answer"] in row["written"] for row in rows)
    monkeypatch.setattr(run, "answers", None)
    assert command(tmp_path, *asked) == 0
    assert capsys.readouterr().out == said
    assert command(tmp_path, *asked, "--tail", "0") == 2
    assert "holds results made with tail 512, this run has 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("right", "status", "words"),
    [
        (lambda at, ours: True, 0, "but 8 cannot rule out that 32 % of such prompts are lost."),
        (lambda at, ours: not ours, 1, "answers are lost (8 are lost and 0 won)"),
        (lambda at, ours: ours, 2, "too few for a loss to show"),
    ],
)
def test_the_status_is_the_conclusion(tmp_path, capsys, monkeypatch, right, status, words):
    Answers(monkeypatch, right)
    assert command(tmp_path, "--prompts", "2") == status
    assert words in capsys.readouterr().out.splitlines()[-1]


def test_a_task_that_dense_attention_cannot_do_plays_no_part(tmp_path, capsys, monkeypatch):
    # single: all; words: dense none, and ours all.
    Answers(monkeypatch, right=lambda at, ours: at <= 4 or ours)
    assert command(tmp_path, "--prompts", "2", "--tasks", "single", "words") == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("words")]
    assert line.endswith("dense finds too few")
    assert "Dense attention finds 2 of 2" in said


def test_a_calibration_is_taken_for_the_thresholds(tmp_path, monkeypatch):
    told = Answers(monkeypatch)
    table = dict.fromkeys(range(8), (9.0,) * 8)
    ones = dict.fromkeys(range(8), (1.0,) * 8)
    path = tmp_path / "theta.json"
    at = AnchorConfig(tail=64)
    Calibration(table, 0.9, ones, ones, at, (4096, 4096)).save(path)
    assert command(tmp_path, "--prompts", "1", "--theta", str(path)) == 0
    thetas = [way.theta for _, way in told.asked if way.theta is not None]
    assert all(theta.thetas == table for theta in thetas)


def test_retrieval_heads_are_kept_dense_and_written_down(tmp_path, capsys, monkeypatch):
    told = Answers(monkeypatch)
    asked = ["--prompts", "1", "--tasks", "single", "--retrieval-heads", "--theta", "7"]
    assert command(tmp_path, *asked) == 0
    said = capsys.readouterr().out
    # The model card's: these three and no other give a fact half of a row's mass.
    for place in ("layer 5 head 1 (", "layer 6 head 7 (", "layer 7 head 5 ("):
        assert place in said
    thetas = next(way.theta for _, way in told.asked if way.theta is not None)
    assert thetas[5][1] == thetas[6][7] == thetas[7][5] == float("inf")
    assert sum(x == 7.0 for row in thetas.values() for x in row) >= 64 - 6
    written = json.loads((tmp_path / "out" / "retrieval_heads.json").read_text())
    assert {int(layer): tuple(row) for layer, row in written.items()} == thetas


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "maths"], "tasks must be one of single"),
        (["--placements", "here"], "placements must be one of end"),
        (["--tail", "-1"], "tail must be"),
        (["--theta", "nan"], "theta must"),
        (["--theta", "no.json"], "theta must be a number or the file of a calibration, got 'no"),
        (["--length", "2048"], "length must be longer than a group of 2048"),
        (["--length", "99999"], "length must be at most the model's 32768 positions"),
        (["--prompts", "0"], "prompts must be at least 1, got 0"),
        (["--out", __file__], "out must be a folder"),
        (["--new-tokens", "0"], "new_tokens must be at least 1, got 0"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, capsys, more, message):
    assert command(tmp_path, *more) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert message in line


def test_all_tasks_are_asked_unless_told(monkeypatch):
    told = Answers(monkeypatch)
    found = short_answers(*load_bundled(), length=2100, prompts=1)
    assert [task for task, _ in found] == list(SHORT)
    assert len(told.asked) == 2 * len(SHORT)
