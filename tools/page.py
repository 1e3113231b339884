"""The page of `make tour`: what the package makes reports with, `anchor_lab.report.page`."""

from anchor_lab.report.page import formula_to_mathml, loaded_urls, markdown_to_html, to_html

__all__ = ["formula_to_mathml", "loaded_urls", "markdown_to_html", "to_html"]
