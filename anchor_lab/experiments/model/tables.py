"""The evaluation as tables, for a look at single heads and cells."""

from collections.abc import Sequence
from pathlib import Path

from anchor_lab.analysis.intervals import wilson
from anchor_lab.experiments.model.heads import role
from anchor_lab.experiments.store import write_table


def write_tables(rows: Sequence[dict], folder: Path) -> None:
    """The rows as needles.csv, heads.csv with the role of each head, and causes.csv."""
    needles = []
    for part in ("needles", "controls", "anchor"):
        for cell in part_of(rows, part):
            prompts = cell["asked"] // len(cell["by_depth"])
            for depth, share in cell["by_depth"].items():
                low, high = (round(end, 4) for end in wilson(share, prompts))
                needles.append(
                    {
                        "attention": "anchor, θ = 12" if part == "anchor" else "dense",
                        "task": cell["task"],
                        "length": cell["length"],
                        "depth": depth,
                        "accuracy": share,
                        "low": low,
                        "high": high,
                        "prompts": prompts,
                    }
                )
    write_table(folder / "needles.csv", needles)
    heads = [
        {name: row[name] for name in row if name not in ("part", "run")} | {"role": role(row)}
        for row in part_of(rows, "heads")
    ]
    write_table(folder / "heads.csv", heads)
    names = ("sparse", "task", "length", "accuracy", "density", "asked")
    causes = [{name: row[name] for name in names} for row in part_of(rows, "causes")]
    write_table(folder / "causes.csv", causes)


def part_of(rows: Sequence[dict], part: str) -> list[dict]:
    """The rows of one part."""
    return [row for row in rows if row["part"] == part]
