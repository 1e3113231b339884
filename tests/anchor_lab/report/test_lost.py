"""What a report says is lost: by its text's predictions, and by answers asked with its θ."""

import json
from types import SimpleNamespace

import pytest
import torch

from anchor_lab import cli
from anchor_lab.commands import lost
from anchor_lab.experiments.answers import run
from anchor_lab.experiments.answers.counts import Counts
from anchor_lab.report import tables, text_losses
from tests.anchor_lab.report.test_forecast import VALUES

N = 2600  # forty rows lie between the first group and the tail


@pytest.fixture
def asked(monkeypatch):
    """In the place of the model's answers: dense attention finds all, AnchorAttention none."""
    seen = []

    def answers(model, tokenizer, prompts, way, new_tokens):
        seen.append((prompts[0].tokens.shape[1], way.theta, way.tail))
        return [prompts[0].answer if way.theta is None else "nothing"]

    monkeypatch.setattr(run, "answers", answers)
    return seen


@pytest.fixture
def read(monkeypatch):
    """In the place of the model's losses: ours are a tenth of a nat above dense attention's."""
    seen = []

    def read(model, tokens, theta):
        seen.append(theta)
        nats = torch.linspace(1, 2, tokens.shape[1] - 1)
        return (nats, 1.0) if theta is None else (nats + 0.1, 0.5)

    monkeypatch.setattr(text_losses, "_read", read)
    return seen


@pytest.fixture
def small(tmp_path):
    """A command that measures one head, and no speed."""
    rates = tmp_path / "rates.json"
    rates.write_text(json.dumps(VALUES))
    command = ["inspect", "--length", str(N), "--layers", "7", "--heads", "5", "--theta", "9"]
    return [*command, "--text", "document", "--rates", str(rates), "--out", str(tmp_path)]


@pytest.fixture
def page(monkeypatch):
    """What is handed to the page, which is not drawn."""
    seen = {}
    monkeypatch.setattr(
        "anchor_lab.report.render.render_report", lambda *given, **more: seen.update(more)
    )
    return seen


def test_a_report_reads_and_asks_with_its_threshold_and_shows_what_was_found(
    tmp_path, capsys, asked, read, small
):
    assert cli.main(small) == 0
    said, log = capsys.readouterr()
    assert read == [None, 12.0, 9.0], "as models run it, and as the report has it"
    assert set(asked) == {(N, None, 0), (N, 9.0, 512)}
    assert len(asked) == 2 * 2 * lost.PROMPTS
    loss = (
        "θ = 9, a tail of 512, 50% of the pairs: +0.100 nats a token (95 %: +0.100 to +0.100), "
        "perplexity +10.5 % (+10.5 to +10.5 %): more than 0.02 nats are lost. Do not use it here."
    )
    answers = "Dense attention finds 8 of 8 (68–100 %), AnchorAttention 0: answers are lost"
    advice = "More than 2% of these prompts are lost. Do not use it here where answers are looked"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (loss, answers, advice, f"mean over {N - 2049} in rows beyond the first group"):
        assert words in said
        assert words in page
    assert f"<b>{loss}</b>" in page
    assert "4 of 4 (51–100 %)" in page
    assert "0 of 4 (0–49 %)" in page
    assert page.index("What is lost here?") < page.index("All heads")
    kept = json.loads((tmp_path / f"answers_9_{N}" / "answers.json").read_text())
    assert len(kept["rows"]) == len(asked)
    for line in ("losses: θ = 9: 3 of 3 done", "answers: multi-key, end: 16 of 16 done"):
        assert line in log.splitlines()
    assert cli.main(small) == 0
    assert (len(read), len(asked)) == (3, 16), "nothing is read or asked again"


def test_no_answers_are_asked_for_where_none_are_wanted(capsys, asked, read, small, page):
    assert cli.main([*small, "--answers", "0"]) == 0
    assert not asked
    assert page["ANSWERS"] == []
    assert page["LOST"][-1] == "No facts were hidden and asked for (--answers 0)."
    assert "nats a token" in page["LOST"][1]
    assert "Dense attention finds" not in capsys.readouterr().out


def test_where_nothing_is_left_out_nothing_is_read(tmp_path, capsys, asked, read, small, page):
    assert cli.main([*small, "--length", "2304"]) == 0
    (said,) = page["LOST"]
    assert said.startswith("Nothing can be lost at 2304 tokens: first group, windows and a tail")
    assert said in capsys.readouterr().out
    assert not asked
    assert not read


def test_a_model_that_cannot_be_read_or_asked_gets_a_report_with_the_reason(
    asked, small, page, monkeypatch
):
    def refuse(*_):
        raise ValueError("no such attention")

    monkeypatch.setattr(text_losses, "_read", refuse)
    monkeypatch.setattr(run, "make_prompt", refuse)
    assert cli.main(small) == 0
    assert page["LOST"] == [
        "What the predictions of the text lose is not known: no such attention.",
        "No facts were hidden and asked for: no such attention.",
    ]


@pytest.mark.parametrize("file", ["results/losses.json", f"answers_9_{N}/answers.json"])
def test_what_was_found_with_something_else_is_refused(
    tmp_path, capsys, asked, read, small, page, file
):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"settings": {"model": "another"}, "rows": []}')
    assert cli.main(small) == 2
    assert f"{path} holds results made with model 'another'" in capsys.readouterr().err


def test_fewer_than_none_are_refused(small, capsys):
    assert cli.main([*small, "--answers", "-1"]) == 2
    assert "answers must be at least 0, got -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "positions", "tokens", "length"),
    [
        ("cpu", 8192, 3000, 3000),
        ("cpu", 8192, 8192, 4096),
        ("cuda", 8192, 8192, 8180),  # twelve are left to write
        ("cuda", 32768, 8192, 8192),
        ("cuda", None, 9000, 9000),
    ],
)
def test_prompts_are_as_long_as_the_text_where_time_and_positions_allow(
    device, positions, tokens, length
):
    config = SimpleNamespace(max_position_embeddings=positions)
    config.get_text_config = lambda: config
    model = SimpleNamespace(config=config, device=torch.device(device))
    assert lost.needle_length(model, tokens) == length


@pytest.mark.parametrize(
    ("dense", "ours", "advised"), [(8, 8, False), (8, 7, True), (3, 0, False), (7, 8, False)]
)
def test_use_is_advised_against_where_answers_are_lost(dense, ours, advised):
    counts = Counts(8, dense, ours, max(0, dense - ours), max(0, ours - dense))
    said = lost.in_words({("single", "end"): counts}, 9.0, 4096)
    assert said.startswith("Facts hidden in made-up prose of 4096 tokens")
    assert ("Do not use it here" in said) is advised


def test_the_table_names_its_columns():
    found = tables.lost(["Said."], [["single", "end", "2 of 2", "1 of 2", "1", "0", ""]])
    for words in ("<p>Said.</p>", "task", "AnchorAttention", "single", "1 of 2", "lost"):
        assert words in found
    assert "<table" not in tables.lost(["Said."], [])
