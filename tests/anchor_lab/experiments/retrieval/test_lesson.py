"""What notebook 13 shows of facts read and written."""

from anchor_lab.experiments.retrieval import lesson


def test_answers_are_counted_by_the_rows_of_the_last_block():
    row = {
        "length": 64,
        "theta": "9.0",
        "read": [True, False, False],
        "written": [True, True, False],
        "rows": {"read": [1, 100, 50], "written": [128, 32, 97]},
    }
    rows = [row, row | {"theta": None}, row | {"length": 32, "read": [True] * 3}]
    assert lesson.data_places(rows, 64, (9.0,)) == {
        (9.0, "1–32 rows"): {"read": (1, 1), "written": (1, 1)},
        (9.0, "97–128 rows"): {"read": (0, 1), "written": (1, 2)},
        (9.0, "any"): {"read": (1, 3), "written": (2, 3)},
    }
