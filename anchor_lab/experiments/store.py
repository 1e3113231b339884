"""A table that grows on disk: nothing in it is measured again, or under other settings."""

import json
from collections.abc import Sequence
from pathlib import Path

ABOUT, TABLE = "settings.json", "compare.csv"
KEY = ("method", "configuration", "layer", "head")


class Results:
    """Rows found so far, in a folder that a later run goes on with.

    Args:
        folder: gets settings.json and compare.csv; made where it does not exist.
        settings: what all rows share, as JSON would give it back.

    Raises:
        ImportError: pandas is not installed.
        ValueError: the folder's rows were made with other settings, or nobody knows with which.
    """

    def __init__(self, folder: str | Path, settings: dict):
        self.folder = Path(folder)
        self.frame = _empty()
        about, table = self.folder / ABOUT, self.folder / TABLE
        if not table.exists():
            if about.exists():  # of a run that stopped before its first row
                check_own(about, settings)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(about, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
            return
        if not about.exists():
            raise ValueError(
                f"{self.folder} holds {TABLE} without {ABOUT}, which says what it was made with: "
                "give another folder, or remove that one"
            )
        check_settings(about, settings)
        self.frame = read_table(table)

    def missing(
        self, method: str, configurations: Sequence[str], layer: int, heads: Sequence[int]
    ) -> list[int]:
        """Which of the heads lack a configuration of the method."""
        there = set(self.frame[list(KEY)].itertuples(index=False, name=None))
        return [
            head
            for head in heads
            if any((method, label, layer, head) not in there for label in configurations)
        ]

    def add(self, rows: Sequence[dict]) -> None:
        """Keep the rows, on disk as well; of rows with the same key the newest."""
        import pandas as pd

        grown = (
            pd.concat([self.frame, pd.DataFrame(rows)]) if len(self.frame) else pd.DataFrame(rows)
        )
        self.frame = grown.drop_duplicates(list(KEY), keep="last", ignore_index=True)
        write_whole(self.folder / TABLE, to_csv(self.frame))


def read_table(path: str | Path):
    """The rows of a compare.csv as a pandas frame."""
    return _pandas().read_csv(path, dtype={"text": str, "method": str, "configuration": str})


def to_csv(frame) -> str:
    """CSV with six digits, which is more than the measures repeat on another machine."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file: an interruption leaves the old one or the new one, never half of it."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def check_settings(path: Path, wanted: dict) -> None:
    """Results of other settings are neither used nor written over.

    Args:
        path: of the settings that the results beside it were made with, JSON.
        wanted: those of this run.

    Raises:
        ValueError: they differ; the message names the first that does.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    for name in {**found, **wanted}:
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{path.parent} holds results made with {name} {found.get(name)!r}, this run has "
                f"{wanted.get(name)!r}: give another folder, or remove that one"
            )


def check_own(path: Path, wanted: dict) -> None:
    """Settings without results are written over, but no file of somebody else.

    Args:
        path: of the settings.
        wanted: those of this run.

    Raises:
        ValueError: the file has none of the settings' names.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text
        found = None
    if not (isinstance(found, dict) and found.keys() & wanted.keys()):
        raise ValueError(f"{path} is not of a comparison: give another folder")


def _empty():
    return _pandas().DataFrame(columns=list(KEY))


def _pandas():
    try:
        import pandas
    except ImportError as error:
        raise ImportError("tables of results need pandas: pip install '.[lab]'") from error
    return pandas
