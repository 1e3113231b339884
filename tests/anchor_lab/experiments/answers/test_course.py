"""All answers of a length together, as notebooks and README have them."""

from anchor_lab.experiments.answers.course import asked_table, data_asked


def asked(n, task, way, *right):
    return {"length": n, "task": task, "placement": "end", "way": way, "found": list(right)}


ROWS = [
    asked(8064, "single", "dense", 1, 1, 1, 0),
    asked(8064, "single", "tail 512", 1, 0, 1, 1),
    asked(8064, "words", "dense", 1, 1),
    asked(8064, "words", "tail 512", 1, 0),
    asked(8064, "words", "tail 0", 0, 0),
    asked(8064, "secret", "dense", 1, 0, 0),  # too few for a loss to show
    asked(8064, "secret", "tail 512", 0, 0, 0),
    asked(16_384, "single", "dense", 1, 1),
]


def test_tasks_that_dense_attention_answers_are_counted_together():
    (found,) = data_asked(ROWS).values()
    assert (found.prompts, found.dense, found.ours, found.lost, found.won) == (6, 5, 4, 2, 1)
    assert data_asked(ROWS, "tail 0")[8064].prompts == 2
    line = asked_table(ROWS).splitlines()[1]
    assert line.split()[-4:] == ["5", "4", "2", "1"]
    line = asked_table(ROWS, "tail 0").splitlines()[1]
    assert line.split()[-4:] == ["2", "0", "2", "0"]
