"""Answers in the report: asked with its θ, kept in its folder, shown on its page."""

import json

import pytest

from anchor_lab import cli
from anchor_lab.experiments.answers import run
from anchor_lab.report import tables
from tests.anchor_lab.report.test_forecast import VALUES


@pytest.fixture
def asked(monkeypatch):
    """In the place of the model's answers: dense attention finds all, AnchorAttention none."""
    seen = []

    def answers(model, tokenizer, prompts, way, new_tokens):
        seen.append(way)
        return [prompts[0].answer if way.theta is None else "nothing"]

    monkeypatch.setattr(run, "answers", answers)
    return seen


@pytest.fixture
def small(tmp_path):
    """A command that measures one head, and no speed."""
    rates = tmp_path / "rates.json"
    rates.write_text(json.dumps(VALUES))
    command = ["inspect", "--length", "2304", "--layers", "7", "--heads", "5", "--theta", "9"]
    return [*command, "--rates", str(rates), "--out", str(tmp_path)]


def test_a_report_asks_with_its_threshold_and_shows_what_was_found(tmp_path, capsys, asked, small):
    assert cli.main([*small, "--answers", "2"]) == 0
    said = capsys.readouterr().out
    assert "Dense attention finds 8 of 8 (68–100 %), AnchorAttention 0: answers are lost" in said
    assert {(way.theta, way.tail) for way in asked} == {(None, 0), (9.0, 512)}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Which answers are found" in page
    assert "2 of 2 (34–100 %)" in page
    assert "0 of 2 (0–66 %)" in page
    kept = json.loads((tmp_path / "answers_9" / "answers.json").read_text())
    assert len(kept["rows"]) == len(asked) == 16


def test_without_being_asked_for_the_report_has_none(capsys, asked, small, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "anchor_lab.report.render.render_report", lambda *given, **more: seen.update(more)
    )
    assert cli.main(small) == 0
    assert not asked
    assert "ANSWERS" not in seen
    assert "Dense attention finds" not in capsys.readouterr().out


def test_fewer_than_none_are_refused(small, capsys):
    assert cli.main([*small, "--answers", "-1"]) == 2
    assert "answers must be at least 0, got -1" in capsys.readouterr().err


def test_the_table_names_its_columns():
    found = tables.answers_table([["single", "end", "2 of 2", "1 of 2", "1", "0", ""]])
    for words in ("task", "AnchorAttention", "single", "1 of 2", "lost"):
        assert words in found
