"""Blocks → Markdown and a page of HTML, which holds its pictures and its style and asks for nothing else. Knows no
results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from markdown_it import MarkdownIt

from gpta_local.report.pictures import Picture

MARKDOWN = MarkdownIt("zero").enable(["heading", "table", "backticks", "entity"])
"""What a report is made of. No links, pictures or HTML: words of an assistant stay words."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem; position: sticky; left: 0;
  background: #fff; }
th { border-bottom: 2px solid #888; }
[style="text-align:left"] { white-space: normal; min-width: 18rem; }
figure { margin: 1rem 0 1.5rem; overflow-x: auto; } figcaption { color: #444; } svg { max-width: 100%; height: auto; }
"""

Block = str | Picture
"""A heading, paragraph or table in Markdown, or a picture."""


def as_table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], wide: int | None = None) -> str:
    """As Markdown, below its caption. `wide`: the number of a column that holds sentences."""
    marks = [":---" if place == wide else "---" for place in range(len(header))]
    escaped = [[escape(" ".join(cell.split()), quote=False).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join([caption, "", *(f"| {' | '.join(line)} |" for line in (header, marks, *escaped))])


def as_page(blocks: Sequence[Block], title: str) -> str:
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    )
    body = "".join(MARKDOWN.render(block) if isinstance(block, str) else _figure(block) for block in blocks)
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}</body>\n</html>\n'


def _figure(picture: Picture) -> str:
    svg = picture.svg.replace("<svg", f'<svg role="img" aria-label="{escape(picture.caption)}"', 1)
    return f"<figure>\n<figcaption>{MARKDOWN.renderInline(picture.caption)}</figcaption>\n{svg}\n</figure>\n"
