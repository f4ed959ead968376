"""Blocks → Markdown and a page of HTML, which holds its pictures and its style and asks for nothing else. Knows no
results.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from markdown_it import MarkdownIt

from gpta_local.report.pictures import Picture

MARKDOWN = MarkdownIt("zero").enable(["heading", "table", "backticks", "entity"])
"""What a report is made of. No links, pictures or HTML: words of an assistant stay words."""
STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #555; --line: #ddd; --rule: #888; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #161618; --soft: #aaa; --line: #3a3a3e; --rule: #888; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p { max-width: 46rem; } h1 + p { font-size: 1.15rem; }
.scroll { overflow-x: auto; margin: .5rem 0 1.5rem; }
table { border-collapse: separate; border-spacing: 0; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 5.5rem; position: sticky; left: 0;
  padding-left: 0; background: var(--paper); }
th { border-bottom: 2px solid var(--rule); }
[style="text-align:left"] { white-space: normal; } td[style="text-align:left"] { min-width: 6rem; }
figure { margin: 1rem 0 1.5rem; overflow-x: auto; } figcaption { color: var(--soft); max-width: 46rem; }
svg { max-width: 100%; height: auto; } .wide svg { max-width: none; } svg text { fill: currentColor; }
code { overflow-wrap: anywhere; }
@media (max-width: 30rem) { body { margin: 1rem auto; } h1 { font-size: 1.35rem; }
  th, td { padding: .25rem .35rem; } }
@media print {
  body { font-size: 10pt; margin: 0; max-width: none; } .scroll, figure { overflow: visible; }
  table { font-size: 8.5pt; } th, td { white-space: normal; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } .wide svg { max-width: 100%; }
}
"""
NARROW = 345.0
"""Points: a wider picture is not shrunk on a small screen but scrolls."""

Block = str | Picture
"""A heading, paragraph or table in Markdown, or a picture."""


def as_table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = ()) -> str:
    """As Markdown, below its caption. `words`: the numbers of the columns, besides the first, that hold no figures."""
    marks = [":---" if place in words else "---" for place in range(len(header))]
    escaped = [[plain(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join([caption, "", *(f"| {' | '.join(line)} |" for line in (header, marks, *escaped))])


def plain(text: str) -> str:
    """Words of others as Markdown that shows them as they are, and no link, picture or element in their place."""
    return escape(" ".join(text.split()), quote=False).replace("[", "&#91;")


def as_page(blocks: Sequence[Block], title: str) -> str:
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    )
    body = "".join(_element(block) if isinstance(block, str) else _figure(block) for block in blocks)
    page = f"<head>\n{head}\n</head>\n<body>\n<main>\n{body}</main>\n</body>"
    return f'<!doctype html>\n<html lang="en">\n{page}\n</html>\n'


def as_fragment(blocks: Iterable[str]) -> str:
    """Blocks by themselves, for a page that there is already."""
    return "".join(map(_element, blocks))


def as_markdown(blocks: Iterable[Block]) -> str:
    """A picture becomes its caption and its description."""
    words = (block if isinstance(block, str) else f"{block.caption} {block.description}".rstrip() for block in blocks)
    return "\n\n".join(words) + "\n"


def _element(block: str) -> str:
    """A table gets a frame that scrolls, and that one can reach by the keyboard."""
    html = str(MARKDOWN.render(block))
    name = escape(" ".join(block.partition("\n")[0].replace("`", "").split()))
    html = html.replace("<table>", f'<div class="scroll" role="group" tabindex="0" aria-label="{name}">\n<table>')
    return html.replace("</table>", "</table>\n</div>")


def _figure(picture: Picture) -> str:
    """The picture in the colours of the page."""
    label = escape(f"{picture.caption} {picture.description}".rstrip())
    svg = re.sub(r"<metadata>.*?</metadata>", "", picture.svg, flags=re.DOTALL)
    svg = svg.replace("fill: #ffffff", "fill: none").replace("#000000", "currentColor")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    width = re.search(r'<svg[^>]* width="([0-9.]+)pt"', svg)
    wide = f' class="wide" tabindex="0" aria-label="{label}"' if width and float(width[1]) > NARROW else ""
    return f"<figure{wide}>\n<figcaption>{MARKDOWN.renderInline(picture.caption)}</figcaption>\n{svg}\n</figure>\n"
