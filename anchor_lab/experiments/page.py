"""A page of results: a template that lies beside its experiment, filled with numbers.

results -> values (a dict, tested for its numbers) -> page.md.j2 -> results/NAME/NAME.md
"""

import re
from collections.abc import Sequence
from functools import cache
from math import isnan
from pathlib import Path

FOLDER = Path(__file__).parent


def render(template: str, folder: Path = FOLDER, **values: object) -> str:
    """A page as Markdown.

    Args:
        template: a file below `folder`, such as "ablations/page.md.j2".
        folder: where templates lie; this one unless given.
        values: the names that it uses; a name that is missing is an error, not a gap.

    Raises:
        jinja2.UndefinedError: the template uses a name that is not among `values`.
    """
    return _environment(folder).get_template(template).render(values)


def markdown(
    header: Sequence[object], rows: Sequence[Sequence[object]], align: str = "---"
) -> str:
    """A table: a line of headings, a line of `align`, a line for each row."""
    lines = [header, [align] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def digits(value: float | None, count: int) -> str:
    """A number with so many decimals, or a dash for None and for NaN, which nothing reaches."""
    return "–" if value is None or isnan(value) else f"{value:.{count}f}"


def number(value: float) -> str:
    """Three digits; whole numbers from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share in percent, three digits."""
    return f"{100 * share:.3g} %"


def signed(x: float) -> str:
    """A difference: four decimals, and a true minus."""
    return f"{x:.4f}".replace("-", "−")


def spaced(n: int | float) -> str:
    """A whole number in groups of three digits."""
    return f"{n:,.0f}".replace(",", "\u202f")


def listed(names: Sequence[str]) -> str:
    """Names in a row; "none" for none."""
    return ", ".join(names) or "none"


def line(words: str) -> str:
    """Words that a template breaks anywhere as one line: a paragraph, a picture's description."""
    return re.sub(r"[ \n]+", " ", words).strip(" ")  # a narrow space in a number stays


@cache
def _environment(folder: Path):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals |= {"table": markdown}
    found.filters |= {x.__name__: x for x in (digits, line, listed, number, percent, spaced)}
    return found
