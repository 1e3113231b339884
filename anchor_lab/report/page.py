"""A notebook as one HTML file that needs no network: figures embedded, formulas as MathML.

nbconvert's page asks content delivery networks for MathJax, require.js, mermaid and widgets. Here
formulas are written as MathML, which every current browser draws by itself, and the rest is left
out: a page that is read needs no scripts.
"""

import re
import warnings
from functools import cache
from pathlib import Path

# What the converter leaves when it does not know a command or an environment.
NOT_UNDERSTOOD = re.compile(r"<(m\w+)[^>]*>(\\[^<]*|&)</\1>")


def formula_to_mathml(tex: str, display: str = "inline") -> str:
    """One formula without its dollar signs.

    Args:
        tex: LaTeX as JupyterLab and GitHub read it.
        display: "inline" or "block".

    Returns:
        A `<math>` element.

    Raises:
        ValueError: the formula holds a command or environment that has no MathML here.
    """
    from latex2mathml.converter import convert

    mathml = convert(tex.strip(), display=display)
    unknown = NOT_UNDERSTOOD.search(mathml)
    if unknown:
        raise ValueError(f"no MathML for {unknown.group(2)!r} in the formula {tex.strip()!r}")
    return mathml


@cache
def _renderer():
    """nbconvert's renderer of Markdown, but for formulas; made when nbconvert is needed."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return formula_to_mathml(body, "block")

        def inline_math(self, body: str) -> str:
            return formula_to_mathml(body)

        def latex_environment(self, name: str, body: str) -> str:
            return formula_to_mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    return Renderer


def markdown_to_html(source: str, **options) -> str:
    """Markdown of a cell with its formulas as MathML; `options` go to nbconvert's renderer."""
    from nbconvert.filters.markdown_mistune import MarkdownWithMath

    renderer = _renderer()(escape=False, embed_images=True, **options)
    return MarkdownWithMath(renderer=renderer).render(source)


@cache
def _exporter():
    """nbconvert's page without anything that it would load."""
    from jinja2 import FileSystemLoader, pass_context
    from nbconvert.exporters import HTMLExporter

    class OfflineHTMLExporter(HTMLExporter):
        def __init__(self, **options):
            loader = FileSystemLoader(Path(__file__).parent)
            super().__init__(extra_loaders=[loader], template_file="page.html.j2", **options)

        @pass_context
        def markdown2html(self, context, source: str) -> str:
            return markdown_to_html(
                source,
                attachments=context.get("cell", {}).get("attachments", {}),
                path=context["resources"]["metadata"]["path"],
                anchor_link_text=self.anchor_link_text,
            )

    return OfflineHTMLExporter


def to_html(notebook, folder: Path, title: str, css: str = "", code: bool = True) -> str:
    """The page of an executed notebook.

    Args:
        notebook: a `NotebookNode` with its outputs.
        folder: that pictures in its markdown are relative to; they are embedded.
        title: of the page.
        css: rules added to those of the page.
        code: whether the cells' code and prompts are shown, or their outputs alone.

    Returns:
        HTML that loads nothing.

    Raises:
        ValueError: a formula cannot be written as MathML, or something would still be loaded.
    """
    resources = {"metadata": {"name": title, "path": str(folder), "css": css}}
    hidden = not code
    exporter = _exporter()(
        exclude_input=hidden, exclude_input_prompt=hidden, exclude_output_prompt=hidden
    )
    with warnings.catch_warnings():
        # A figure without alt text is a warning each; the hygiene of notebooks has its own test.
        warnings.simplefilter("ignore")
        html, _ = exporter.from_notebook_node(notebook, resources)
    loaded = loaded_urls(html)
    if loaded:
        raise ValueError(f"the page of {title} would load {', '.join(sorted(loaded))}")
    return html


def loaded_urls(html: str) -> set[str]:
    """What a browser would fetch to show the page; links that a reader may follow do not count."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    found = [tag.get("src") for tag in soup.select("[src]")]
    found += [tag.get("href") for tag in soup.select("link[href]")]
    text = "\n".join(tag.get_text() for tag in soup.select("style, script"))
    found += re.findall(r"url\(\s*['\"]?([^'\")]+)", text)
    found += re.findall(r"@import\s+['\"]([^'\"]+)", text)
    found += re.findall(r"import\(\s*['\"]([^'\"]+)", text)
    return {url.strip() for url in found if not url.strip().startswith(("data:", "#"))}
