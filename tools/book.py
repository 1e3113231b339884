"""`make book`: the course as a static site in out/book, checked page by page.

Nothing is executed and nothing is fetched: notebooks are shown with the outputs they are committed
with, formulas are MathML, and what a page needs lies beside it. The build fails on a warning, on a
link or picture that leads nowhere, on a picture without alternative text, and on anything that a
browser would load from elsewhere.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

from anchor_lab.report.page import loaded_urls
from tools.notebooks import ROOT

WITHIN_PAGE = {"", "top"}  # fragments that every browser knows


def build(out: Path) -> int:
    """Sphinx's exit code; its warnings count as errors."""
    from sphinx.cmd.build import main as sphinx_build

    config = ROOT / "docs" / "book"
    options = ["--builder", "html", "--fail-on-warning", "--keep-going", "--quiet"]
    return sphinx_build([*options, "--conf-dir", str(config), str(ROOT), str(out)])


def faults(site: Path) -> list[str]:
    """What is wrong with the pages of a site, one line each."""
    pages = {page: BeautifulSoup(page.read_text("utf-8"), "html.parser") for page in html(site)}
    anchors = {page: {tag["id"] for tag in soup.select("[id]")} for page, soup in pages.items()}
    found = []
    for page, soup in pages.items():
        name = page.relative_to(site)
        found += [f"{name}: loads {url}" for url in sorted(remote(str(soup)))]
        found += [f"{name}: {url} has no alternative text" for url in wordless(soup)]
        for url in links(soup):
            target, fragment = resolve(page, url)
            if not target.exists():
                found.append(f"{name}: {url} leads nowhere")
            elif target in anchors and fragment not in anchors[target] | WITHIN_PAGE:
                found.append(f"{name}: {url} leads to no part of that page")
    return found


def html(site: Path) -> list[Path]:
    """Every page; below `_static` lie parts that the theme makes pages from."""
    return sorted(page for page in site.rglob("*.html") if "_static" not in page.parts)


def remote(page: str) -> set[str]:
    """What the page would load from another machine."""
    return {url for url in loaded_urls(page) if urlsplit(url).scheme or url.startswith("//")}


def wordless(soup: BeautifulSoup) -> list[str]:
    """Pictures without a text of their own; Sphinx gives them their address instead."""
    pictures = [(tag.get("src", ""), tag.get("alt", "").strip()) for tag in soup.select("img")]
    return [url for url, alt in pictures if not alt or Path(alt).name == Path(url).name]


def links(soup: BeautifulSoup) -> Iterator[str]:
    """Addresses on this site: of links, pictures, styles and scripts."""
    for tag in soup.select("[href], [src]"):
        url = tag.get("href") or tag.get("src") or ""
        if not urlsplit(url).scheme and not url.startswith("//"):
            yield url


def resolve(page: Path, url: str) -> tuple[Path, str]:
    """The file that an address on `page` means, and the part of it."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    return ((page.parent / path).resolve() if path else page), unquote(parts.fragment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "book")
    out = parser.parse_args().out.resolve()
    code = build(out)
    if code:
        return code
    found = faults(out)
    for fault in found:
        print(fault, file=sys.stderr)
    if not found:
        print(f"{len(html(out))} pages, every link and picture there: {out / 'index.html'}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
