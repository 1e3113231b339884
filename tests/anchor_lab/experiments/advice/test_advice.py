"""The answers to a model's owner: read from other results, and said as they are."""

import pytest

from anchor_lab.experiments.advice import facts
from anchor_lab.experiments.advice.page import EXPERIMENT, values
from anchor_lab.experiments.lengths.measure import THETAS
from anchor_lab.experiments.store import write_json
from tests.tree import ROOT


def prefill(n, sdpa, auto, always, sparse=0, model="smollm2"):
    return [
        {
            "part": "prefill", "model": model, "keys": n, "way": way, "ms": {"median": ms},
            "sparse_layers": sparse if way == "auto" else 0,
        }
        for way, ms in (("sdpa", sdpa), ("auto", auto), ("always", always))
    ]  # fmt: skip


TIMES = [
    *prefill(1000, 10.0, 11.0, 8.0),  # faster by chance, and slower again beyond
    *prefill(2000, 10.0, 11.0, 20.0),
    *prefill(4000, 30.0, 31.0, 20.0),
    *prefill(8000, 90.0, 31.0, 30.0, sparse=30),
    *prefill(500, 10.0, 1.0, 1.0, model="random"),
    {"part": "prefill", "model": "smollm2", "keys": 9000, "way": "sdpa", "ms": {"median": 1.0}},
]
CROSSOVER = {"settings": {"device": "a GPU"}, "rows": TIMES}


def asked(n, task, way, found):
    return {"length": n, "task": task, "placement": "end", "way": way, "found": found}


ANSWERS = {
    "settings": {},
    "rows": [
        asked(4000, "single", "dense", [1] * 10),
        asked(4000, "single", "tail 0", [1] * 2 + [0] * 8),
        asked(4000, "single", "tail 512", [1] * 10),
        asked(8000, "single", "dense", [1] * 10),
        asked(8000, "single", "tail 0", [0] * 10),
        asked(8000, "single", "tail 512", [1] * 7 + [0] * 3),
        asked(8000, "variable", "dense", [1] + [0] * 9),  # says nothing
        asked(8000, "variable", "tail 512", [0] * 10),
        asked(8000, "single", "XAttention", [1] * 10),
    ],
}


def test_faster_means_from_there_on():
    found = facts.prefills(TIMES)
    assert list(found) == [1000, 2000, 4000, 8000]  # of 9000 tokens two ways are missing
    assert facts.faster_from(found) == 4000
    assert found[8000].gain == 3
    assert facts.faster_from({n: found[n] for n in (1000, 2000)}) is None
    assert facts.faster_from({}) is None


def test_the_page_says_where_it_pays_and_where_not():
    one = values({"crossover": CROSSOVER})
    assert one["faster"] == {
        "from": "4\u202f000",
        "longest": "8\u202f000",
        "gains": ["1.50 times as fast at 4\u202f000", "3.00 times as fast at 8\u202f000"],
        "worst": ["2\u202f000", "2.00"],
        "auto": ["4\u202f000"],
    }
    assert one["missing"] == ["answers", "lengths", "losses"]
    text = EXPERIMENT.page({"crossover": CROSSOVER}, ROOT)
    assert "On a GPU from 4\u202f000 tokens on: 1.50 times as fast" in text
    assert (
        "at 2\u202f000 tokens, where it takes 2.00 times as long: **do not use it there**" in text
    )
    assert "**Not measured yet:** answers, lengths, losses." in text
    assert "(../answers/answers.md)" not in text


def test_where_nothing_is_gained_it_says_do_not_use_it():
    rows = prefill(1000, 10.0, 11.0, 12.0) + prefill(2000, 10.0, 11.0, 10.0)
    text = EXPERIMENT.page({"crossover": {**CROSSOVER, "rows": rows}}, ROOT)
    assert "it is not faster, up to 2\u202f000 tokens: **do not use it here**." in text


def test_attention_bounds_the_gain_by_its_share_of_the_dense_prefill():
    call = {"part": "calls", "way": "dense", "q_heads": 9, "kv_heads": 3, "head_dim": 64}
    call |= {"queries": 8000, "keys": 8000, "ms": {"median": 2.0}}
    rows = [*prefill(8000, 100.0, 50.0, 40.0), call]
    rows[2]["sparse_layers"] = 10
    assert facts.most_gain(rows) == {8000: pytest.approx((0.2, 1.25))}
    assert facts.most_gain(rows[:3]) == {}  # attention was not measured alone
    (line,) = values({"crossover": {**CROSSOVER, "rows": rows}})["times"]
    assert line[6:8] == ["20 %", "1.25"]


def test_answers_are_said_to_be_kept_or_lost_by_length():
    found = values({"crossover": CROSSOVER, "answers": ANSWERS})["answers"]
    assert found["kept"] == ["4\u202f000"]
    words = "8\u202f000 tokens, 7 of 10 where dense attention finds 10 (3 are lost, 0 won)"
    assert found["lost"] == [words]
    assert found["mended"] == [["8\u202f000", []]]
    assert not found["open"]  # prefills gain from 4000 on
    assert len(found["paper_lost"]) == 2
    assert [line[:3] for line in found["cells"]] == [["8\u202f000", "single", "end"]]
    assert found["ways"] == ["tail 0", "tail 512"]
    assert found["table"][1][2].startswith("0 of 10")
    text = EXPERIMENT.page({"crossover": CROSSOVER, "answers": ANSWERS}, ROOT)
    assert "yes at 4\u202f000 tokens, within 2 % of the prompts" in text
    assert f"**no** at {words}: **do not use it there**" in text
    assert "At 8\u202f000 tokens nothing that was tried keeps them." in text


def test_what_keeps_the_answers_is_named_and_where_nothing_was_asked():
    rows = [
        *ANSWERS["rows"],
        asked(8000, "single", "tail 1024", [1] * 10),
        asked(8000, "single", "second dense call", [1] * 9 + [0]),
    ]
    found = values({"crossover": CROSSOVER, "answers": {"settings": {}, "rows": rows}})["answers"]
    assert found["ways"] == ["tail 0", "tail 512", "tail 1024", "second dense call"]
    assert found["mended"] == [["8\u202f000", ["tail 1024"]]]
    times = [row for row in TIMES if row["keys"] not in (4000, 8000)]
    times += prefill(16_000, 90.0, 31.0, 30.0, sparse=30)
    crossover = {**CROSSOVER, "rows": times}
    text = EXPERIMENT.page({"crossover": crossover, "answers": ANSWERS}, ROOT)
    assert "gain, from 16\u202f000 tokens on, nothing was asked**: the longest" in text
    assert "are of 8\u202f000 tokens." in text


def test_a_task_that_loses_too_many_is_named_where_all_together_are_kept():
    """Nine of ten tasks keep all: 98 of 100, and the tenth loses two of its ten."""
    rows = []
    for task in "abcdefghij":
        kept = [1] * 10 if task != "j" else [1] * 8 + [0] * 2
        rows += [asked(4000, task, "dense", [1] * 10), asked(4000, task, "tail 512", kept)]
    results = {"crossover": CROSSOVER, "answers": {"settings": {}, "rows": rows}}
    found = values(results)["answers"]
    assert found["kept"] == ["4\u202f000"]
    line = "j, end, 4\u202f000 tokens: 8 of 10 where dense attention finds 10"
    assert found["kept_but"] == [line]
    assert f"together, **but some tasks by themselves lose more** ({line}). Where" in (
        EXPERIMENT.page(results, ROOT)
    )
    # Where all together are lost, every one of them stands in the table below.
    lost = {"settings": {}, "rows": rows[-2:]}
    assert values({"crossover": CROSSOVER, "answers": lost})["answers"]["kept_but"] == []


def test_a_prompt_that_leaves_room_for_an_answer_counts_as_long_as_both():
    assert facts.gaining([16_384, 32_639, 32_640, 65_536], 32_768) == [32_640, 65_536]
    assert facts.gaining([32_640], None) == []
    times = [row for row in TIMES if row["keys"] not in (4000, 8000)]
    times += prefill(8128, 90.0, 31.0, 30.0, sparse=30)
    results = {"crossover": {**CROSSOVER, "rows": times}, "answers": ANSWERS}
    found = values(results)["answers"]
    assert (found["open"], found["longer"]) == (False, False)
    assert found["gaining"] == [["8\u202f000", 10, False]]
    text = EXPERIMENT.page(results, ROOT)
    said = "from 8\u202f128 tokens on, answers were asked at 8\u202f000 tokens (10 prompts: lost)"
    assert f"{said}, room for an answer counted. As" in text
    assert "nothing was asked" not in text
    results["crossover"]["rows"] = times + prefill(16_000, 90.0, 31.0, 30.0, sparse=30)
    text = EXPERIMENT.page(results, ROOT)
    assert f"{said}, room for an answer counted; of longer prompts nothing. As" in text


def test_the_second_dense_call_tells_where_answers_are_lost_with_a_tail():
    """Only where it finds too few as well."""
    second = asked(8000, "single", "second dense call", [1] * 6 + [0] * 4)
    results = {"crossover": CROSSOVER}
    for row, told in ((second, True), ({**second, "found": [1] * 10}, False), (None, False)):
        rows = [*ANSWERS["rows"], *([row] if row else [])]
        answers = {"settings": {}, "rows": rows}
        found = values({**results, "answers": answers})["answers"]["why"]
        wanted = {"tokens": "8\u202f000", "prompts": 10, "dense": 10, "tail": 7, "second": 6}
        assert found == (wanted if told else None)
        text = EXPERIMENT.page({**results, "answers": answers}, ROOT)
        said = "the second dense call finds 6, the tail 7, and dense attention throughout 10."
        assert (said in text) is told


def test_the_second_dense_call_is_told_of_the_length_with_most_prompts():
    """A few long prompts tell less than many; of as many the longer are told."""

    def lost(n, tasks):
        return [
            asked(n, task, way, [1] * right + [0] * (10 - right))
            for task in tasks
            for way, right in (("dense", 10), ("tail 512", 7), ("second dense call", 6))
        ]

    rows = [*lost(4000, "ab"), *lost(8000, "ab"), *lost(16_000, "a")]
    answers = {"settings": {}, "rows": rows}
    found = values({"crossover": CROSSOVER, "answers": answers})["answers"]["why"]
    assert (found["tokens"], found["prompts"]) == ("8\u202f000", 20)
    assert (found["dense"], found["tail"], found["second"]) == (20, 14, 12)


def test_tails_are_compared_on_the_same_prompts():
    """A cell that one of them was not asked in would make it look better or worse than it is."""
    rows = [
        *ANSWERS["rows"],
        asked(4000, "words", "dense", [1] * 10),
        asked(4000, "words", "tail 512", [0] * 10),
    ]
    found = facts.answers(rows, ["tail 0", "tail 512", "tail 1024"])
    assert {way: one.prompts for way, one in found[4000].items()} == {"tail 0": 10, "tail 512": 10}
    assert found[4000]["tail 512"].ours == 10


def test_the_gain_is_that_of_turns_where_they_were_measured_so():
    rows = prefill(4000, 30.0, 31.0, 20.0)
    rows[2]["over_sdpa"] = {"median": 0.8}
    assert facts.prefills(rows)[4000].gain == pytest.approx(1.25)


def test_pairs_and_losses_come_from_their_own_results():
    ten = len(THETAS)
    names = ("density", "recall", "recall_p10", "error")
    heads = {name: [0.5] * ten for name in names}
    ends = {name: [0.5] * ten for name in ("density_most", "recall_least", "error_most")}
    cell = {"part": "heads", "length": 4000, "text": "code", "layer": 0, "floor": 0.1}
    lengths = {
        "settings": {"thetas": [None, *THETAS[1:]]},
        "rows": [{**cell, **heads, **ends}],
    }
    lost = {
        "method": "AnchorAttention", "configuration": "theta=12", "density": 0.6,
        "total_cost": 0.7, "runs": {"prose": [0.25, 0.25]}, "classes": {}, "eighths": {},
        "worst": {},
    }  # fmt: skip
    dense = {"method": "Dense", "configuration": "default", "counts": {"prose": [1, 1, 6]}}
    read = {"settings": {"tokens": 8192, "texts": {"prose": "hash"}}, "rows": [dense, lost]}
    novel = {"settings": {"tokens": 4096, "texts": {"lorna_doone": "hash"}}, "rows": [dense, lost]}
    results = {"crossover": CROSSOVER, "lengths": lengths, "losses": read}
    one = values(results | {"brought": {"lorna_doone": novel}})
    assert [line[-2:] for line in one["times"]] == [
        ["–", "–"], ["–", "–"], ["50 %", "0.500"], ["–", "–"],
    ]  # fmt: skip
    table = [["theta=12", "60 %", "0.2500 (0.2500 to 0.2500)"]]
    assert one["losses"] == [
        {"name": name, "texts": texts, "tokens": n, "repeat": "25 %", "table": table}
        for name, texts, n in (
            ("losses", "prose", "8\u202f192"),
            ("lorna_doone", "a novel", "4\u202f096"),
        )
    ]
    text = EXPERIMENT.page(results | {"brought": {"lorna_doone": novel}}, ROOT)
    said = "A novel (4\u202f096 tokens), 25 % of whose tokens do ([lorna_doone]"
    assert f"{said}(../losses/lorna_doone.md)):" in text


def test_the_command_reads_what_lies_beside_it(tmp_path, capsys):
    out = tmp_path / "advice" / "advice.md"
    assert EXPERIMENT.run(["--out", str(out)]) == 2
    assert "crossover must come first" in capsys.readouterr().err
    (tmp_path / "crossover").mkdir()
    (tmp_path / "losses").mkdir()
    write_json(tmp_path / "crossover" / "crossover.json", CROSSOVER["settings"], TIMES)
    write_json(tmp_path / "losses" / "emma.json", {"texts": {}}, [])
    assert list(EXPERIMENT.read(out)["brought"]) == ["emma"]
    (tmp_path / "losses" / "emma.json").unlink()
    assert EXPERIMENT.run(["--out", str(out)]) == 0
    assert "from 4\u202f000 tokens on" in out.read_text("utf-8")
