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
    found = lesson.data_places(rows, 64, (9.0,))
    assert found == {
        (9.0, "1–32 rows"): {"read": (1, 1), "written": (1, 1)},
        (9.0, "97–128 rows"): {"read": (0, 1), "written": (1, 2)},
        (9.0, "any"): {"read": (1, 3), "written": (2, 3)},
    }
    here = {(9.0, "1–32 rows", 0): [(3, 4), (2, 4)], (9.0, "1–32 rows", 64): [(4, 4), (1, 4)]}
    lines = lesson.table(found, here).splitlines()
    assert lines[1].split()[2:] == ["read", "written"] * 3
    cells = lines[2].split("rows")[1].split()
    assert cells[::3] == ["1", "1", "3", "2", "4", "1"]
    assert lesson.written()


def test_pairs_kept_are_those_of_the_length_and_threshold():
    rows = [
        {"length": 8, "theta": None, "density": 1.0},
        {"length": 8, "theta": "12.0", "density": 0.5},
        {"length": 16, "theta": "12.0", "density": 0.25},
    ]
    assert lesson.data_density(rows, 8) == {12.0: 0.5}
