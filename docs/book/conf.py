"""The course as a site: every notebook with its stored outputs, built without a network.

The repository is the source folder, so that links mean here what they mean on GitHub.
"""

import sys
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

import nbformat
from docutils.nodes import SkipNode, image, reference
from sphinx.addnodes import download_reference, pending_xref

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for an editor or service that runs Sphinx from elsewhere

from anchor_lab.report.page import formula_to_mathml  # noqa: E402

project = "AnchorAttention, read and seen"
author = "The anchor-attention contributors"
copyright = author
root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "notebooks/**",
    "docs/**",
    "results/**",
    "kernels/LOG.md",
    "training/README.md",
    "anchor_models/model/README.md",
]
exclude_patterns = ["**/.ipynb_checkpoints"]

extensions = ["myst_nb"]
nb_execution_mode = "off"  # what is shown is what is committed
nb_ipywidgets_js = {}  # would be loaded from a delivery network
nb_merge_streams = True
highlight_language = "none"  # a block that names no language is a command or what it printed
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type"]  # the table that `make tour` reads

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_extra_path = ["../heads.html"]  # a page of its own, at the root of the site
html_css_files = ["book.css"]
html_js_files = ["print.js"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_use_index = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search field is beside the contents already
    "show_toc_level": 2,
    "footer_content_items": "copyright",  # the author is the same
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_source_button": False,
}

CONTENTS = {
    "The course": "notebooks/[0-9]*",
    "Exercises": "notebooks/exercises/*",
    "Solutions": "notebooks/solutions/*",
    "Tools and tables": "notebooks/[A-Za-z]*",
    "How to": "docs/how-to/*",
    "More": "docs/*",
    "Measured": "results/*/*",
    "What was tried for speed": "kernels/LOG",
    "The bundled model": "anchor_models/model/README",
    "Its training": "training/README",
    "Taking part": "CONTRIBUTING",
}


def contents() -> str:
    """The table of contents as MyST, one part for each entry of `CONTENTS` that has pages."""
    return "\n".join(
        f"\n```{{toctree}}\n:caption: {title}\n:hidden:\n:glob:\n\n{pattern}\n```\n"
        for title, pattern in CONTENTS.items()
        if any(ROOT.glob(f"{pattern.removesuffix('*')}*.*"))
    )


def add_contents(app, docname: str, source: list[str]) -> None:
    """README.md is the front page; on GitHub it needs no table of contents, here it does."""
    if docname == root_doc:
        source[0] += contents()


def unlink_folders(app, doctree) -> None:
    """A link to a folder, which GitHub lists and a site does not, becomes its text."""
    for link in list(doctree.findall(pending_xref)):
        if (Path(link.source or doctree["source"]).parent / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def open_pages(app, doctree) -> None:
    """A link to a page that is whole in itself opens it; Sphinx would offer a download."""
    for link in list(doctree.findall(download_reference)):
        name = Path(link["reftarget"]).name
        if name in {Path(path).name for path in app.config.html_extra_path}:
            up = "../" * app.env.docname.count("/")
            link.replace_self(reference("", "", *link.children, refuri=f"{up}{name}"))


def describe_figures(app, doctree) -> None:
    """Give figures their alternative text and their width, which myst-nb leaves in the notebook.

    It names a figure's file by the SHA-256 of its bytes: so the two are brought together.
    """
    source = Path(doctree["source"])
    if source.suffix != ".ipynb":
        return
    told = {}
    for cell in nbformat.read(source, as_version=4).cells:
        for output in cell.get("outputs", []):
            if meant := output.get("metadata", {}).get("image/png"):
                told[sha256(b64decode(output.data["image/png"])).hexdigest()] = meant
    for figure in doctree.findall(image):
        meant = told.get(Path(figure["uri"]).stem, {})
        if "alt" in meant:
            figure["alt"] = meant["alt"]
        if "width" in meant:
            figure["width"] = f"{meant['width']}px"


def title_once(app, pagename: str, templatename: str, context: dict, doctree) -> None:
    """The title of each page ends with that of the site; the front page's is the same."""
    if pagename == root_doc:
        context["docstitle"] = ""


def write_index(app, exception) -> None:
    """Sites are entered by index.html."""
    if exception is None:
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def visit_inline_math(translator, node) -> None:
    translator.body.append(formula_to_mathml(node.astext()))
    raise SkipNode


def visit_block_math(translator, node) -> None:
    translator.body.append(f'<div class="math">{formula_to_mathml(node.astext(), "block")}</div>')
    raise SkipNode


def setup(app) -> None:
    app.connect("source-read", add_contents)
    app.connect("doctree-read", unlink_folders)
    app.connect("doctree-read", open_pages, priority=100)  # before Sphinx copies what it links
    app.connect("doctree-read", describe_figures)
    app.connect("html-page-context", title_once)
    app.connect("build-finished", write_index)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(visit_inline_math, None),
        block_renderers=(visit_block_math, None),
    )
