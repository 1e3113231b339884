"""README's table of methods: those measured, at the longest length that is complete."""

import pytest

from anchor_lab.experiments import store
from anchor_lab.experiments.losses.measure import TEXTS
from anchor_lab.experiments.losses.page import of_level
from anchor_lab.experiments.page import percent, spaced
from anchor_lab.experiments.rivals.page import EXPERIMENT, of_length
from tests.tools.made_up import METHODS, OURS, ROOM, losses, lost_row, recalls, table
from tests.tree import RESULTS
from tools import standing

READ = {"rows": []}  # of lengths: nothing is read worse at once


def test_recall_and_loss_put_methods_in_different_places():
    found = standing.data_standing([losses(8192)], table(recalls(8192)))
    assert found.pairs[OURS] == pytest.approx(0.4)
    assert found.cost[OURS] == pytest.approx(0.5)
    assert (found.ahead, found.reach, found.cost_place) == (["SALE"], 3, 2)
    assert found.level == pytest.approx({12.0: 0.6, 9.0: 0.2})
    assert found.lost[9.0]["XAttention"].mean == pytest.approx(0.04)
    assert (found.place(12.0), found.place(9.0)) == (3, 3)
    assert found.behind == ["MoBA"]
    assert list(found.classes.values()) == pytest.approx([0.4, 0.3, 1 / 7])
    assert found.eighths[0] == pytest.approx(7.5 * found.eighths[1], rel=0.1)


def test_the_table_shows_who_is_ahead_by_either_and_names_the_rest():
    found = standing.data_standing([losses(8192)], table(recalls(8192)))
    said = standing.beats([losses(8192)], table(recalls(8192)))
    rows = [line for line in said.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| SALE | 20 % | 30 % | 0.010 | 0.020 |",
        "| **AnchorAttention** | 40 % | 50 % | 0.200 | 0.300 |",
        "| XAttention | – | – | 0.020 | 0.040 |",
        "| *oracle: our test on each row's own scores* | 20 % | 30 % | −0.002 | 0.000 |",
    ]
    assert "loss at 60 % of the pairs | loss at 20 % of the pairs |" in said
    assert "8\u202f192 tokens of prose, code, chat" in said
    assert "Behind AnchorAttention by both: MoBA." in said
    said = standing.texts([losses(8192)], table(recalls(8192)), READ)
    first, *rest = (f"{x:.2f}" for x in found.eighths)
    words = (
        f"loses {first} in the first eighth of its groups of 2048 rows, where the window is short"
    )
    assert f"{words}, {min(rest)} to {max(rest)} in the others" in said
    assert first > max(rest)


def test_a_longer_length_is_taken_where_it_is_complete():
    both = table(recalls(8192), recalls(32_768))
    files = [losses(8192), losses(32_768)]
    assert standing.data_standing(files, both).n == 32_768
    assert "tokens: [long.md](results/losses/long.md)" in standing.beats(files, both)
    assert "tokens: [losses.md](results/losses/losses.md)" in standing.beats(files[:1], both)
    assert standing.data_standing(files[:1], both).n == 8192
    assert standing.data_standing(files, table(recalls(8192))).n == 8192
    fewer = [name for name in METHODS if name != "SALE"]
    assert standing.data_standing([files[0], losses(32_768, fewer)], both).n == 8192
    lacking = table(recalls(8192), recalls(32_768, fewer))
    assert standing.data_standing(files, lacking).n == 8192
    files[1]["rows"] = [x for x in files[1]["rows"] if x["configuration"] != "theta=9"]
    assert standing.data_standing(files, both).n == 8192
    # Oracles and variants are not waited for.
    known = [name for name in METHODS if name not in ("AnchorBlocks", ROOM)]
    files[1] = losses(32_768, known)
    assert standing.data_standing(files, both).n == 32_768


def test_a_dash_says_where_the_sweep_ends():
    said = standing.beats([losses(8192)], table(recalls(8192)))
    words = (
        'can keep. "–": not reached by the configurations that were read: XAttention\'s end at a '
        "recall of 0.600, with 60 % of the pairs. Behind"
    )
    assert words in said
    far = [{**row, "recall_mean": 0.96} if row["density"] == 0.6 else row
           for row in recalls(8192)]  # fmt: skip
    assert "–" not in standing.beats([losses(8192)], table(far)).split("Behind")[0]


def test_who_ends_before_is_behind_only_with_more_pairs_than_ours():
    """Of two that lose most, one ends with more pairs than ours needs, the other with fewer."""
    made = losses(8192)
    for row in made["rows"]:
        if row["method"] == "XAttention":
            row["runs"] = {text: [1.0, 1.0] for text in row["runs"]}
    rows = recalls(8192)
    assert standing.data_standing([made], table(rows)).behind == ["MoBA", "XAttention"]
    for row in rows:
        if row["method"] == "XAttention":
            row["density"] /= 2  # .3 at its end, where ours has its recall with .4
    assert standing.data_standing([made], table(rows)).behind == ["MoBA"]


def test_who_has_no_recall_at_all_is_not_said_to_be_behind_by_it():
    made = losses(8192)
    made["rows"] += [
        lost_row("TriangleMix", label, x, 0.9) for label, x in (("a", 0.2), ("b", 0.6))
    ]
    found = standing.data_standing([made], table(recalls(8192)))
    assert "TriangleMix" not in found.behind
    said = standing.beats([made], table(recalls(8192)))
    assert "| TriangleMix | – | – | 0.900 | 0.900 |" in said
    assert "; no recall was measured of TriangleMix. Behind" in said


def test_longer_texts_that_the_model_does_not_read_carry_their_limit():
    fewer = [name for name in METHODS if name != "SALE"]
    files, both = [losses(8192), losses(32_768, fewer)], table(recalls(8192), recalls(32_768))
    row = {"part": "reads", "text": "code", "whole": [2.0], "pieces": [1.5]}

    def said(**changed):
        read = {"rows": [{**row, "length": 32_768, **changed}]}
        return "worse at once" in standing.texts(files, both, read)

    assert said()
    assert not said(whole=[1.0])
    assert not said(length=8192)
    assert not said(text="a novel")
    text = standing.texts(files, both, {"rows": [{**row, "length": 32_768}]})
    assert "long.md). Such texts (code) the model reads worse at once than in pieces" in text
    assert "([lengths.md](../results/lengths/lengths.md))" in text


def test_a_new_method_comes_in_by_itself():
    files, rows = [losses(8192)], recalls(8192)
    files[0]["rows"].append(lost_row("NewMethod", "a", 0.1, 0.005))
    rows.append({**rows[0], "method": "NewMethod", "configuration": "a", "density": 0.1,
                 "recall_mean": 0.97})  # fmt: skip
    found = standing.data_standing(files, table(rows))
    assert found.ahead == ["NewMethod", "SALE"]
    assert found.place(12.0) == 4
    assert "| NewMethod | 10 % |" in standing.beats(files, table(rows))


def test_results_that_share_no_length_are_refused():
    with pytest.raises(ValueError, match=r"got losses of \[8192\] and rivals of \[32768\] tokens"):
        standing.data_standing([losses(8192)], table(recalls(32_768)))


def test_a_text_that_somebody_brought_has_a_sentence_and_no_other_say():
    emma = losses(8192, texts=("emma",))
    for row in emma["rows"]:
        if row["method"] == OURS:
            row["runs"]["emma"] = [0.001, 0.001]
    files = [losses(8192), emma]
    (brought,) = standing.data_others(files, 8192, READ)
    assert (brought.what, brought.tokens, brought.place, brought.of) == ("emma", 8192, 1, 4)
    assert (brought.pairs, brought.lost) == (0.6, {12.0: 0.001, 9.0: 0.001})
    assert standing.data_standing(files, table(recalls(8192))).place(12.0) == 3
    said = standing.texts(files, table(recalls(8192)), READ)
    words = "On emma (8\u202f192 tokens) it loses 0.001 with 60 % of the pairs, number 1 of 4"
    assert f"{words}: [emma.md](../results/losses/emma.md)." in said
    assert "On emma" not in standing.texts(files[:1], table(recalls(8192)), READ)


def test_longer_texts_have_a_sentence_until_the_table_is_of_them():
    fewer = [name for name in METHODS if name != "SALE"]
    files = [losses(8192), losses(32_768, fewer)]
    both = table(recalls(8192), recalls(32_768))
    words = "On longer texts of these kinds (32\u202f768 tokens) it loses 0.200 with 60 % of the"
    assert f"{words} pairs, number 2 of 3 (SALE not measured): [long.md]" in standing.texts(
        files, both, READ
    )
    files[1] = losses(32_768)
    assert "of these kinds" not in standing.texts(files, both, READ)


def test_the_places_are_those_of_the_pages_of_results():
    files = [store.read(path) for path in sorted((RESULTS / "losses").glob("*.json"))]
    rivals = EXPERIMENT.read(RESULTS / EXPERIMENT.file)
    found = standing.data_standing(files, rivals)
    one = next(
        x for x in files
        if x["settings"]["tokens"] == found.n and set(x["settings"]["texts"]) == {*TEXTS}
    )  # fmt: skip
    for theta in found.lost:
        page = of_level(one["rows"], theta, "density", list(TEXTS))
        assert (page["place"], page["of"]) == (
            found.place(theta),
            len(standing.published(found.lost[theta])),
        )
    page = of_length(rivals["rows"], found.n)
    assert (page["ahead"], page["of"]) == (found.ahead, found.reach)


def test_the_extension_stands_beside_the_method_as_published_at_the_longest_length():
    def made(part, n, way, **found):
        return {"part": part, "length": n, "text": "prose", "way": way, **found}

    ways = {"dense": (1.0, 4.0), "paper, θ = 12": (1.5, 2.0), "R = 4, by head": (1.125, 1.0)}
    rows = [
        row
        for n in (8192, 32_768)
        for way, (lost, ms) in ways.items()
        for row in (
            made("losses", n, way, losses=[lost * n / 32_768], density=0.5),
            made("times", n, way, ms=[ms]),
        )
    ]
    assert "Answers" not in standing.beyond({"rows": rows})
    for way, right in zip(ways, ([1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]), strict=True):
        rows.append({**made("answers", 8064, way, found=right), "text": "single"})
    said = standing.beyond({"rows": rows})
    assert "it finds 2 of 4 where dense attention finds 3 and the paper's test 1." in said
    assert f"loses 0.125 nats in place of 0.500 at {spaced(32_768)} tokens" in said
    shares = percent(0.25), percent(0.5)
    assert "in {} of dense attention's time in place of {}".format(*shares) in said
