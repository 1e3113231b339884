"""Prose gets a line for each sentence, and nothing else changes."""

import pytest

from anchor_lab.report.page import markdown_to_html
from tools.notebooks import ROOT
from tools.prose import one_sentence_a_line


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("A first. A second? A third! θ too.", ["A first.", "A second?", "A third!", "θ too."]),
        ("One sentence\nthat goes\non.", ["One sentence that goes on."]),
        ('It ends "so." (As here.) *And here.* `x` begins.',
         ['It ends "so."', "(As here.)", "*And here.*", "`x` begins."]),
        ("Some keys, e.g. Sinks, cf. Fig. 3 of Xu et al. 2025, by 1.5. Next.",
         ["Some keys, e.g. Sinks, cf. Fig. 3 of Xu et al. 2025, by 1.5.", "Next."]),
        ("Is it (what? that) so? then yes ... no.", ["Is it (what? that) so? then yes ... no."]),
        ("Code `a. B` and $x. Y$ and [a. B](c.md) stay.",
         ["Code `a. B` and $x. Y$ and [a. B](c.md) stay."]),
        ("**Question.** What is it? That.", ["**Question.** What is it?", "That."]),
        ("**Bold ends it.** Next.\n\nSo **it does.** Next.",
         ["**Bold ends it.** Next.", "", "So **it does.**", "Next."]),
        ("* An item. Another\n  sentence.\n* An item.\n\n  Its end. Now.",
         ["* An item.", "  Another sentence.", "* An item.", "", "  Its end.", "  Now."]),
        ("1. One. Two.\n   - Three. Four.", ["1. One.", "   Two.", "   - Three.", "     Four."]),
        ("It is 4. 5. Then.", ["It is 4. 5.", "Then."]),
        ("Not a list. - So. # no heading", ["Not a list. - So. # no heading"]),
    ],
)  # fmt: skip
def test_sentences_have_lines_of_their_own(source, lines):
    written = one_sentence_a_line(source)
    assert written.split("\n") == lines
    assert one_sentence_a_line(written) == written


@pytest.mark.parametrize(
    "source",
    [
        "# A title. With two sentences.",
        "| a. B | c |\n| --- | --- |\n| d. E | f. G |",
        "```\nA. B\nC. D\n```",
        "    code. Indented.",
        "$$ a = b . \\qquad\n   C = d . $$",
        "> Quoted. As it\n> stands.",
        "<p>\nMarkup. It stays\n</p>",
        "A line. Broken  \non purpose.",
        "A title. Underlined.\n===",
        "",
        "\n\n",
    ],
)
def test_what_is_no_prose_stays(source):
    assert one_sentence_a_line(source) == source


def test_the_page_stays_the_same():
    """But for line breaks, which Markdown reads as spaces."""
    for name in ("README.md", "CONTRIBUTING.md", "anchor_models/model/README.md"):
        source = (ROOT / name).read_text(encoding="utf-8")
        written = one_sentence_a_line(source)
        assert written != source
        before, after = (markdown_to_html(text).split() for text in (source, written))
        assert before == after
