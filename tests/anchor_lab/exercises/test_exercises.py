"""Empty answers fail, solutions pass, and what goes wrong is explained by what went wrong."""

import importlib.util
from pathlib import Path

import nbformat
import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.drawing import style
from anchor_lab.exercises import EXERCISES, check, judge
from anchor_lab.exercises.picture import data_failure
from anchor_ref.online_softmax import SoftmaxState
from tests.tree import NOTEBOOKS

NAMES = ("e1_the_method.ipynb", "e2_the_kernels.ipynb")
MISTAKES = [
    pytest.param(exercise, *mistake, id=f"{name}-{number}")
    for name, exercise in EXERCISES.items()
    if name != "drop_needle"
    for number, mistake in enumerate(exercise.mistakes)
]


def functions(folder: str, where: Path) -> dict:
    """What the notebooks of a folder define, run as modules: Triton must find its source."""
    found = {}
    for name in NAMES:
        notebook = nbformat.read(NOTEBOOKS / folder / name, as_version=4)
        path = where / f"{folder}_{name.removesuffix('.ipynb')}.py"
        cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        cells = [line for cell in cells for line in cell.split("\n") if "TRITON_INTER" not in line]
        path.write_text("\n".join(cells))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found |= {name: getattr(module, name) for name in EXERCISES if hasattr(module, name)}
    return found


def named(name, function):
    def answer(*arguments):
        return function(*arguments)

    answer.__name__ = name
    return answer


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    return functions("exercises", tmp_path_factory.mktemp("exercises"))


@pytest.fixture(scope="module")
def solutions(tmp_path_factory):
    found = functions("solutions", tmp_path_factory.mktemp("solutions"))
    plt.close("all")
    return found


@pytest.mark.parametrize("name", EXERCISES)
def test_an_empty_stub_fails_and_its_solution_passes(name, stubs, solutions):
    empty, solved = judge(stubs[name]), judge(solutions[name])
    assert not empty.passed
    assert empty.words == "not written yet. Replace the line that raises."
    assert empty.draw is None
    assert solved.passed, solved.words
    assert solved.words.startswith("right")


def without_ways(source: str) -> str:
    """A cell's text but for the line that leads to the notebooks before and after."""
    return "\n".join(line for line in source.splitlines() if not line.startswith("[← "))


def test_solutions_are_the_exercises_filled_in():
    for name in NAMES:
        tasks, solved = (
            nbformat.read(NOTEBOOKS / folder / name, as_version=4).cells
            for folder in ("exercises", "solutions")
        )
        assert [cell.cell_type for cell in tasks] == [cell.cell_type for cell in solved]
        for task, answer in list(zip(tasks, solved, strict=True))[2:]:
            if task.cell_type == "markdown":
                assert without_ways(task.source) == without_ways(answer.source)
                continue
            signature = [line for line in task.source.splitlines() if line.startswith("def ")]
            assert signature
            assert all(line in answer.source for line in signature)
            call = task.source.splitlines()[-1]
            assert call.startswith("check(")
            assert call in answer.source


def test_there_are_ten_exercises_and_each_has_known_mistakes():
    assert len(EXERCISES) >= 10
    assert all(exercise.mistakes for exercise, *_ in (case.values for case in MISTAKES))
    assert all(name == exercise.name for name, exercise in EXERCISES.items())


@pytest.mark.parametrize(("exercise", "mistake", "words"), MISTAKES)
def test_a_known_mistake_is_explained_and_drawn(exercise, mistake, words):
    judgement = judge(named(exercise.name, mistake))
    assert not judgement.passed
    assert judgement.words == f"wrong. {words}"
    judgement.draw()
    panels = plt.gcf().axes
    assert [ax.get_title("left") or ax.get_title() for ax in panels] == [
        "expected",
        "got",
        "where they differ",
    ]
    plt.close("all")


def test_other_mistakes_are_told_by_shape_type_and_place():
    cases = [
        ("pool_queries", lambda q, size: q.mean(0), "wrong. Result: shape (6,), not ("),
        ("compact", lambda mask: mask.sum(1), "wrong. 3 results are asked for (counts, offsets,"),
        ("recall", lambda scores, kept: None, "wrong. Result: NoneType is returned"),
        (
            "difference_test",
            lambda anchor, scores, theta: (anchor[:, None] - scores <= theta).any(0).double(),
            "wrong. Result: dtype torch.float64, not torch.bool.",
        ),
        ("window", lambda query, config: range(-3, query + 1), "stops with ValueError: there are"),
        ("window", lambda query, config: query, "stops with TypeError: a range of keys is asked"),
        ("density", lambda kept: 1 / 0, "stops with ZeroDivisionError"),
        ("density", lambda kept: 0.25, "wrong. Result: 1 of 1 numbers differ, the first: 0.25"),
    ]
    for name, function, words in cases:
        assert judge(named(name, function)).words.startswith(words), name


@pytest.mark.parametrize(
    "name", ["merge", "row_anchor", "pool_queries", "finish", "recall", "density"]
)
def test_an_answer_in_float32_is_right_to_its_own_accuracy(name, solutions):
    def narrow(x):
        parts = vars(x).values() if isinstance(x, SoftmaxState) else [x]
        found = tuple(part.float() for part in parts)
        return found if len(found) > 1 else found[0]

    solved = solutions[name]
    assert judge(named(name, lambda *given: narrow(solved(*given)))).passed
    wrong = judge(named(name, lambda *given: narrow(solved(*given)) * 1.001))
    assert not wrong.passed


def test_answers_of_another_form_are_taken(solutions):
    for name, form in (("recall", float), ("density", float), ("compact", list)):
        answer = named(name, lambda *given, n=name, form=form: form(solutions[n](*given)))
        assert judge(answer).passed, name
    assert judge(named("drop_needle", lambda: list(needle()))).passed


def test_a_range_with_a_step_is_not_the_window(solutions):
    every_second = named("window", lambda *given: solutions["window"](*given)[::2])
    assert judge(every_second).words.startswith("wrong. Result:")


@pytest.mark.parametrize("empty", [range(5, 3), range(0, 0, -1), range(29, 29)])
def test_where_there_is_no_candidate_any_empty_range_says_so(empty, solutions):
    """The plain `range(initial, window)` ends before it begins there: that is no mistake."""
    found = solutions["candidates"]
    assert judge(named("candidates", lambda *given: found(*given) or empty)).passed
    one = judge(named("candidates", lambda *given: found(*given) or range(1)))
    assert one.words.startswith("wrong. Result: 12 of 900 numbers differ, the first at [0, 0]: 1")


def test_keys_above_the_anchor_pass_the_difference_test():
    def between(anchor, scores, theta):
        difference = anchor[:, None] - scores
        return ((difference >= 0) & (difference <= theta)).any(0)

    words = judge(named("difference_test", between)).words
    assert words.startswith("wrong. Keys far above the anchor are missing")


def test_a_store_far_behind_the_rows_is_found_and_harms_nobody(solutions):
    def greedy(x, index, out):  # as a program for each index without any mask
        solutions["gather_rows"](x, index, out)
        out.as_strided((16 * len(index), 8), (8, 1))[len(index) :] = 1

    words = judge(named("gather_rows", greedy)).words
    assert words.startswith("wrong. Memory behind the rows: 128 of 128 numbers differ")


def test_a_small_error_in_one_place_is_found(solutions):
    def almost(a, b):
        right = solutions["merge"](a, b)
        acc = right.acc.clone()
        acc[3, 1] += 1e-6
        return SoftmaxState(right.max, right.sum, acc)

    judgement = judge(named("merge", almost))
    assert judgement.words.startswith("wrong. Acc: 1 of 8 numbers differ, the first at [3, 1]:")
    judgement.draw()
    differ = plt.gcf().axes[2].collections[0].get_array()
    assert differ.sum() == 1
    assert differ[3, 1] == 1
    plt.close("all")


def test_an_answer_that_writes_on_its_arguments_is_judged_by_its_result(solutions):
    def writes(scores, kept):
        share = solutions["recall"](scores, kept)
        scores.zero_()
        return share

    assert judge(named("recall", writes)).passed


def needle(**changes):
    q, k = torch.zeros(48, 2), torch.zeros(48, 2)
    k[0, 0], k[20, 1], q[:, 0] = 10, 10, 2
    q[40] = torch.tensor([0.0, 2.0])
    for name, value in changes.items():
        {"q": q, "k": k}[name[0]][int(name[1:])] = torch.tensor(value)
    return q, k


def test_a_lost_needle_counts_beside_a_heavier_key_that_is_kept():
    others = {f"q{row}": [-2.0, 0.0] for row in range(32, 40)}  # they want key 10, and get it
    answer = needle(q40=[0.0, 0.6], k1=[-10.0, 0.0], k10=[-30.0, 0.0], **others)
    judgement = judge(named("drop_needle", lambda: answer))
    assert judgement.passed
    assert judgement.words.startswith("right. Row 40 gives 64% of its mass to key 20")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: needle(q40=[2.0, 0.0]), "not yet. The most that a row of the last group gives"),
        (
            lambda: needle(k21=[0.0, 10.0], k22=[0.0, 10.0]),
            "not yet. The most that a row of the last group gives to one candidate is 33%",
        ),
        (lambda: tuple(10 * x for x in needle(k0=[0.0, 0.0])), "not yet. Row 40 gives 100% to"),
        (lambda: needle()[0], "two tensors are asked for, q and k."),
        (lambda: (needle()[0], needle()[1][:40]), "k must be of shape (48, 2), got (40, 2)."),
        (lambda: needle(q3=[float("nan"), 0.0]), "q must be finite"),
    ],
)
def test_a_needle_that_is_not_lost_is_told_why(answer, words):
    judgement = judge(named("drop_needle", answer))
    assert not judgement.passed
    assert judgement.words.startswith(words)
    if judgement.draw is not None:
        judgement.draw()
        plt.close("all")


def test_check_prints_the_words_and_draws_only_what_failed(capsys, monkeypatch, solutions):
    shown = []
    monkeypatch.setattr(style, "show", lambda figure, alt: shown.append((len(figure.axes), alt)))
    check(solutions["merge"])
    assert capsys.readouterr().out == "merge: right, on 6 drawn inputs.\n"
    assert shown == []
    check(named("density", lambda kept: kept.double().mean()))
    words = "wrong. This divides by the full square."
    assert f"density: {words}" in capsys.readouterr().out
    ((panels, alt),) = shown
    assert panels == 3
    assert alt.startswith(f"Picture of the answer to density: {words}")
    plt.close("all")


def test_a_function_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r"must be named as an exercise .*merge.*: windows"):
        judge(named("windows", lambda: None))


def test_the_picture_shows_where_it_differs():
    right = torch.arange(6.0).view(2, 3)
    got = right.clone()
    got[1, 2] = torch.nan
    data = data_failure(right, got, 1e-9)
    assert data["differ"].nonzero().tolist() == [[1, 2]]
    assert data_failure(right, got[:1], 1e-9)["differ"] is None
    assert data_failure(right, None, 1e-9)["got"] is None
    assert data_failure(right[0], right[0], 1e-9)["expected"].shape == (1, 3)
