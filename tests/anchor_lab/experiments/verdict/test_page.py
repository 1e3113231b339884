"""The page and its figure: said from the data, with what is missing, and marked as it is known."""

from itertools import pairwise

import pytest
from matplotlib import pyplot as plt

from anchor_lab.experiments import store
from anchor_lab.experiments.verdict import ahead, asked, figure, words
from anchor_lab.experiments.verdict.page import EXPERIMENT, gather, values
from anchor_lab.experiments.verdict.times import Kind
from tests.anchor_lab.experiments.verdict import results
from tests.tree import RESULTS

N = 8192


def whole(n=N):
    """Losses where ours is second of three, and everything else that the page can be told."""
    ours = [
        results.lost("AnchorAttention", f"theta={theta}", results.density_for(kept), loss, cost)
        for theta, kept, loss, cost in ((9, 0.15, 0.2, 0.3), (12, 0.3, 0.1, 0.5))
    ]
    others = [
        results.lost("XAttention", "a", 0.22, 0.05),
        results.lost("XAttention", "b", 0.6, 0.01),
        results.lost("BFLA", "a", 0.22, 0.5),
        results.lost("BFLA", "b", 0.8, 0.4),
    ]
    rows = [
        *results.curve("AnchorAttention", 0.1, 0.2, 0.3),
        *results.curve("XAttention", 0.2, 0.3, 0.4),
        *results.curve("PooledTopK", 0.1, 0.15, 0.2),
    ]
    right = {"dense": 50, "tail 0": 10, "tail 512": 50, "XAttention": 5, "TriangleMix": 49}
    answers = [results.asked(8064, way, count) for way, count in right.items()]
    return {
        "losses": results.losses(*ours, *others, tokens=n),
        "rivals": results.rivals(*rows),
        "answers": {"settings": {"device": "a GPU"}, "rows": answers},
        "side_by_side": results.side_by_side(
            results.timed(32_768, "AnchorAttention", "tail 0", 0.5, 3.0, goal="recall 0.95"),
            results.of_blocks(32_768, "XAttention", 0.3, "recall 0.95", scored=0.1),
        ),
        "crossover": results.crossover(),
    }


def test_three_sentences_are_made_from_the_data():
    first, second, third = values(whole())["sentences"]
    assert first == (
        "At 8\u202f192 tokens the whole model loses least, by modelled times, with XAttention for "
        "40 % and 80 % of cuDNN's time for dense attention; AnchorAttention spends more than 40 % "
        "and is number 2 of 3 published methods at 80 %; the fastest dense attention takes 90 % "
        "of cuDNN's time."
    )
    assert second.startswith("At 32\u202f768 tokens, where neither losses nor recall")
    assert "that of AnchorAttention for 0.95 (3 ms)" in second
    assert third.startswith(
        "At 8\u202f064 tokens, of the 50 prompts that 4 ways were asked (single (end)), "
        "AnchorAttention, tail 512 answers as many as dense attention (50 of 50 ("
    )
    assert ") in least time (" in third
    assert third.endswith(
        "; AnchorAttention answers 10 as published and 50 with the tail of models."
    )


def test_the_sentence_follows_the_numbers_when_they_turn():
    made = whole()
    for row in made["losses"]["rows"]:
        if row["method"] == "XAttention":
            row["runs"] = {text: [3.0 + x for x in runs] for text, runs in row["runs"].items()}
    (first, *_) = values(made)["sentences"]
    assert "with BFLA for 40 % and with AnchorAttention for 80 % of cuDNN's time" in first
    assert "AnchorAttention spends more than 40 % and is number 1 of 3" in first
    made["answers"]["rows"] = made["answers"]["rows"][:2]
    third = values(made)["sentences"][2]
    assert "nobody whose time is known answers as many as dense attention (50 of 50" in third
    assert "of the 50 prompts that one way was asked (single (end)), nobody" in third


def test_no_sentence_names_more_than_two_methods_at_a_level():
    """Five that lose the same: two are named, and how many more there are."""
    names = ["XAttention", "BFLA", "SALE", "MoBA", "Triangle"]
    made = whole()
    made["losses"]["rows"] = [
        results.lost("AnchorAttention", "theta=12", results.density_for(0.3), 0.5),
        *(results.lost(name, "a", 0.1, 0.1) for name in names),
    ]
    first = values(made)["sentences"][0]
    assert "with XAttention, BFLA or 3 others for 20 %" in first
    assert not any(name in first for name in names[2:])
    assert "is number 6 of 6 published methods at 80 %" in first
    del made["losses"]["rows"][4:]
    assert "with XAttention, BFLA or another one for" in values(made)["sentences"][0]


def test_answers_are_compared_on_the_prompts_that_all_were_asked():
    """Ours was also asked harder ones: they are counted apart, in words, table and figure."""
    made = whole()
    more = {"dense": 40, "tail 0": 0, "tail 512": 30}
    made["answers"]["rows"] += [
        results.asked(8064, way, count, task="words") for way, count in more.items()
    ]
    third = values(made)["sentences"][2]
    assert "of the 50 prompts that 4 ways were asked (single (end)), " in third
    assert "AnchorAttention answers 10 as published and 50 with the tail of models" in third
    assert (
        "; of 100 that it was asked in all, 10 and 80, where dense attention answers 90" in third
    )
    (one, _) = values(made)["lengths"]
    same, own = one["answers"]
    assert (same["ways"], same["asked"], same["dense"][:8]) == (4, "single (end)", "50 of 50")
    assert {line[0]: line[1][:8] for line in same["lines"]} == {
        "AnchorAttention, tail 512": "50 of 50",
        "TriangleMix": "49 of 50",
        "AnchorAttention": "10 of 50",
        "XAttention": "5 of 50 ",
    }
    assert (own["ways"], own["asked"], own["dense"][:9]) == (
        2, "single (end); words (end)", "90 of 100",
    )  # fmt: skip
    assert {line[0]: line[1][:9] for line in own["lines"]} == {
        "AnchorAttention, tail 512": "80 of 100",
        "AnchorAttention": "10 of 100",
    }
    text = EXPERIMENT.page(made, RESULTS / "verdict" / "verdict.md")
    assert "\n\nAnswers to prompts of 8\u202f064 tokens, of the kinds" in text
    assert "\n\n4 ways, asked: single (end). Dense attention finds 50 of 50 (" in text
    assert "\n\n2 ways, asked: single (end); words (end). Dense attention finds 90" in text
    (row,) = [x for x in figure.of(made, N, ahead.clocks_of(made)[N]) if x.what == figure.ANSWERS]
    assert row.curves["time"]["AnchorAttention"].y == [20, 100]
    assert row.title == "8\u202f192 tokens, the same 50 prompts: single (end)"


def lengths_read(*worse, n=32_768):
    """Results of `lengths`: these texts are read worse at once, chat is not."""
    rows = [
        {"part": "reads", "length": n, "text": text, "whole": [2.0 if text in worse else 1.0],
         "pieces": [1.5]}
        for text in (*worse, "chat")
    ]  # fmt: skip
    return {"settings": {"device": "a GPU"}, "rows": rows}


def test_losses_of_texts_that_the_model_does_not_read_carry_their_limit():
    made = {**whole(), "long losses": long_losses(), "lengths": lengths_read("prose", "code")}
    path = RESULTS / "verdict" / "verdict.md"
    text, second = EXPERIMENT.page(made, path), values(made)["sentences"][1]
    said = "these kinds (prose, code) the model reads worse at once than in pieces"
    assert text.count(said) == 1
    assert text.index("## 32\u202f768 tokens") < text.index(said)
    assert "([lengths](../lengths/lengths.md)): on the whole it gains nothing" in text
    assert second.endswith("gains nothing from far tokens on the whole, see below.")
    for other in (lengths_read(), lengths_read("prose", n=65_536)):
        made["lengths"] = other
        assert "worse at once" not in EXPERIMENT.page(made, path)
        assert "see below" not in values(made)["sentences"][1]
    made["lengths"] = lengths_read("prose")  # one of two: what is read worse is named, no more
    assert "kinds (prose) the model reads worse at once" in EXPERIMENT.page(made, path)
    assert "see below" not in values(made)["sentences"][1]
    made["lengths"] = lengths_read("lyrics")  # whose losses nobody measured
    assert "worse at once" not in EXPERIMENT.page(made, path)
    without = {**whole(), "lengths": lengths_read("prose")}  # nothing is lost there yet
    assert "worse at once" not in EXPERIMENT.page(without, path)
    assert "see below" not in " ".join(values(without)["sentences"])


def test_recall_speaks_where_no_loss_is_measured():
    made = whole(n=4096)
    (first, *_) = values(made)["sentences"]
    assert first.startswith("At 8\u202f192 tokens, where no loss is measured yet, heads keep most")
    assert "losses at 8\u202f192 tokens" in values(made)["missing"]


def test_recall_has_a_sentence_of_its_own_beside_losses():
    (one, other) = values(whole())["lengths"]
    assert one["by_recall"].startswith("At 8\u202f192 tokens heads keep most of their attention")
    assert (
        "with AnchorAttention for 20 % and with XAttention or AnchorAttention for 80 % of"
        in (one["by_recall"])
    )
    assert "dense attention's work" in one["by_recall"]  # no time of ours is known there
    assert "cuDNN" not in one["by_recall"]
    assert other["by_recall"] is None


@pytest.mark.parametrize(
    "name", ["losses", "rivals", "answers", "lengths", "side_by_side", "crossover"]
)
def test_what_is_missing_is_said_and_the_rest_is_there(name):
    made = {**whole(), "lengths": lengths_read("prose")}
    assert name not in values(made)["missing"]
    del made[name]
    found = values(made)
    assert name in found["missing"]
    assert len(found["sentences"]) == 3
    text = EXPERIMENT.page(made, RESULTS / "verdict" / "verdict.md")
    assert f"\n- {name}\n" in text[text.index("**Not measured yet:**") :]
    assert f"(../{name}/{name}.md)" not in text
    plt.close(EXPERIMENT.draw(made))


def test_nothing_at_all_is_said_to_be_nothing():
    text = EXPERIMENT.page({}, RESULTS / "verdict" / "verdict.md")
    assert "At 8\u202f192 tokens nothing is measured yet." in text
    assert "**held**" not in text
    plt.close(EXPERIMENT.draw({}))


def test_modelled_times_are_marked_in_every_table():
    (one, _) = values(whole())["lengths"]
    cells = {line[0]: line[2:] for line in one["losses"]}  # four of time, then four of total cost
    assert cells["BFLA"][1].endswith(" m")
    assert cells["XAttention"][1].endswith(" c")
    assert cells["AnchorAttention"][2] not in ("–", "")
    assert not cells["AnchorAttention"][2].endswith((" c", " m", " x"))
    assert not any(
        cell.endswith((" c", " m", " x")) for line in cells.values() for cell in line[4:]
    )
    known = {line[0]: line[-1] for line in one["answers"][0]["lines"]}
    assert known == {
        "AnchorAttention": "measured",
        "AnchorAttention, tail 512": "measured",
        "TriangleMix": "not known",
        "XAttention": "not known",
    }


def test_times_at_equal_recall_say_how_they_are_known():
    (_, one) = values(whole())["lengths"]
    known = {line[1]: line[-1] for line in one["equal_recall"]}
    assert known == {
        "AnchorAttention": "measured",
        "XAttention": "attention measured, choice modelled",
    }


def test_of_ways_that_find_enough_the_one_with_the_least_time_is_named():
    made = whole()
    for row in made["answers"]["rows"]:
        row["found"] = [1] * 50
    third = values(made)["sentences"][2]
    assert "AnchorAttention answers as many as dense attention (50 of 50 (" in third
    assert " in least time (65 % of cuDNN's);" in third


def long_losses():
    """Losses of 32 768 tokens, where ours is the first of three."""
    keeps = [(theta, results.density_for(kept, 32_768)) for theta, kept in ((9, 0.15), (12, 0.3))]
    return results.losses(
        *(
            results.lost("AnchorAttention", f"theta={theta}", density, 0.03, density)
            for theta, density in keeps
        ),
        results.lost("XAttention", "a", 0.22, 0.05),
        results.lost("XAttention", "b", 0.6, 0.04),
        results.lost("BFLA", "a", 0.22, 0.5),
        results.lost("AnchorBlocks", "a", keeps[0][1], 0.09),
        results.lost("AnchorBlocks", "b", keeps[1][1], 0.08),
        tokens=32_768,
    )


def test_losses_of_long_texts_have_a_sentence_a_table_a_claim_and_a_row_of_the_figure():
    made, before = whole(), values(whole())
    made["long losses"] = long_losses()
    found = values(made)
    first, second, third = found["sentences"]
    assert [first, third] == [before["sentences"][0], before["sentences"][2]]
    assert second.startswith("At 32\u202f768 tokens the whole model loses least")
    assert "with AnchorAttention for" in second
    assert "losses at 32\u202f768 tokens" in before["missing"]
    assert "losses at 32\u202f768 tokens" not in found["missing"]
    assert any(
        x.startswith("losses of") and "SALE" in x and x.endswith("at 32\u202f768 tokens")
        for x in found["missing"]
    )
    assert "long losses" not in before["missing"]
    (one, other) = found["lengths"]
    assert one == before["lengths"][0]
    assert (
        next(x for x in other["losses"] if x[0] == "BFLA")[6:] == ["–", "0.5000"] + ["0.5000"] * 2
    )
    assert [x[0] for x in other["ours"]] == ["theta=9", "theta=12"]
    told = {x[1]: x[2:] for x in found["claims"] if x[1].endswith("loss for as many pairs")}
    assert list(told) == [
        f"{n} tokens, loss for as many pairs" for n in ("8\u202f192", "32\u202f768")
    ]
    assert told["32\u202f768 tokens, loss for as many pairs"][0] == "held"
    text = EXPERIMENT.page(made, RESULTS / "verdict" / "verdict.md")
    assert "[long losses](../losses/long.md)" in text
    rows = [
        (row.n, row.what) for n, clock in ahead.clocks_of(made).items()
        for row in figure.of(made, n, clock)
    ]  # fmt: skip
    assert rows == [(N, figure.LOSS), (N, figure.ANSWERS), (32_768, figure.LOSS)]


def test_losses_of_long_texts_alone_are_losses():
    made = {**whole(), "long losses": long_losses()}
    del made["losses"]
    missing = values(made)["missing"]
    assert "losses at 8\u202f192 tokens" in missing
    assert "losses" not in missing
    assert len([x for x in values(made)["claims"] if "loss for as many pairs" in x[1]]) == 1


def test_where_dense_attention_finds_too_few_its_own_counts_are_shown():
    made = whole()
    made["answers"]["rows"] += [
        results.asked(32_640, "dense", 10),
        results.asked(32_640, "dense", 24, task="words"),
    ]
    found = values(made)
    assert "answers at 32\u202f768 tokens" not in found["missing"]
    (one, other) = found["lengths"]
    assert one["few"] == []
    assert [x[:2] for x in other["few"]] == [["single", "end"], ["words", "end"]]
    assert other["few"][0][2].startswith("10 of 50 (")
    before = values(whole())["sentences"]
    assert found["sentences"][:2] == before[:2]
    assert found["sentences"][2].startswith(before[2])
    said = "At 32\u202f640 tokens dense attention itself finds 34 of 100 ("
    assert said in found["sentences"][2]
    text = EXPERIMENT.page(made, RESULTS / "verdict" / "verdict.md")
    assert "| words | end | 24 of 50 (" in text
    assert (
        "Answers to prompts of 32\u202f640 tokens: tasks that dense attention itself answers"
        in text
    )
    plt.close(EXPERIMENT.draw(made))


def test_a_task_that_dense_attention_answers_is_not_measured_yet_and_is_no_excuse():
    made = whole()
    made["answers"]["rows"] += [
        results.asked(32_640, "dense", 10),
        results.asked(32_640, "dense", 25, task="words"),  # half is enough
    ]
    found = values(made)
    assert "answers at 32\u202f768 tokens" in found["missing"]
    assert [x[0] for x in found["lengths"][1]["few"]] == ["single"]
    assert "itself finds" not in found["sentences"][2]


def test_where_nothing_else_was_asked_too_few_is_the_sentence():
    made = whole()
    made["answers"]["rows"] = [results.asked(32_640, "dense", 10)]
    found = values(made)
    assert found["sentences"][2].startswith("At 32\u202f640 tokens dense attention itself finds")
    assert "answers at 8\u202f192 tokens" in found["missing"]


def test_a_table_that_is_not_full_says_whom_it_lacks():
    made = whole()
    found = values(made)["missing"]
    for what in ("losses", "recall"):
        (said,) = (x for x in found if x.startswith(f"{what} of "))
        assert said.endswith(" at 8\u202f192 tokens")
        named = said.removeprefix(f"{what} of ").partition(" at ")[0].split(", ")
        assert "SALE" in named
        assert ("BFLA" in named) is (what == "recall")
    assert "answers at 8\u202f064 tokens of XAttention with a tail of 512 rows" not in found
    assert "answers at 8\u202f064 tokens of every other method with a tail of 512 rows" in found
    rows = results.curve("XAttention", 0.1, 0.2, 0.3, n=32_768)  # a run that was cut off
    made["rivals"]["rows"] += rows
    found = values(made)
    assert "recall at 32\u202f768 tokens" in found["missing"]
    assert found["sentences"][1].startswith("At 32\u202f768 tokens, where neither losses nor")
    plt.close(EXPERIMENT.draw(made))


def test_without_calls_of_ours_its_place_is_not_known():
    made = {key: value for key, value in whole().items() if key != "crossover"}
    (first, *_) = values(made)["sentences"]
    assert "for 40 % and 80 % of dense attention's work; AnchorAttention is number 2 of 3" in first


def test_cells_of_time_and_of_cost_are_not_mixed():
    (one, _) = values(whole())["lengths"]
    header = values(whole())["header"]
    cells = dict(zip(header, next(x for x in one["losses"] if x[0] == "XAttention"), strict=True))
    # from .22 to .6 of the pairs the loss falls from .05 to .01; .1 + .8 · pairs is their time
    at_time = 0.05 - 0.04 * (0.4 - 0.276) / (0.58 - 0.276)
    at_cost = 0.05 - 0.04 * (0.4 - 0.22) / (0.6 - 0.22)
    assert cells["time 40 %"] == f"{at_time:.4f} c"
    assert cells["cost 40 %"] == f"{at_cost:.4f}"


def test_ours_by_theta_is_measured_and_beside_it_modelled():
    (one, _) = values(whole())["lengths"]
    line = next(x for x in one["ours"] if x[0] == "theta=12")
    assert line[2] == "50 %"
    assert line[4:] == ["1.3", "65 %", "50 %"]


def test_the_figure_shows_what_is_known_of_each_time():
    made = whole()
    clocks = ahead.clocks_of(made)
    lines = ahead.timed(made["losses"]["rows"], clocks[N])
    curves = figure.data_curves(lines, "time")
    assert curves["AnchorAttention"].kinds == [Kind.MEASURED] * 2
    assert curves["XAttention"].x == sorted(curves["XAttention"].x)
    assert curves["XAttention"].y == pytest.approx([0.05, 0.01])
    assert Kind.MODELLED in curves["BFLA"].kinds
    assert figure.data_curves(lines, "total_cost")["XAttention"].x == [0.22, 0.6]
    (most,) = asked.comparisons(made["answers"]["rows"], N, made["losses"]["rows"], clocks[N])
    answers = figure.data_answers(most.ways, "time")
    assert answers["AnchorAttention"].y == [20, 100]
    assert list(answers) == ["AnchorAttention"]  # what others cost is not known here


def test_who_leads_has_a_colour_and_ours_has_its_own():
    ranking = ahead.Ranking("time", 0.5, {"A": None}, ["A", "AnchorAttention", "B"], [])
    colours = figure.colours_of(["A", "AnchorAttention", "B"], [ranking])
    assert colours["B"] == figure.GREY
    assert len(set(colours.values())) == 3


@pytest.mark.parametrize(
    "places", [[], [0.5], [0.5, 0.5, 0.5], [0.0, 0.99, 1.0, 1.0], [i / 40 for i in range(41)]]
)
def test_names_are_spread_in_order_and_stay_inside(places):
    found = figure.spread(places, 0.1)
    gap = min(0.1, 1 / max(1, len(places) - 1))
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(found))
    assert all(-1e-9 <= x <= 1 + 1e-9 for x in found)


def test_nobody_is_ahead_where_few_can_be_compared():
    few = ahead.Ranking("time", 0.2, {"BFLA": None, "MoBA": None, "SALE": None}, [], [])
    assert words.of_length(N, [few], [], {}, []) == (
        "At 8\u202f192 tokens too few methods can be compared yet."
    )


def test_the_command_reads_what_lies_beside_it(tmp_path, capsys):
    out = tmp_path / "verdict" / "verdict.md"
    assert EXPERIMENT.run(["--out", str(out)]) == 2
    assert "losses or rivals must come first" in capsys.readouterr().err
    made = whole()
    for name in ("losses", "side_by_side", "crossover"):
        (tmp_path / name).mkdir()
        one = made[name]
        store.write_json(tmp_path / name / f"{name}.json", one["settings"], one["rows"])
    assert gather(out).keys() == {"losses", "side_by_side", "crossover"}
    long = long_losses()
    store.write_json(tmp_path / "losses" / "long.json", long["settings"], long["rows"])
    assert gather(out)["long losses"] == {"runs": [], **long}
    for more in ([], ["--table"]):
        assert EXPERIMENT.run(["--out", str(out), *more]) == 0
        assert "number 2 of 3 published methods at 80 %" in out.read_text("utf-8")
        assert out.with_suffix(".png").exists()


def test_the_committed_page_is_what_the_committed_results_give():
    """After new results: python -m anchor_lab verdict --table."""
    path = RESULTS / "verdict" / "verdict.md"
    assert path.read_text("utf-8") == EXPERIMENT.page(gather(path), path)
