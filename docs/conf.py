"""The documentation as pages: `make docs`. Sphinx reads README.md and the other pages as they are, and fails on a link
that leads nowhere and on a page that is in no list below. The pages load nothing from elsewhere.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sphinx.application import Sphinx

project = "gpta-local"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "docs/**.md", "configs/quickstart/DATA.md"]
exclude_patterns = [".*", "build", "dist", "runs"]
nitpicky = True
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
html_copy_source = html_show_copyright = html_show_sphinx = False

LISTS = {
    "Begin": "quickstart how-it-works worth",
    "Use": "configuration data assistants servers runs report tools python shells scaling",
    "Rely on": "SECURITY RELIABILITY",
    "Look closer": (
        "benchmarks/README benchmarks/speed dialogue-gradient LOG rooms /CONTRIBUTING /configs/quickstart/DATA"
    ),
}


def add_lists(app: Sphinx, page: str, source: list[str]) -> None:
    """The README has no list of pages that Sphinx knows: a code host would show it as it stands."""
    if page == root_doc:
        for caption, names in LISTS.items():
            paths = "\n".join(name if name.startswith("/") else f"/docs/{name}" for name in names.split())
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n{paths}\n```\n"


NAMED = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    "<pre>": '<pre tabindex="0">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="This page">',
    '<th class="head"><p></p></th>': '<td class="head"></td>',
}
"""What axe-core misses in pages of Sphinx and its theme: levels, names, and code that scrolls by the keyboard."""


def finish(app: Sphinx, failed: Exception | None) -> None:
    if failed or app.builder.name != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for found, better in NAMED.items():
            text = text.replace(found, better)
        page.write_text(text, encoding="utf-8")
    # where servers look for the first page
    shutil.copy(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_lists)
    app.connect("build-finished", finish)
