"""The site's checks find what is wrong with a page; `make book` runs them on all."""

import pytest
from PIL import Image

from tests.browser import CHROMIUM, FLAGS, in_browser
from tools import book

GOOD = """<!doctype html><html><head><link rel="stylesheet" href="a.css"></head><body>
<h1 id="top-of-it">A page</h1><img src="b.png" alt="b"><a href="#top-of-it">up</a>
<a href="other.html#part">there</a><a href="https://arxiv.org/abs/2505.23520">paper</a></body></html>"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "index.html").write_text(GOOD)
    (tmp_path / "other.html").write_text('<p id="part">Part</p>')
    (tmp_path / "a.css").write_text("p { margin: 0 }")
    (tmp_path / "b.png").write_bytes(b"")
    return tmp_path


def test_a_sound_site_has_no_faults(site):
    assert book.faults(site) == []
    assert len(book.html(site)) == 2


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("other.html#part", "another.html", "index.html: another.html leads nowhere"),
        ("b.png", "c.png", "index.html: c.png leads nowhere"),
        ("#part", "#whole", "index.html: other.html#whole leads to no part of that page"),
        ('"#top-of-it"', '"#gone"', "index.html: #gone leads to no part of that page"),
        ("a.css", "https://example.org/a.css", "index.html: loads https://example.org/a.css"),
        (' alt="b"', "", "index.html: b.png has no alternative text"),
        ('alt="b"', 'alt=" "', "index.html: b.png has no alternative text"),
        ('alt="b"', 'alt="images/b.png"', "index.html: b.png has no alternative text"),
        ("b.png", "//example.org/b.png", "index.html: loads //example.org/b.png"),
    ],
)
def test_a_fault_is_named(site, old, new, fault):
    (site / "index.html").write_text(GOOD.replace(old, new))
    assert book.faults(site) == [fault]


def test_a_theme_s_templates_are_no_pages(site):
    (site / "_static").mkdir()
    (site / "_static" / "macros.html").write_text('<a href="{{ nowhere }}">x</a>')
    assert book.faults(site) == []


def test_an_escaped_address_is_the_file_it_means(site):
    (site / "a b.html").write_text("<p>x</p>")
    (site / "index.html").write_text(GOOD.replace("other.html#part", "a%20b.html"))
    assert book.faults(site) == []


@in_browser
def test_a_dark_page_is_printed_light_and_dark_again_after(site):
    from playwright.sync_api import sync_playwright

    script = (book.ROOT / "docs" / "book" / "static" / "print.js").read_text(encoding="utf-8")
    dark = f'<html data-theme="dark"><body><p>Words.</p><script>{script}</script></body></html>'
    (site / "dark.html").write_text(dark)
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS).new_page()
        page.goto((site / "dark.html").as_uri())
        theme = "document.documentElement.dataset.theme"
        page.evaluate(f"addEventListener('beforeprint', () => {{ seen = {theme} }})")
        page.pdf()
        assert page.evaluate("seen") == "light"
        assert page.evaluate(theme) == "dark"


@in_browser
@pytest.mark.parametrize(
    ("figure", "shown"),
    [
        ('<div class="cell_output"><a href="b.png"><img src="b.png" {}></a></div>', 540),
        ('<div class="cell_output"><img src="b.png" {}></div>', 540),
        ('<p><img src="b.png" {}></p>', 760),
    ],
)
def test_on_a_phone_a_wide_figure_scrolls_and_the_page_does_not(site, figure, shown):
    from playwright.sync_api import sync_playwright

    Image.new("RGB", (1600, 400)).save(site / "b.png")
    style = (book.ROOT / "docs" / "book" / "static" / "book.css").read_text(encoding="utf-8")
    figures = figure.format("") + figure.format('style="width: 300px"')
    (site / "index.html").write_text(
        f'<style>{style}</style><article class="bd-article">{figures}</article>'
    )
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS).new_page()
        page.set_viewport_size({"width": 390, "height": 800})
        page.goto((site / "index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        widths = [picture.bounding_box()["width"] for picture in page.locator("img").all()]
    assert widths == [shown, 300]
