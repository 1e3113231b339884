"""The page of the tour on a phone and on paper: what is wide scrolls in its box, or fits."""

import nbformat
import pytest

from anchor_lab.report.page import to_html
from tests.browser import CHROMIUM, FLAGS, in_browser
from tools.notebooks import ROOT

START = ROOT / "notebooks" / "00_start_here.ipynb"

# For a kind of thing: how many there are, how many are wider than the screen, and how many of
# these no box around them lets a reader reach.
SEEN = """kind => {
  const width = document.documentElement.clientWidth;
  const reached = (x) => {
    for (let box = x; box !== document.body; box = box.parentElement) {
      const overflow = getComputedStyle(box).overflowX;
      if (box.scrollWidth <= box.clientWidth || getComputedStyle(box).display == "table-row")
        continue;
      if (overflow == "auto") return box.getBoundingClientRect().right <= width;
      if (overflow == "hidden") return false;
    }
    return false;
  };
  const all = [...document.querySelectorAll(kind)];
  const wide = all.filter((x) => Math.max(x.scrollWidth, x.getBoundingClientRect().width) > width);
  return [all.length, wide.length, wide.filter((x) => !reached(x)).length];
}"""
CODE, PRINTED, FIGURES = ".highlight pre", ".jp-OutputArea-output pre", ".jp-RenderedImage img"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    page = tmp_path_factory.mktemp("tour") / "start.html"
    notebook = nbformat.read(START, as_version=4)
    page.write_text(to_html(notebook, START.parent, "start"), encoding="utf-8")
    return page.as_uri()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@in_browser
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_the_page_is_never_wider_than_the_screen(browser, start, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(start)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for kind in (CODE, PRINTED, FIGURES, "math", "table"):
        found, wide, lost = page.evaluate(SEEN, kind)
        assert found
        assert not lost, kind
        assert wide or width > 390 or kind in ("math", "table")


@in_browser
def test_printed_tables_keep_their_lines_on_a_phone(browser, start):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(start)
    lines = """pre => Math.round(pre.clientHeight / parseFloat(getComputedStyle(pre).lineHeight))
      == pre.innerText.trimEnd().split("\\n").length"""
    kept = [pre.evaluate(lines) for pre in page.locator(PRINTED).all()]
    assert kept
    assert all(kept)


@in_browser
def test_on_paper_all_is_within_the_page(browser, start):
    page = browser.new_page(viewport={"width": 700, "height": 990})  # A4 between its margins
    page.emulate_media(media="print")
    page.goto(start)
    for kind in (CODE, PRINTED, FIGURES):
        assert page.evaluate(SEEN, kind)[1] == 0
    rows = page.locator(PRINTED, has_text="if attention were free")
    assert rows.evaluate("pre => getComputedStyle(pre).fontSize") == "10px"  # of 13 on a screen
