"""The experiment on answers: which cells are asked, resumed, written up."""

from contextlib import nullcontext
from itertools import count as counting
from pathlib import Path

import pytest

from anchor_lab.experiments.answers import measure
from anchor_lab.experiments.answers.ask import DENSE, NEW_TOKENS, Way
from anchor_lab.experiments.answers.measure import SECOND_CALL, answerable, fill, ways_of
from anchor_lab.experiments.answers.page import (
    EXPERIMENT,
    data_cells,
    data_compared,
    data_totals,
    in_cells,
    page,
    values,
)
from anchor_lab.experiments.store import Store, read
from anchor_lab.methods import METHODS, TriangleMix
from anchor_lab.methods.corrections import CORRECTIONS

CELLS = [(4096, "single", "end"), (4096, "words", "turn")]
FOUND = {"dense": [1, 1, 1, 0], "tail 0": [0, 0, 1, 0], "tail 512": [1, 1, 1, 1]}
WAYS = {"tail 512": Way(12.0, 512), "tail 0": Way(12.0), "dense": DENSE}
NAMES = {way: name for name, way in WAYS.items()}


def store(tmp_path):
    return Store(tmp_path / "a.json", measure.KEY, {"model": "m"}, {"date": "d", "command": "c"})


def ask(asked, hard=()):
    def answer(cell, way):
        asked.append((cell, NAMES[way]))
        return {"found": [0] * 4 if cell in hard else FOUND[NAMES[way]], "seconds": 1.0}

    return answer


def test_dense_attention_is_asked_first_and_what_it_cannot_do_alone(tmp_path):
    asked = []
    assert fill(store(tmp_path), CELLS, WAYS, ask(asked, hard=CELLS[1:]), 1e9)
    assert asked[0] == (CELLS[0], "dense")
    assert {way for cell, way in asked if cell == CELLS[0]} == set(FOUND)
    assert [way for cell, way in asked if cell == CELLS[1]] == ["dense"]


def test_a_run_goes_on_where_it_stopped(tmp_path):
    asked, clock = [], counting(0.0, 10.0)
    given = CELLS, WAYS, ask(asked)
    assert not fill(store(tmp_path), *given, 25.0, lambda: next(clock))
    assert len(asked) == 2
    assert fill(store(tmp_path), *given, 1e9)
    assert len(asked) == len(set(asked)) == 6
    assert fill(store(tmp_path), *given, 0.0)
    assert len(asked) == 6


@pytest.mark.parametrize(("found", "can"), [([1, 0], True), ([1, 0, 0], False), ([], False)])
def test_half_of_the_answers_are_enough(found, can):
    rows = [{"length": 1, "task": "t", "placement": "p", "way": "dense", "found": found}]
    other = {**rows[0], "way": "tail 0", "found": [1, 1]}
    assert answerable([other, *rows] if found else [other], (1, "t", "p")) is can


def test_every_way_is_what_it_is_called():
    ours = ways_of("ours")
    assert ours["dense"].theta is None
    assert {way.tail for name, way in ours.items() if name.startswith("tail")} == set(
        measure.TAILS
    )
    assert all(way.theta == 12 for name, way in ours.items() if name != "dense")
    assert [name for name, way in ours.items() if way.second_call] == [SECOND_CALL]
    rivals = ways_of("rivals")
    assert len(rivals) == 1 + 2 * len(measure.RIVALS)
    for name in measure.RIVALS:
        published, tailed = rivals[name], rivals[f"{name}, tail 512"]
        assert published.method == tailed.method == {**METHODS, "TriangleMix": TriangleMix}[name]()
        assert (published.tail, tailed.tail) == (0, 512)
    corrected = ways_of("corrected")
    for name, way in corrected.items():
        word = name.partition(", ")[2]
        assert type(way.correction) is CORRECTIONS.get(word, type(None)), name
        assert type(way.method).__name__ == name.split(",")[0] or name == "dense"
    assert "FlexPrefill" not in ways_of("rivals", ("XAttention",))


@pytest.fixture
def results(tmp_path):
    kept = store(tmp_path)
    fill(kept, [*CELLS, (8064, "single", "end")], WAYS, ask([], hard=CELLS[1:]), 1e9)
    names = ("device", "torch", "transformers", "weights", "dtype")
    settings = dict.fromkeys(names, "x") | {"model": "m", "prompts": 4, "new_tokens": 8}
    return {"settings": settings, "runs": [{"date": "d"}], "rows": kept.rows}


def test_the_page_has_every_cell_and_its_sums(results):
    found = values(results)
    assert found["few"] == ["words, turn, 4\u202f096 tokens: 0 of 4 (0–49 %)"]
    cells = {(row[0], row[3]): row[4:] for row in found["cells"]}
    assert len(found["cells"]) == 4
    lost = cells["4\u202f096", "tail 0"]
    assert lost == ["3 of 4 (30–95 %)", "1 of 4 (5–70 %)", "2", "0", "**no**"]
    assert cells["8\u202f064", "tail 512"][1:] == ["4 of 4 (51–100 %)", "0", "1", "yes"]
    written = page(results, Path("answers.md"))
    assert "| 4\u202f096 | single | end | tail 0 | 3 of 4 (30–95 %) | 1 of 4" in written


def test_sums_are_over_the_cells_that_a_way_was_run_with(results):
    rows = [row for row in results["rows"] if (row["length"], row["way"]) != (8064, "tail 0")]
    rows += [{**row, "task": "multi-key"} for row in rows if row["length"] == 4096]
    cells = {cell: x for cell, x in data_cells(rows).items() if x["dense"].says_something}
    totals = data_totals(cells, ["tail 0", "tail 512"])
    assert {key: (x.prompts, x.dense, x.ours) for key, x in totals.items()} == {
        (4096, "tail 0"): (8, 6, 2),
        (4096, "tail 512"): (8, 6, 8),
        (8064, "tail 512"): (4, 3, 4),
    }


def row(task, way, right, prompts=4, placement="end"):
    found = [1] * right + [0] * (prompts - right)
    return {"length": 8064, "task": task, "placement": placement, "way": way, "found": found}


def test_ways_are_compared_on_the_cells_that_all_of_them_were_asked():
    """A rival that was asked the easiest of three alone is not beside sums of all three."""
    rows = [row(task, "dense", 4) for task in ("single", "words", "secret")]
    rows += [row(task, "tail 0", right) for task, right in (("single", 3), ("words", 0))]
    rows += [
        row(task, "tail 512", right)
        for task, right in (("single", 4), ("words", 1), ("secret", 2))
    ]
    rows += [row("single", "SALE", 4), row("single", "MoBA", 0)]
    cells = data_cells(rows)
    found = data_compared(cells, ["tail 0", "tail 512", "MoBA", "SALE"])
    told = [
        (in_cells(shared), {way: (x.ours, x.prompts) for way, x in totals.items()})
        for shared, totals in found
    ]
    assert told == [
        ("single (end)", {"tail 0": (3, 4), "tail 512": (4, 4), "MoBA": (0, 4), "SALE": (4, 4)}),
        ("single (end); words (end)", {"tail 0": (3, 8), "tail 512": (5, 8)}),
        ("secret (end); single (end); words (end)", {"tail 512": (7, 12)}),
    ]
    assert data_compared(cells, ["nobody"]) == []


def test_cells_are_named_by_task():
    cells = [(1, "single", "end"), (1, "words", "turn"), (1, "single", "turn")]
    assert in_cells(cells) == "single (end, turn); words (turn)"


def test_the_page_never_sums_over_other_cells_than_its_heading_says(results):
    alone = [x for x in results["rows"] if x["way"] in ("dense", "tail 0") and x["length"] == 4096]
    results["rows"] += [{**x, "task": "secret"} for x in alone if x["task"] == "single"]
    short, wide, other = values(results)["totals"]
    assert (short["cells"], short["ways"]) == ("single (end)", 2)
    assert {line[0]: line[2][:6] for line in short["lines"]} == {
        "tail 0": "1 of 4",
        "tail 512": "4 of 4",
    }
    assert wide["cells"] == "secret (end); single (end)"
    assert [[line[0], line[2][:6]] for line in wide["lines"]] == [["tail 0", "2 of 8"]]
    assert other["n"] == "8\u202f064"
    text = page(results, Path("answers.md"))
    assert "**4\u202f096 tokens**, 2 ways, asked: single (end)\n\n| way |" in text
    assert "**4\u202f096 tokens**, one way alone, asked: secret (end); single (end)" in text


def test_a_quick_run_asks_the_bundled_model(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "QUICK_TASKS", ("single",))
    monkeypatch.setattr(measure, "PLACEMENTS", ("end",))
    monkeypatch.setattr(measure, "TAILS", (0,))
    monkeypatch.setattr(measure, "QUICK_LENGTHS", (2112,))
    out = tmp_path / "quick.json"
    fixed = ["--quick", "--model", "bundled", "--device", "cpu", "--out", str(out)]
    fixed += ["--parts", "ours", "rivals"]
    assert EXPERIMENT.run([*fixed, "--methods", "StreamingLLM"]) == 0
    rows = {row["way"]: row for row in read(out)["rows"]}
    assert list(rows) == [
        *("dense", "tail 0", SECOND_CALL),
        *("StreamingLLM", "StreamingLLM, tail 512"),
    ]
    assert rows["dense"]["found"] == rows[SECOND_CALL]["found"] == [1, 1]
    assert len(rows["tail 0"]["written"]) > 0
    assert "StreamingLLM, tail 512" in out.with_suffix(".md").read_text(encoding="utf-8")
    monkeypatch.setattr(measure, "answers", None)  # nothing is left to ask
    assert EXPERIMENT.run([*fixed, "--methods", "StreamingLLM"]) == 0


def test_a_length_beyond_those_asked_by_default_is_stretched_and_read_in_batches(
    tmp_path, monkeypatch
):
    """Prompts of 32 640 tokens; the bundled model's tokenizer makes them, nobody reads them."""
    monkeypatch.setattr(measure, "QUICK_TASKS", ("single",))
    monkeypatch.setattr(measure, "PLACEMENTS", ("end",))
    stretched, asked = [], []

    def kept(model, tokens):
        stretched.append(tokens)
        return nullcontext()

    def read_(model, tokenizer, prompts, way, *, batch, new_tokens):
        asked.append(([one.tokens.shape[1] for one in prompts], batch))
        return [""] * len(prompts)

    monkeypatch.setattr(measure, "stretch", kept)
    monkeypatch.setattr(measure, "answers", read_)
    out = tmp_path / "long.json"
    fixed = ["--quick", "--model", "bundled", "--device", "cpu", "--out", str(out)]
    assert EXPERIMENT.run([*fixed, "--parts", "ours", "--lengths", "32640"]) == 0
    assert asked == [([32_640] * 2, 1)]  # dense attention finds nothing, and nobody else is asked
    assert stretched == [32_640 + measure.QUICK_NEW_TOKENS]
    assert 32_640 + NEW_TOKENS <= 32_768
    assert measure.GPU_TOKENS // 32_640 == 8  # prompts at once on a GPU
    assert "single, end, 32\u202f640 tokens: 0 of 2" in out.with_suffix(".md").read_text("utf-8")
