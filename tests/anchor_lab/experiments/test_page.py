"""Pages: a template that lacks a name fails, and numbers are written as people read them."""

import math

import jinja2
import pytest

from anchor_lab.experiments import page


@pytest.fixture
def write(tmp_path):
    """Writes a template and fills it."""

    def fill(template, **values):
        (tmp_path / "page.md.j2").write_text(template, encoding="utf-8")
        return page.render("page.md.j2", tmp_path, **values)

    return fill


@pytest.mark.parametrize(
    "missing", ["{{ recall }}", "{{ run.recall }}", "{% if recall %}{% endif %}"]
)
def test_a_name_that_is_missing_is_an_error(write, missing):
    with pytest.raises(jinja2.UndefinedError, match="recall"):
        write(missing, run={})


def test_a_template_is_filled_as_it_stands(write):
    template = "# {{ name }}\n\n{% for x in rows %}\n{{ x | digits(2) }} < 1\n{% endfor %}\nEnd.\n"
    filled = write(template, name="θ & b", rows=[0.5, None])
    assert filled == "# θ & b\n\n0.50 < 1\n– < 1\nEnd.\n"


def test_words_that_are_broken_anywhere_become_one_line(write):
    template = "![{% filter line %}\nOne\n  {{ word }}\n128\u202f000.\n{% endfilter %}](a.png)\n"
    assert write(template, word="two") == "![One two 128\u202f000.](a.png)\n"


def test_a_table_has_a_line_for_headings_alignment_and_each_row(write):
    assert write("{{ table(['a', 'b'], [[1, 'x'], [2, 'y']]) }}") == (
        "| a | b |\n| --- | --- |\n| 1 | x |\n| 2 | y |"
    )
    assert page.markdown(["a"], [], "---:") == "| a |\n| ---: |"


def test_numbers():
    assert [page.digits(x, 3) for x in (0.12345, 2.0, None, math.nan)] == [
        *("0.123", "2.000", "–", "–")
    ]
    assert [page.number(x) for x in (0.012345, 1.5, 99.94, 100.0, 123.4, 1000.0, 123456.0)] == [
        *("0.0123", "1.5", "99.9", "100", "123", "1000", "123456")
    ]
    assert page.percent(0.1234) == "12.3 %"
    assert [page.spaced(x) for x in (999, 32_640)] == ["999", "32\u202f640"]
    assert [page.listed(x) for x in ([], ["a"], ["a", "b"])] == ["none", "a", "a, b"]
