"""What notebook 13 shows of the real model's answers."""

from matplotlib import pyplot as plt

from anchor_lab.drawing import style
from anchor_lab.experiments.smollm2 import lesson
from anchor_lab.experiments.smollm2.measure import WAYS
from anchor_lab.experiments.store import read
from tests.tree import RESULTS


def answer(prompt: int, way: str, found: bool) -> dict:
    made = {"part": "answers", "length": 64, "way": way, "prompt": prompt, "found": found}
    return made | {"written": f"{way} said {prompt}"}


def test_answers_are_counted_over_prompts_that_all_ways_had():
    dense, none, tail = WAYS
    rows = [answer(p, way, way != none or p == 0) for p in (0, 1) for way in WAYS]
    rows.append(answer(2, dense, True))
    assert lesson.data_answers(rows) == {64: {dense: (2, 2), none: (1, 2), tail: (2, 2)}}


def test_the_figure_draws_from_the_committed_results():
    style.use_style()
    data = lesson.data_answers(read(RESULTS / "smollm2" / "smollm2.json")["rows"])
    figure, ax = plt.subplots()
    lesson.draw_answers(data, ax)
    assert next(text.get_text() for text in ax.texts).endswith(" of 30")
    plt.close(figure)
    lesson.show_answers(data, "here")
    assert not plt.get_fignums()
