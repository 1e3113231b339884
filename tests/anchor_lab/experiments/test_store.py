"""Rows on disk: what was found is found again, and nobody's file is written over."""

import json
import math

import pytest

from anchor_lab.experiments.store import SETTINGS, Store, read, read_table, write_table

KEY = ("name", "head")
FILES = ["a.json", "a.csv", "a.csv.gz"]
ROWS = [{"name": name, "head": head, "share": 0.25} for name in ("x", "y") for head in (0, 1)]


def open_in(folder, file, settings=None, **more):
    return Store(folder / "new" / file, KEY, {"n": 4096} if settings is None else settings, **more)


@pytest.mark.parametrize("file", FILES)
def test_a_later_run_goes_on_with_the_rows_of_an_earlier_one(tmp_path, file):
    store = open_in(tmp_path, file)
    store.add(ROWS[:1])
    store.add(row for row in ROWS[1:3])
    again = open_in(tmp_path, file)
    assert again.rows == ROWS[:3]
    assert [again.holds(name=row["name"], head=row["head"]) for row in ROWS] == [True] * 3 + [
        False
    ]
    again.add(ROWS[3:])
    assert read(again.path)["rows"] == open_in(tmp_path, file).rows == ROWS


@pytest.mark.parametrize("file", FILES)
def test_a_row_that_is_measured_again_takes_the_old_ones_place(tmp_path, file):
    store = open_in(tmp_path, file)
    store.add(ROWS)
    better = {**ROWS[1], "share": 0.5}
    store.add([better])
    expected = [ROWS[0], better, *ROWS[2:]]
    assert store.rows == open_in(tmp_path, file).rows == expected


@pytest.mark.parametrize("file", FILES)
def test_nothing_to_add_writes_nothing(tmp_path, file):
    store = open_in(tmp_path, file, run=None if "csv" in file else {"date": "today"})
    store.add([])
    assert not store.path.exists()
    assert store.runs == []


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"n": 8192}, "made with n 4096, this run has 8192: give another place"),
        ({"n": 4096, "theta": 9.0}, r"made with theta None, this run has 9\.0"),
        ({}, "made with n 4096, this run has None"),
    ],
)
def test_rows_of_other_settings_are_neither_used_nor_written_over(tmp_path, file, other, message):
    store = open_in(tmp_path, file)
    store.add(ROWS)
    before = {path: path.read_bytes() for path in store.path.parent.iterdir()}
    with pytest.raises(ValueError, match=message):
        open_in(tmp_path, file, other)
    assert {path: path.read_bytes() for path in store.path.parent.iterdir()} == before


@pytest.mark.parametrize("file", FILES)
def test_settings_are_compared_as_json_gives_them_back(tmp_path, file):
    settings = {"layers": (1, 2), "sizes": {64: "small"}}
    open_in(tmp_path, file, settings).add(ROWS)
    assert open_in(tmp_path, file, settings).rows == ROWS


@pytest.mark.parametrize("content", ["[1]", "// no JSON", '{"rows": []}', '{"settings": {}}'])
def test_a_file_of_somebody_else_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match="holds no rows of an experiment: give another file"):
        Store(tmp_path / "a.json", KEY, {})
    assert (tmp_path / "a.json").read_text() == content


@pytest.mark.parametrize("content", ['{"editor.fontSize": 14}', "[1]", "// no JSON"])
def test_settings_of_somebody_else_beside_a_table_stay(tmp_path, content):
    (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(ValueError, match="is not of an experiment: give another folder"):
        Store(tmp_path / "a.csv", KEY, {"n": 4096})
    assert (tmp_path / SETTINGS).read_text() == content


def test_a_table_without_its_settings_is_refused(tmp_path):
    write_table(tmp_path / "a.csv", ROWS)
    for _ in range(2):  # the refused run leaves no settings that the next one would believe
        with pytest.raises(ValueError, match=r"holds a\.csv without settings\.json"):
            Store(tmp_path / "a.csv", KEY, {})


def test_a_table_that_is_not_there_is_said_to_be_missing(tmp_path):
    for file in FILES:
        with pytest.raises(FileNotFoundError):
            read(tmp_path / file)


@pytest.mark.parametrize("file", FILES)
def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path, file, monkeypatch):
    store = open_in(tmp_path, file)
    store.add(ROWS[:2])
    before = store.path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.add(ROWS[2:])
    assert store.path.read_bytes() == before


def test_each_run_is_recorded_once_and_named_by_its_rows(tmp_path):
    store = open_in(tmp_path, "a.json", run={"date": "Monday"})
    store.add(ROWS[:1])
    store.add(ROWS[1:2])
    again = open_in(tmp_path, "a.json", run={"date": "Monday"})  # another run, though alike
    again.add(ROWS[2:])
    found = read(again.path)
    assert found["runs"] == [{"date": "Monday"}] * 2
    assert found["rows"] == [
        {**row, "run": run} for row, run in zip(ROWS, (0, 0, 1, 1), strict=True)
    ]


def test_rows_of_two_kinds_lie_in_one_file(tmp_path):
    store = open_in(tmp_path, "a.json")
    store.add([{"head": 3}, {"name": "mean"}])
    assert store.holds(head=3)
    assert store.holds(name="mean")
    assert not store.holds(name="mean", head=3)
    with pytest.raises(ValueError, match="fields must be of name, head, got haed"):
        store.holds(haed=3)


def test_a_line_for_each_row_and_the_same_bytes_for_the_same_rows(tmp_path):
    for name in ("one", "two"):
        for file in FILES:
            open_in(tmp_path / name, file).add(ROWS)
    for file in FILES:
        one, two = (tmp_path / name / "new" / file for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    # Not only of one second: gzip's own time is none.
    assert (tmp_path / "one" / "new" / "a.csv.gz").read_bytes()[4:8] == bytes(4)
    lines = (tmp_path / "one" / "new" / "a.json").read_text().splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines if '"share"' in line] == ROWS


# -- what a table makes of values


def stored(path, rows, text=()):
    write_table(path, rows)
    return read_table(path, text)


@pytest.mark.parametrize("file", ["a.csv", "a.csv.gz"])
def test_values_keep_their_types(tmp_path, file):
    row = {"whole": 3, "part": 0.5, "word": 'θ, or\n"none"', "nothing": None}
    (found,) = stored(tmp_path / file, [row])
    assert found == row
    assert [type(x) for x in found.values()] == [int, float, str, type(None)]


def test_text_that_looks_like_a_number_stays_text_where_it_is_said_to_be(tmp_path):
    rows = [{"text": text, "head": 1} for text in ("1984", "1e3", "nan", "", "0x10", "1_000")]
    assert stored(tmp_path / "a.csv", rows, ["text"]) == rows


def test_a_store_knows_such_text_again(tmp_path):
    for _ in range(2):
        store = open_in(tmp_path, "a.csv", text=["name"])
        assert all(row["name"] == "1984" for row in store.rows)
        store.add([{"name": "1984", "head": 0}])
    assert len(store.rows) == 1
    assert store.holds(name="1984", head=0)


def test_numbers_without_end_and_no_numbers_come_back(tmp_path):
    rows = [{"x": x} for x in (math.inf, -math.inf, math.nan)]
    found = [row["x"] for row in stored(tmp_path / "a.csv", rows)]
    assert found[:2] == [math.inf, -math.inf]
    assert math.isnan(found[2])
    store = open_in(tmp_path, "a.json")
    store.add([{"name": "a", "head": 0, "x": -math.inf}, {"name": "b", "head": 0, "x": None}])
    assert [row["x"] for row in open_in(tmp_path, "a.json").rows] == [-math.inf, None]


def test_a_table_has_six_digits(tmp_path):
    (found,) = stored(tmp_path / "a.csv", [{"x": 1 / 3, "y": 123456789.0, "n": 123456789}])
    assert found == {"x": 0.333333, "y": 1.23457e8, "n": 123456789}


def test_a_field_that_the_first_row_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="fields not in fieldnames: 'more'"):
        write_table(tmp_path / "a.csv", [ROWS[0], {**ROWS[1], "more": 1}])
