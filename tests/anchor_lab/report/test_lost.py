"""What a report says is lost: by its text's predictions, and by answers asked with its θ."""

import json
import re
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
        "θ = 9, a tail of 512, 50 % of the pairs: +0.100 nats a token (95 %: +0.100 to +0.100), "
        "perplexity +10.5 % (+10.5 to +10.5 %): more than 0.02 nats are lost. Do not use it here."
    )
    answers = "Dense attention finds 8 of 8 (68–100 %), AnchorAttention 0: answers are lost"
    advice = "More than 2 % of these prompts are lost. Do not use it here where answers are looked"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (loss, answers, advice, f"mean over {N - 2049} in rows beyond the first group"):
        assert words in said
        assert words in page
    bold = re.findall(r"<p><b>([^<]*)</b></p>", page[page.index("What is lost here?") :])
    assert len(bold) == 3, "two losses, and the answers; what was read is plain"
    assert bold[1] == loss
    assert answers in bold[2]
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
    assert page["LOST"][-1] == ("No facts were hidden and asked for (--answers 0).", False)
    assert "nats a token" in page["LOST"][1][0]
    assert "Dense attention finds" not in capsys.readouterr().out


def test_the_text_is_not_read_where_that_is_not_wanted(tmp_path, capsys, asked, read, small, page):
    assert cli.main([*small, "--no-losses"]) == 0
    assert not read
    assert not (tmp_path / "results" / text_losses.FILE).exists()
    said = "What the predictions of the text lose was not asked (--no-losses)."
    assert page["LOST"][0] == (said, False)
    assert said in capsys.readouterr().out
    assert len(asked) == 2 * 2 * lost.PROMPTS, "facts are asked for all the same"


def test_facts_that_leave_no_sparse_rows_are_not_asked_for(asked, read, small, page, monkeypatch):
    monkeypatch.setattr(lost, "needle_length", lambda model, tokens: 2560)
    assert cli.main(small) == 0
    assert page["LOST"][-1][0] == (
        "No facts were hidden and asked for: with room for an answer a prompt has 2560 tokens, "
        "and first group, windows and a tail of 512 rows are all of its pairs."
    )
    assert not asked


def test_where_nothing_is_left_out_nothing_is_read(tmp_path, capsys, asked, read, small, page):
    assert cli.main([*small, "--length", "2304"]) == 0
    ((said, against),) = page["LOST"]
    assert not against
    assert said == (
        "Nothing can be lost at 2304 tokens: first group, windows and a tail of 512 rows are all "
        "of its pairs."
    )
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
        ("What the predictions of the text lose is not known: no such attention.", False),
        ("No facts were hidden and asked for: no such attention.", False),
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
    ("dense", "ours", "against", "more"),
    [
        (8, 8, False, False),
        (8, 7, False, True),
        (8, 3, False, True),
        (8, 2, True, False),
        (3, 0, False, False),
        (7, 8, False, False),
    ],
)
def test_use_is_advised_against_where_more_are_lost_than_chance_explains(
    dense, ours, against, more
):
    counts = Counts(8, dense, ours, max(0, dense - ours), max(0, ours - dense))
    said = lost.in_words({("single", "end"): counts}, 9.0, 4096)
    assert said.words.startswith("Facts hidden in made-up prose of 4096 tokens")
    assert said.against is ("Do not use it here" in said.words) is against
    asks = "Ask more before you use it where answers are looked up: --answers 25."
    assert said.words.endswith(asks) is more


def test_more_is_twice_what_was_asked_where_that_was_many():
    said = lost.in_words({("single", "end"): Counts(40, 40, 39, 1, 0)}, 9.0, 4096)
    assert said.words.endswith("--answers 80.")


def test_the_table_names_its_columns():
    found = tables.lost([("Said.", False)], [["single", "end", "2 of 2", "1 of 2", "1", "0", ""]])
    for words in ("<p>Said.</p>", "task", "AnchorAttention", "single", "1 of 2", "lost"):
        assert words in found
    found = tables.lost([("Said.", False), ("Not here.", True)], [])
    assert "<table" not in found
    assert "<p>Said.</p><p><b>Not here.</b></p>" in found.replace("\n", "")
