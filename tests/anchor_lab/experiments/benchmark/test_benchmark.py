"""The experiment on a public benchmark: what is asked, resumed, refused, written up."""

from itertools import count as counting
from pathlib import Path

import pytest

from anchor_lab.experiments.benchmark import measure
from anchor_lab.experiments.benchmark.harness import ROOM
from anchor_lab.experiments.benchmark.measure import WAYS, OtherPromptsError, answerable, fill
from anchor_lab.experiments.benchmark.page import (
    EXPERIMENT,
    data_scores,
    data_seconds,
    in_short,
    page,
    values,
)
from anchor_lab.experiments.store import Store

EASY, HARD, PART = (4096, "niah_single_1"), (4096, "niah_multikey_2"), (8064, "ruler_vt")
CELLS = [EASY, HARD, PART]
# Of three prompts, a row each.
SCORES = {
    EASY: {"dense": (1.0, 1.0, 1.0), "tail 0": (1.0, 0.0, 0.0), "tail 512": (1.0, 1.0, 0.0)},
    HARD: {"dense": (0.0, 1.0, 0.0)},
    PART: {"dense": (0.6, 0.2, 0.8), "tail 0": (0.4, 0.6, 0.8), "tail 512": (0.6, 0.2, 0.8)},
}


def store(tmp_path):
    return Store(tmp_path / "a.json", measure.KEY, {"model": "m"}, {"date": "d", "command": "c"})


def ask(asked, words="h"):
    def answer(length, task, prompt, way):
        asked.append((length, task, prompt, way))
        return {
            "score": SCORES[length, task][way][prompt],
            "tokens": length - 100 * prompt,
            "hash": f"{words}{task}{length}{prompt}",
            "seconds": {"dense": 1.0, "tail 0": 2.0, "tail 512": 3.0}[way] + prompt,
        }

    return answer


def test_dense_attention_is_asked_first_and_what_it_cannot_do_alone(tmp_path):
    asked = []
    assert fill(store(tmp_path), CELLS, 3, ask(asked), 1e9)
    assert [key[2:] for key in asked[:3]] == [(at, "dense") for at in range(3)]
    assert {key[3] for key in asked if key[:2] == EASY} == set(WAYS)
    assert {key[3] for key in asked if key[:2] == HARD} == {"dense"}
    assert {key[3] for key in asked if key[:2] == PART} == set(WAYS)


def test_a_run_goes_on_where_it_stopped_prompt_by_prompt(tmp_path):
    asked, clock = [], counting(0.0, 10.0)
    assert not fill(store(tmp_path), CELLS, 3, ask(asked), 55.0, clock=lambda: next(clock))
    first = [(0, "dense"), (1, "dense"), (2, "dense"), (0, "tail 0"), (0, "tail 512")]
    assert [key[2:] for key in asked] == first
    assert fill(store(tmp_path), CELLS, 3, ask(asked), 1e9)
    assert len(asked) == len(set(asked)) == 21
    assert fill(store(tmp_path), CELLS, 3, ask(asked), 0.0)
    assert len(asked) == 21


def test_more_prompts_are_asked_later_without_asking_the_first_again(tmp_path):
    asked = []
    assert fill(store(tmp_path), [EASY], 1, ask(asked), 1e9)
    assert fill(store(tmp_path), [EASY], 3, ask(asked), 1e9)
    assert sorted(asked) == sorted((*EASY, at, way) for at in range(3) for way in WAYS)


def test_a_way_that_is_asked_something_else_is_refused(tmp_path):
    clock = counting(0.0, 10.0)
    fill(store(tmp_path), [EASY], 2, ask([]), 25.0, clock=lambda: next(clock))  # dense alone
    with pytest.raises(OtherPromptsError, match="prompt 0 of niah_single_1 at 4096 must be"):
        fill(store(tmp_path), [EASY], 2, ask([], words="other"), 1e9)
    assert {row["way"] for row in store(tmp_path).rows} == {"dense"}


def test_every_way_is_what_it_is_called():
    assert {name: (way.theta, way.tail) for name, way in WAYS.items()} == {
        "dense": (None, 0),
        "tail 0": (12, 0),
        "tail 512": (12, 512),
    }


@pytest.mark.parametrize(
    ("scores", "can"), [([1, 0], True), ([0.6, 0.4], True), ([1, 0, 0], False), ([], False)]
)
def test_half_of_the_answers_are_enough(scores, can):
    assert answerable([{"score": score} for score in scores]) is can


def test_the_longest_prompts_fit_the_positions_of_the_model():
    """Otherwise YaRN would stretch all of them."""
    assert max(measure.LENGTHS) + ROOM <= 8192


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--lengths", "2048"], "must be longer than a group of 2048 tokens"),
        (["--lengths", "long"], "got long"),
        (["--limit", "0"], "must be in 1..500, got 0"),
        (["--limit", "501"], "must be in 1..500, got 501"),
        (["--tasks", "niah_single_2"], "invalid choice: 'niah_single_2'"),
    ],
)
def test_what_cannot_be_asked_is_refused(given, message, capsys, monkeypatch):
    monkeypatch.setattr(measure, "load_pretrained", None)  # before anything is loaded
    with pytest.raises(SystemExit, match="2"):
        EXPERIMENT.run([*given, "--quick"])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_without_the_harness_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure.importlib.util, "find_spec", lambda name: None)
    assert EXPERIMENT.run(["--quick", "--out", str(tmp_path / "a.json")]) == 2
    assert "needs lm-eval: pip install '.[lm-eval]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def results(tmp_path):
    kept = store(tmp_path)
    fill(kept, CELLS, 3, ask([]), 1e9)
    names = ("model", "weights", "dtype", "device", "torch", "transformers")
    settings = dict.fromkeys(names, "x") | {"lm_eval": "0.4", "theta": 12.0}
    settings |= {"chat_template": True, "new_tokens": None}
    return {"settings": settings, "runs": [{"date": "d", "command": "c"}], "rows": kept.rows}


def test_the_page_has_every_task_with_what_is_lost_and_won(results):
    shorter, longer = values(results)["lengths"]
    assert shorter["telling"] == [
        [
            *("niah_single_1", "3\u202f996", "1\u202f436", "100 % of 3 (44–100 %)"),
            *("33 % of 3 (6–79 %)", "2 / 0", "67 % of 3 (21–94 %)", "1 / 0"),
        ]
    ]
    assert shorter["few"] == ["niah_multikey_2: 33 % of 3 (6–79 %)"]
    ((*_, dense, none, changed, tail, kept),) = longer["telling"]
    assert (dense, none, changed) == ("53 % of 3 (14–89 %)", "60 % of 3 (17–92 %)", "1 / 1")
    assert (tail, kept) == (dense, "0 / 0")
    written = page(results, Path("benchmark.md"))
    assert "| niah_single_1 | 3\u202f996 | 1\u202f436 | 100 % of 3" in written
    assert "- niah_multikey_2: 33 % of 3" in written
    missing = "niah_multikey_3, ruler_vt, ruler_cwe, ruler_fwe"
    assert f"Not asked at this length: {missing}.\n\n## 8" in written
    assert "with the model's chat template" in written
    assert "lm-evaluation-harness) 0.4 makes" in written


def test_rows_that_a_tail_makes_dense_are_not_left(results):
    short = [{**row, "tokens": 2300} for row in results["rows"]]
    ((_, tokens, left, *_),) = values({**results, "rows": short})["lengths"][0]["telling"]
    assert (tokens, left) == ("2\u202f300", "0")


def test_a_prompt_that_one_way_was_not_asked_does_not_count_for_it(results):
    cut = [row for row in results["rows"] if (row["prompt"], row["way"]) != (1, "tail 0")]
    found = data_scores(cut, 4096)["niah_single_1"]
    assert (found["tail 0"].dense, found["tail 0"].ours) == ([1, 1], [1, 0])
    assert found["tail 0"].lost == found["tail 512"].lost == 1
    none = [row for row in results["rows"] if row["way"] != "tail 0"]
    ((*_, score, changed, _, _),) = values({**results, "rows": none})["lengths"][0]["telling"]
    assert score == changed == "–"


def test_tasks_of_a_length_are_put_together(results):
    both = [{**row, "length": 4096} for row in results["rows"]]
    *_, last = values({**results, "rows": both})["lengths"][0]["telling"]
    assert last[0] == "*together*"
    assert last[3:6] == ["77 % of 6 (38–95 %)", "47 % of 6 (17–79 %)", "3 / 1"]


def test_times_are_of_prompts_that_all_ways_were_asked(results):
    cut = [row for row in results["rows"] if (row["prompt"], row["way"]) != (2, "tail 0")]
    assert data_seconds(cut, 4096) == {"dense": 1.5, "tail 0": 2.5, "tail 512": 3.5}
    assert data_seconds([row for row in cut if row["way"] == "dense"], 4096) == {}


def test_the_page_says_what_ran(results):
    assert "No kernel ran" in page(results, Path("benchmark.md"))
    on_gpu = {**results, "runs": [{"date": "d", "command": "c", "kernels": "abc"}]}
    assert "Kernels abc." in page(on_gpu, Path("benchmark.md"))
    assert "No kernel ran" not in page(on_gpu, Path("benchmark.md"))


def test_in_short_is_what_the_page_says(results):
    said = in_short(results)
    assert (
        "| 4\u202f096 | niah_single_1 | 100 % of 3 (44–100 %) | 33 % of 3 (6–79 %) | 2 / 0 |"
        in said
    )
    assert "Of niah_multikey_2 (4\u202f096 tokens) dense attention itself finds less" in said
