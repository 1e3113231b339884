"""One sentence a line: the form of the prose in notebooks, in which a diff shows what changed.

Markdown reads a single line break as a space, so the page stays the same.
"""

import re
from itertools import pairwise

from markdown_it import MarkdownIt

MARKDOWN = MarkdownIt("commonmark").enable("table")
# Within these no sentence ends: code, formulas, links.
WHOLE = re.compile(r"(`+).+?\1|\$[^$]+\$|!?\[[^\]]*\]\([^)]*\)")
# A full stop, what closes behind it, and a space; a small letter would go on with the sentence.
END = re.compile(r"[.?!][\"”’)\]*_]*(?P<space> +)(?![a-z])")
ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|cf|vs|al|Fig|Eq|Sec|No|pp?|approx)\.$")
LABEL = re.compile(r"\*\*[^*]+\*\*")  # "**Question.** What …" is one line
# What Markdown would take for more than a word at the beginning of a line.
MARK = re.compile(r"(?:[-+*>#=|]|\d+[.)])(?:\s|$)|<")


def one_sentence_a_line(source: str) -> str:
    """The Markdown of a cell with a line for each sentence of its paragraphs and list items.

    Code, formulas on lines of their own, tables, headings and quotations stay as they are, and so
    does a paragraph with a line break that is meant.
    """
    lines = source.split("\n")
    tokens = MARKDOWN.parse(source)
    for opened, text in reversed(list(pairwise(tokens))):
        if opened.type != "paragraph_open" or "$$" in text.content:
            continue
        start, end = opened.map
        begin = lines[start].removesuffix(text.content.split("\n")[0])
        if ">" in begin or any(part.type == "hardbreak" for part in text.children):
            continue
        first, *more = sentences(text.content.replace("\n", " "))
        lines[start:end] = [begin + first, *(" " * len(begin) + line for line in more)]
    return "\n".join(lines)


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph given as one line."""
    # Of the same length, without anything that could end a sentence.
    hidden = WHOLE.sub(lambda whole: "$" * len(whole[0]), text)
    found, start = [], 0
    for end in END.finditer(hidden):
        before, after = text[start : end.start("space")], text[end.end() :]
        goes_on = ABBREVIATION.search(before) or LABEL.fullmatch(before) or MARK.match(after)
        if after and not goes_on:
            found.append(before)
            start = end.end()
    return [*found, text[start:]]
