"""Numbers of docs/limits.md are those of the results."""

import pytest

from anchor_lab.experiments.smollm2.measure import WAYS
from tests.tools.made_up import losses, recalls, table
from tools import limits


def prefill(model, n, auto, sparse=0):
    row = {"part": "prefill", "model": model, "keys": n, "queries": n}
    return [
        {**row, "way": "sdpa", "ms": {"median": 10.0}, "sparse_layers": 0},
        {**row, "way": "auto", "ms": {"median": auto}, "sparse_layers": sparse},
    ]


def test_asking_costs_what_the_worst_dense_prefill_took_longer():
    rows = prefill("a", 256, 10.2) + prefill("b", 4096, 10.4) + prefill("a", 8192, 15.0, 30)
    said = limits.asking({"settings": {"device": "GPU"}, "rows": rows})
    assert (
        "dense up to 4 % of its time, by prefills of 256 to 4\u202f096 tokens on one GPU" in said
    )
    with pytest.raises(ValueError, match="left dense, got none"):
        limits.asking({"settings": {"device": "GPU"}, "rows": prefill("a", 8192, 15.0, 30)})


def test_what_could_be_gained_is_the_share_of_attention_that_need_not_be():
    row = {"part": "prefill", "model": "smollm2"}
    call = {"part": "calls", "way": "dense", "q_heads": 9, "kv_heads": 3, "head_dim": 64}
    rows, heads = [], []
    for n in limits.AIMS:
        whole = {"keys": n, "queries": n}
        ways = (("sdpa", 100.0, 0), ("always", 80.0, 30), ("auto", 102.0, 0))
        for way, ms, sparse in ways:
            rows.append(
                {**row, **whole, "way": way, "ms": {"median": ms}, "sparse_layers": sparse}
            )
        rows.append({**call, **whole, "tail": None, "kept": None, "ms": {"median": 2.0}})
        cell = {"part": "heads", "length": n, "text": "code", "layer": 0, "floor": 0.1}
        names = ("density", "recall", "recall_p10", "error", "recall_least", "density_most")
        heads.append(cell | {name: [0.25] for name in (*names, "error_most")})
    crossover = {"settings": {"device": "GPU"}, "rows": rows}
    lengths = {"settings": {"thetas": [12.0]}, "rows": heads}
    said = limits.reach(crossover, lengths)
    assert "more than 1.03 times what dense attention takes: 1.020." in said
    assert "2.00 times as fast at 32\u202f768 tokens: 1.25; 3.00 times" in said
    assert "Attention is 60 % and 60 % of the dense ones" in said
    # 512 rows of 32 768 see everything: 3.1 % of the pairs, less what they saw before.
    assert "(27.9 % and 26.5 % of all)" in said
    assert "they would be 1.76 and 1.79 times as fast." in said
    with pytest.raises(ValueError, match=r"must be measured, got none of \[65536\]"):
        limits.reach({**crossover, "rows": rows[:4]}, lengths)


def answer(n, task, way, found, placement="end"):
    return {"length": n, "task": task, "placement": placement, "way": way, "found": found}


def answers(*lengths):
    """Of ten prompts of each of two tasks dense attention finds eight, the tails six and seven."""
    ways = {"dense": 8, "tail 512": 6, "tail 1024": 7}
    return {
        "rows": [
            answer(n, task, way, [1] * right + [0] * (10 - right))
            for n in lengths
            for task in (("single", "words") if n < 9000 else ("words",))
            for way, right in ways.items()
        ]
    }


def numbers(n, count):
    row = {"part": "answers", "length": n, "found": True}
    return {"rows": [{**row, "prompt": at, "way": way} for at in range(count) for way in WAYS]}


def always(n, ms):
    first, auto = prefill("smollm2", n, 10.0)
    return [first, auto, {**first, "way": "always", "ms": {"median": ms}}]


def test_answers_of_prompts_whose_prefills_gain_are_those_that_leave_room_for_an_answer():
    slow = [*always(4000, 20.0), *always(8192, 20.0)]
    few = numbers(4000, 7)
    said = limits.asked(few, answers(2000, 4000, 9000), {"rows": [*slow, *always(9128, 5.0)]})
    assert "few: 7 prompts a length of one kind" in said
    assert "together 20 prompts at 4\u202f000 tokens, 10 at 9\u202f000 (" in said, (
        "no shorter ones"
    )
    assert (
        "from 9\u202f128 tokens on, room for an answer counted, are those of 9\u202f000 tokens"
        in said
    )
    assert "10 of one kind (words, end), of which dense attention finds 8 and the tail of" in said
    assert "None are as long" not in said
    said = limits.asked(few, answers(4000), {"rows": [*slow, *always(9129, 5.0)]})
    assert (
        "None are as long as those whose prefills gain on SmolLM2, from 9\u202f129 tokens" in said
    )
    assert "gain" not in limits.asked(few, answers(4000), {"rows": slow})


def test_answers_that_a_tail_loses_are_told_by_length():
    said = limits.by_length(answers(4000, 9000))
    assert (
        "loses with a tail of 512 rows 4 of 16 (25 %) at 4\u202f000 tokens, 2 of 8 (25 %) at"
        in said
    )
    assert "; with one of 1024 2 of 16 (12 %) at 4\u202f000 tokens, 1 of 8 (12 %) at 9" in said


def test_what_texts_lose_is_said_of_those_that_were_brought_too():
    files = [losses(8192), losses(8192, texts=("lorna_doone",))]
    for row in files[1]["rows"]:
        row["runs"] = {"lorna_doone": [0.05, 0.05]}
    said = limits.losing(files, table(recalls(8192)), {"rows": []})
    assert "(prose, code, chat), where much is looked up: 0.200 nats a token at θ = 12;" in said
    assert "on a novel it is 0.050 ([lorna_doone](../results/losses/lorna_doone.md))." in said
    assert "novel" not in limits.losing(files[:1], table(recalls(8192)), {"rows": []})


def evaluation():
    head = {"part": "heads", "layer": 0, "head": 0, "sink": 0.1, "max_anchor": 0.9, "length": 16}
    head |= {"needle": 0.9, "recall@12": 0.99, "density@12": 0.8}
    rows = [head, {**head, "needle": 0.1, "density@12": 0.6}, {**head, "length": 8, "needle": 1.0}]
    for name, share, density in (
        (limits.EVERY, 0.12, 0.9),
        (limits.BUT_RETRIEVAL, 0.97, 0.9),
        (limits.SMALL_BLOCKS, 1.0, 0.95),
    ):
        cause = {"part": "causes", "sparse": name, "accuracy": share, "density": density}
        rows.append({**cause, "asked": 100})
    return {"rows": rows}


def test_what_the_bundled_model_loses_is_what_was_measured():
    written = [
        {"length": 8192, "theta": "12.0", "read": [True, False], "written": [True, True]},
        {"length": 8192, "theta": "9.0", "read": [False, False], "written": [False, False]},
    ]
    asked = []
    for name, density, right in (
        ("Dense", None, 10),
        (limits.OURS, None, 4),
        (limits.BARE, None, 2),
    ):
        cell = {"length": 8192, "row": name, "density": density, "task": "a", "right": right}
        asked.append({**cell, "asked": 10, "prompts": 10, "kept": 0.5})
    said = limits.small(evaluation(), written, asked)
    assert "keeps 70 % of its pairs at 16 tokens" in said
    assert "  - 12 of 100 in books" in said
    assert "  - 50 % in made-up prose that ends anywhere in a block, and 2 of 2 where" in said
    assert "end a full block, have 40 %" in said
    assert "(20 % by themselves)" in said
    assert "* Its 1 retrieval heads lose the facts" in said
    assert "finds 97 of 100 in the books" in said
    assert "finds 100, but keeps 95 % of the pairs in place of 90 %" in said
