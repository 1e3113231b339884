"""What is not measured yet is found by comparing what is there with what could be asked."""

import pytest

from anchor_lab.experiments.answers import measure
from anchor_lab.experiments.answers.prompts import PLACEMENTS, TASKS
from anchor_lab.experiments.verdict.missing import by_cells, no_line, not_asked
from tests.anchor_lab.experiments.verdict import results

N, AT = 8192, "answers at 8\u202f064 tokens"
OURS = ("tail 0", "tail 128", "tail 512", "tail 1024", measure.SECOND_CALL)


def every_dense(right=50):
    """Dense attention was asked everything, and answers two kinds of it."""
    return [
        results.asked(8064, "dense", right if (task, place) in TELLING else 5, 50, task, place)
        for task in TASKS
        for place in PLACEMENTS
    ]


TELLING = (("single", "end"), ("words", "turn"))


def asked(ways, kinds=TELLING):
    return [results.asked(8064, way, 40, 50, *kind) for way in ways for kind in kinds]


def whole():
    ways = {name for part in measure.PARTS for name in measure.ways_of(part)} - {"dense"}
    return [*every_dense(), *asked(ways)]


def without(rows, way, kind=None):
    return [
        row for row in rows
        if row["way"] != way or (kind is not None and (row["task"], row["placement"]) != kind)
    ]  # fmt: skip


def test_nothing_is_missing_where_all_was_asked():
    assert not_asked(whole(), N) == []


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("MoBA", f"{AT} of MoBA"),
        ("MoBA, tail 512", f"{AT} of MoBA with a tail of 512 rows"),
        ("tail 128", f"{AT} of AnchorAttention (tail 128)"),
        ("AnchorAttention, mean", f"{AT} with corrections (AnchorAttention, mean)"),
    ],
)
def test_a_way_that_was_not_asked_is_named_and_one_asked_in_part_with_its_part(way, said):
    assert not_asked(without(whole(), way), N) == [said]
    part = without(whole(), way, TELLING[1])
    assert not_asked(part, N) == [f"{said}, but for single (end)"]


def test_rivals_that_nobody_asked_are_every_other_method():
    found = not_asked([*every_dense(), *asked(OURS)], N)
    assert found[:2] == [
        f"{AT} of every other method",
        f"{AT} of every other method with a tail of 512 rows",
    ]


def test_those_asked_alike_are_told_together():
    rows = without(without(whole(), "SALE"), "MoBA", TELLING[0])
    rows = without(without(rows, "BFLA"), "XAttention", TELLING[0])
    assert not_asked(rows, N) == [
        f"{AT} of XAttention, MoBA, but for words (turn)",
        f"{AT} of SALE, BFLA",
    ]


def test_prompts_that_dense_attention_was_not_asked_are_counted():
    rows = [row for row in whole() if row["task"] != "secret"]
    assert not_asked(rows, N) == [
        f"{AT} of dense attention, and so of all others, in 3 of 15 kinds of prompts"
    ]


def test_where_dense_attention_alone_was_asked_others_are_told_elsewhere():
    assert not_asked(every_dense(), N) == []
    assert not_asked([], N) == []


def test_cells_that_say_nothing_are_not_missed():
    assert by_cells(["a"], {}) == []
    telling = {(1, "t", "p"): {"dense": 1}, (1, "u", "p"): {"dense": 1, "a": 1}}
    assert by_cells(["a", "b"], telling) == [(["a"], [(1, "u", "p")]), (["b"], [])]


def test_published_methods_without_a_line_are_named():
    lines = [results.lost("SALE", "a", 0.1, 0.1)]
    assert "SALE" not in no_line(lines)
    assert {"XAttention", "AnchorAttention"} <= {*no_line(lines)}
    assert "TokenTopK" not in no_line([])
