"""Rows that grow on disk: none is measured again, none is added under other settings.

A file of rows is JSON

    {"settings": {what all rows share}, "runs": [{date, command, ...}, ...], "rows": [{...}, ...]}

with a line for each run and row, or a table, .csv or .csv.gz, with settings.json beside it.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

SETTINGS = "settings.json"  # beside a table


class OtherResults(ValueError):
    """A file holds what this run cannot go on with; the message says what, and what to do."""


class Store:
    """Rows found so far, in a file that a later run goes on with.

    Args:
        path: the file, .json, .csv or .csv.gz; it and its folder are made where they do not exist.
        key: names of the fields that tell a row from all others; rows of another kind, which lack
            a field, have None there.
        settings: what all rows share, as JSON takes it.
        run: what is recorded of this run alone, such as its date; rows then get its number as
            "run". Not for tables.
        text: names of the columns of a table that stay text where they look like numbers.

    Attributes:
        rows: as dicts, in the order in which they were found.

    Raises:
        OtherResults: the file's rows were made with other settings, or nobody knows with which;
            or it is no such file.
    """

    def __init__(
        self,
        path: Path,
        key: Sequence[str],
        settings: dict,
        run: dict | None = None,
        text: Sequence[str] = (),
    ):
        self.path, self.key = Path(path), tuple(key)
        self.settings = settings = json.loads(json.dumps(settings))  # tuples become lists
        self.rows: list[dict] = []
        self.runs: list[dict] = []
        self.run = run
        beside = self.path.with_name(SETTINGS)
        if self.path.exists():
            found = read(self.path, text)
            _check_settings(self.path, found["settings"], settings)
            self.rows, self.runs = found["rows"], found["runs"]
        elif (  # of a run that stopped before its first row, or somebody else's
            self._is_table and beside.exists() and not _json(beside).keys() & settings.keys()
        ):
            raise OtherResults(f"{beside} is not of an experiment: give another folder")
        self._places = {self.key_of(row): place for place, row in enumerate(self.rows)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._is_table:
            write_whole(beside, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")

    def key_of(self, row: dict) -> tuple:
        """What tells this row from the others."""
        return tuple(row.get(name) for name in self.key)

    def holds(self, **fields: object) -> bool:
        """Whether there is a row with this key; fields that are not named are None.

        Raises:
            ValueError: a field is not of the key.
        """
        if wrong := fields.keys() - set(self.key):
            raise ValueError(f"fields must be of {', '.join(self.key)}, got {min(wrong)}")
        return self.key_of(fields) in self._places

    def add(self, rows: Iterable[dict]) -> None:
        """Keep rows, on disk as well; one whose key is there already takes the old one's place.

        The whole file is written, 0.3 s for 60 000 rows of a table: add what was measured together
        at once.

        Args:
            rows: each with every field of the first one that was added, in a table also no more.

        Raises:
            ValueError: a row of a table has a field that the first one lacks.
        """
        rows = list(rows)
        if not rows:
            return
        if self.run is not None:
            if not self.runs or self.runs[-1] is not self.run:
                self.runs.append(self.run)
            rows = [{**row, "run": len(self.runs) - 1} for row in rows]
        for row in rows:
            place = self._places.setdefault(self.key_of(row), len(self.rows))
            self.rows[place : place + 1] = [row]
        self._write()

    @property
    def _is_table(self) -> bool:
        return self.path.suffix != ".json"

    def _write(self) -> None:
        if self._is_table:
            write_table(self.path, self.rows)
        else:
            write_json(self.path, self.settings, self.rows, self.runs)


def read(path: Path, text: Sequence[str] = ()) -> dict:
    """{"settings", "runs", "rows"} of a file.

    Args:
        path: of the rows.
        text: as in `read_table`.

    Raises:
        OSError: there is no such file.
        OtherResults: it is none that a `Store` wrote, or a table without its settings.
    """
    if path.suffix == ".json":
        found = _json(path)
        if not {"settings", "rows"} <= found.keys():
            raise OtherResults(f"{path} holds no rows of an experiment: give another file")
        return {"runs": [], **found}
    rows, about = read_table(path, text), path.with_name(SETTINGS)
    if not about.exists():
        raise OtherResults(
            f"{path.parent} holds {path.name} without {SETTINGS}, which says what it was made "
            "with: give another folder, or remove that one"
        )
    return {"settings": _json(about), "runs": [], "rows": rows}


def read_beside(page: Path, files: Mapping[str, str], text: Sequence[str] = ()) -> dict[str, dict]:
    """What `read` finds in files of other experiments by name, of those that are there.

    Args:
        page: in a folder beside theirs.
        files: by name, "NAME/NAME.json".
        text: as in `read_table`.
    """
    paths = {name: page.parent.parent / file for name, file in files.items()}
    return {name: read(path, text) for name, path in paths.items() if path.exists()}


def read_table(path: Path, text: Sequence[str] = ()) -> list[dict]:
    """The rows of a .csv or .csv.gz: whole numbers as int, others as float, nothing as None.

    Args:
        path: of the table.
        text: names of the columns that are text, whatever they look like. In the others a word
            that is no number is text too.
    """
    data = path.read_bytes()
    content = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [
        {name: word if name in text else _value(word) for name, word in row.items()}
        for row in csv.DictReader(io.StringIO(content, newline=""))
    ]


def _value(word: str) -> int | float | str | None:
    if not word:
        return None
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _json(path: Path) -> dict:
    """What a file of JSON holds; nothing if it is another kind of file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text
        return {}
    return found if isinstance(found, dict) else {}


def write_table(path: Path, rows: Sequence[dict]) -> None:
    """Rows as .csv or .csv.gz, with six digits: more than measures repeat on another machine.

    Args:
        path: of the table.
        rows: at least one; the first names the columns.
    """
    out = io.StringIO()
    table = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({n: f"{x:.6g}" if isinstance(x, float) else x for n, x in row.items()})
    if path.suffix == ".gz":
        # No time of its own in the file: the same rows are the same bytes.
        write_whole(path, gzip.compress(out.getvalue().encode(), mtime=0))
    else:
        write_whole(path, out.getvalue())


def write_json(
    path: Path, settings: dict, rows: Sequence[dict], runs: Sequence[dict] = ()
) -> None:
    """A file of rows, one on each line, so that a diff shows which changed."""

    def lines(found: Sequence[dict]) -> str:
        return ",\n".join("  " + json.dumps(one, ensure_ascii=False) for one in found)

    about = json.dumps(settings, indent=1, ensure_ascii=False).replace("\n", "\n ")
    told = f' "runs": [\n{lines(runs)}\n ],\n' if runs else ""
    write_whole(path, f'{{\n "settings": {about},\n{told} "rows": [\n{lines(rows)}\n ]\n}}\n')


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file: an interruption leaves the old one or the new one, never half of it."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    new.replace(path)


def _check_settings(path: Path, found: dict, wanted: dict) -> None:
    """Results of other settings are neither used nor written over: name the first that differs."""
    for name in {**found, **wanted}:
        if found.get(name) != wanted.get(name):
            raise OtherResults(
                f"{path} holds results made with {name} {found.get(name)!r}, this run has "
                f"{wanted.get(name)!r}: give another place, or remove that file"
            )
