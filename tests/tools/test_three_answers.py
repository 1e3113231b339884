"""What README says first: when it pays, what it loses, what beats it."""

import pytest

from anchor_lab.experiments.lengths.measure import THETAS
from tests.tools.made_up import METHODS, losses, recalls, table
from tools import three_answers


def prefills(model, *times, turns=True):
    """Rows of (length, ms of sdpa, ms of always), whose slowest turns take 1.05 of the median."""
    rows = []
    for n, dense, ours in times:
        for way, ms in (("sdpa", dense), ("always", ours)):
            row = {"part": "prefill", "model": model, "way": way, "keys": n, "queries": n}
            row |= {"ms": {"median": ms}, "sparse_layers": 16 * (way == "always")}
            over = {"median": ms / dense, "p10": ms / dense, "p90": 1.05 * ms / dense}
            rows.append({**row, "over_sdpa": over} if turns else row)
    return rows


def crossover(*times, large=((8192, 100.0, 99.0), (16_384, 200.0, 150.0))):
    rows = prefills("smollm2", *times) + prefills("random", *large)
    return {"settings": {"device": "GPU", "torch": "2"}, "runs": [], "rows": rows}


TIMES = ((2048, 10.0, 5.0), (4096, 20.0, 28.0), (8192, 30.0, 29.0), (32_768, 100.0, 60.0),
         (65_536, 400.0, 100.0))  # fmt: skip


def test_it_pays_from_where_it_is_faster_in_nine_of_ten_turns():
    found = three_answers.data_crossing(crossover(*TIMES)["rows"], "smollm2")
    assert [n for n, _ in found.before] == [4096, 8192]  # up to a group nothing is dropped
    assert found.after == [(32_768, 0.6), (65_536, 0.25)]
    assert found.in_words(" of X") == (
        "up to 1.40 of X at 4\u202f096 to 8\u202f192 tokens, 0.60 at 32\u202f768, "
        "0.25 at 65\u202f536"
    )
    alone = prefills("smollm2", (8192, 30.0, 29.0), turns=False)
    assert three_answers.data_crossing(alone, "smollm2").after == [(8192, 29 / 30)]


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([(4096, 1.0, 2.0)], "up to 2.00 of X at 4\u202f096 tokens"),
        ([(4096, 4.0, 2.0)], "0.50 of X at 4\u202f096"),
        (
            [(4096, 4.0, 2.0), (8192, 1.0, 2.0)],
            "up to 2.00 of X at 4\u202f096 to 8\u202f192 tokens",
        ),
    ],
)
def test_a_model_that_gains_nowhere_or_everywhere_is_told_so(times, words):
    found = three_answers.data_crossing(prefills("smollm2", *times), "smollm2")
    assert found.in_words(" of X") == words


def test_a_model_that_was_not_prefilled_is_refused():
    with pytest.raises(ValueError, match="prefilled beyond a group, got 'random'"):
        three_answers.data_crossing(prefills("smollm2", *TIMES), "random")


def lengths():
    def by_theta(twelve, nine):
        return [{12.0: twelve, 9.0: nine}.get(theta, 0.5) for theta in THETAS]

    row = {"part": "heads", "length": 8192, "text": "prose", "layer": 0, "floor": 0.2}
    row |= dict.fromkeys(("density", "density_most"), by_theta(0.6, 0.4))
    row |= dict.fromkeys(("recall", "recall_p10", "recall_least"), by_theta(0.99, 0.97))
    row |= dict.fromkeys(("error", "error_most"), by_theta(0.1, 0.2))
    return {"settings": {"thetas": list(THETAS)}, "rows": [row]}


def test_prefills_stand_beside_what_the_heads_keep():
    times = crossover(*TIMES)
    call = {"part": "calls", "way": "dense", "q_heads": 9, "kv_heads": 3, "head_dim": 64}
    call |= {"queries": 32_768, "keys": 32_768, "ms": {"median": 3.9}}  # 16 layers, of 100 ms
    times["rows"].append(call)
    said = three_answers.pays(times, lengths())
    rows = [line for line in said.splitlines() if line.startswith("| ")][2:]
    assert rows[1] == ("| 8\u202f192 | 0.97 | 0.99 | 30 | 29 | – | 60 / 40 | 0.990 / 0.970 |")
    assert rows[2] == "| 32\u202f768 | 0.60 | – | 100 | 60 | 62 % | – | – |"
    assert len(rows) == 4
    assert "the same of 16 of the 32 layers" in said
    assert "time is the host's" not in said
    slower = crossover(*TIMES[:2], (8192, 19.0, 29.0), *TIMES[3:])
    assert "Where a longer prompt took less time" in three_answers.pays(slower, lengths())


def smollm2():
    rows = []
    for n in (4096, 8064):
        for prompt in range(10):
            for way, right in (("dense", 9), ("tail 0", n // 2048), ("tail 512", 8)):
                row = {"part": "answers", "length": n, "prompt": prompt, "way": way}
                rows.append({**row, "found": prompt < right})
    return {"settings": {}, "rows": rows}


READ = {"rows": []}  # no text is read worse at once


def asked():
    found = {"dense": [1, 1, 1, 0], "tail 512": [1, 0, 1, 0], "tail 0": [0, 0, 0, 0]}
    rows = [
        {"length": n, "task": task, "placement": "end", "way": way, "found": right}
        for n in (4096, 8064, 16_384)
        for task in ("single", "words")
        for way, right in found.items()
    ]
    rows += [
        {"length": 8064, "task": "secret", "placement": "end", "way": way, "found": [0, 0, 1]}
        for way in found  # dense finds too few
    ]
    return {"settings": {}, "rows": rows}


def test_answers_have_their_intervals():
    said = three_answers.loses(smollm2())
    assert "| 8\u202f064 | 10 | 9 (60–98 %) | 3 (11–60 %) | 8 (49–94 %) |" in said


def test_the_three_answers_are_those_of_the_results():
    files, rivals = [losses(8192)], table(recalls(8192))
    said = three_answers.three_answers(crossover(*TIMES), smollm2(), asked(), files, rivals, READ)
    pays, loses, beats = said.strip().splitlines()
    assert "On one GPU a prefill of SmolLM2" in pays
    assert "takes up to 1.40 times as long as with dense attention at 4\u202f096" in pays
    assert "layers of an 8B model up to 0.99 at 8\u202f192 tokens, 0.75 at 16\u202f384." in pays
    assert "Of 10 numbers hidden in prompts of 8\u202f064 tokens" in loses
    assert "finds 9, AnchorAttention as the paper writes it 3, and 8 with the *tail*" in loses
    assert (
        "Of facts of 2 kinds 4 are found so at 8\u202f064 tokens where dense attention finds 6 "
        "of 8. Of facts of 2 kinds 4 are found so at 16\u202f384 tokens where"
    ) in loses
    assert "0.200 nats a token at the published threshold, θ = 12, 0.300 at θ = 9." in loses
    assert "For 95 % of the attention mass it keeps 40 % of the pairs: number 2 of the 3" in beats
    assert "behind SALE, and number 2 when the work of choosing is counted." in beats
    assert "number 3 of 4 on texts that repeat themselves (prose, code, chat)" in beats
    assert "its tokens that repeat something far back lose 0.40 nats, new ones 0.14" in beats
    assert "; SALE, the first, loses 0.010 over all." in beats


def test_a_text_that_somebody_brought_is_named_for_what_it_is():
    files = [losses(8192), losses(8192, texts=("lorna_doone",))]
    said = three_answers.three_answers(
        crossover(*TIMES), smollm2(), asked(), files, table(recalls(8192)), READ
    )
    _, loses, beats = said.strip().splitlines()
    assert "θ = 12, 0.300 at θ = 9; on a novel 0.200 and 0.300." in loses
    assert "On a novel it is number 3 of 4." in beats


def test_longer_texts_say_what_they_lack_and_whether_the_model_reads_them():
    fewer = [name for name in METHODS if name != "SALE"]
    files, both = [losses(8192), losses(32_768, fewer)], table(recalls(8192), recalls(32_768))
    row = {"part": "reads", "length": 32_768, "text": "code", "whole": [2.0], "pieces": [1.5]}
    times, unread = crossover(*TIMES), {"rows": [row]}
    said = three_answers.three_answers(times, smollm2(), asked(), files, both, unread)
    beats = said.strip().splitlines()[2]
    words = (
        "On longer texts of these kinds, which this model reads no better than in pieces, it is"
    )
    assert f"{words} number 2 of 3 (SALE not measured)." in beats
    said = three_answers.three_answers(times, smollm2(), asked(), files, both, READ)
    assert "in pieces" not in said


def test_answers_of_one_kind_are_said_to_be_of_one():
    one = asked()
    one["rows"] = [x for x in one["rows"] if (x["length"], x["task"]) != (16_384, "words")]
    files, rivals = [losses(8192)], table(recalls(8192))
    said = three_answers.three_answers(crossover(*TIMES), smollm2(), one, files, rivals, READ)
    assert "Of facts of one kind 2 are found so at 16\u202f384 tokens where dense" in said


def test_a_recall_that_is_never_reached_is_said():
    rows = [row for row in recalls(8192) if row["configuration"] != "theta=12"]
    said = three_answers.three_answers(
        crossover(*TIMES), smollm2(), asked(), [losses(8192)], table(rows), READ
    )
    assert "It does not keep 95 % of the attention mass at any θ." in said
    assert "number 3 of 4" in said
