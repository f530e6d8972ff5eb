"""Pages: self-contained HTML that loads nothing from anywhere, light and dark, wide and narrow.

Everything that comes in is escaped; the only markup taken as it is are `Html` values made here and SVG charts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Literal
from urllib.parse import quote

Align = Literal["left", "right"]


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def heading(text: str, level: int = 2) -> Html:
    """A heading, level 1 to 6."""
    if level not in range(1, 7):
        raise ValueError(f"headings have levels 1 to 6, not {level}")
    return Html(f"<h{level}>{escape(text)}</h{level}>")


def paragraph(text: str) -> Html:
    """A paragraph of plain text."""
    return Html(f"<p>{escape(text)}</p>")


def callout(kind: Literal["good", "bad"], text: str) -> Html:
    """A sentence that must be seen: green for good, red for bad."""
    if kind not in ("good", "bad"):
        raise ValueError(f"a callout is 'good' or 'bad', not {kind!r}")
    return Html(f'<p class="callout {kind}" role="note">{escape(text)}</p>')


def tiles(entries: Iterable[tuple[str, str, str]]) -> Html:
    """Headline numbers side by side: (number, what it is, a remark)."""
    inner = (
        f'<div class="tile"><b>{escape(number)}</b><span>{escape(what)}</span><small>{escape(remark)}</small></div>'
        for number, what, remark in entries
    )
    return Html(f'<div class="tiles">{"".join(inner)}</div>')


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    align: Sequence[Align] | None = None,
    footer: Sequence[str] | None = None,
) -> Html:
    """A table of text cells.

    Args:
        headers: one per column.
        rows: as many cells each.
        align: "left" or "right" per column; by default the first is left and the others right.
        footer: a last row that sums up.

    Raises:
        ValueError: a row or `align` of another length.
    """
    align = align or ["left", *["right"] * (len(headers) - 1)]  # type: ignore[list-item]
    body = [list(row) for row in rows]
    for row in (align, *body, *([footer] if footer else [])):
        if len(row) != len(headers):
            raise ValueError(f"a table of {len(headers)} columns ({', '.join(headers)}) got {len(row)} cells: {row}")

    def line(cells: Sequence[str], tag: str) -> str:
        pairs = zip(cells, align, strict=True)
        return "<tr>" + "".join(f'<{tag} class="{side}">{escape(cell)}</{tag}>' for cell, side in pairs) + "</tr>"

    parts = [f"<thead>{line(headers, 'th')}</thead>", f"<tbody>{''.join(line(row, 'td') for row in body)}</tbody>"]
    if footer:
        parts.append(f"<tfoot>{line(footer, 'td')}</tfoot>")
    return Html(f'<div class="scroll" tabindex="0"><table>{"".join(parts)}</table></div>')


def linked_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], links: Sequence[str], align: Sequence[Align] | None = None
) -> Html:
    """A table whose first cells lead to other pages.

    Args:
        headers, rows, align: see `table`.
        links: relative path of each row's page; empty for none.
    """
    names = [f"\ue000{index}\ue000" for index in range(len(rows))]  # stands for the cell, which is markup
    text = str(table(headers, [(name, *row[1:]) for name, row in zip(names, rows, strict=True)], align))
    for name, row, link in zip(names, rows, links, strict=True):
        cell = escape(row[0])
        text = text.replace(name, f'<a href="{escape(quote(link))}">{cell}</a>' if link else cell)
    return Html(text)


def figure(svg: str, caption: str) -> Html:
    """A chart from `paring.cli.plots` with its caption.

    Raises:
        ValueError: `svg` is no SVG element.
    """
    if not svg.startswith("<svg") or not svg.rstrip().endswith("</svg>"):
        raise ValueError(f"a figure needs one SVG element, not text that starts with {svg[:40]!r}")
    return Html(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>")


def page(title: str, blocks: Iterable[str]) -> str:
    """The whole document; blocks are `Html`, any other text becomes a paragraph."""
    inner = "\n".join(block if isinstance(block, Html) else paragraph(block) for block in blocks)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{inner}
</main>
</body>
</html>
"""


_STYLE = """
:root{--paper:#fbfbf9;--card:#fff;--ink:#1f2630;--soft:#5d6875;--line:#e3e5e3;--accent:#2f6fbf;
--good:#13774f;--good-paper:#e8f5ee;--bad:#b3261e;--bad-paper:#fdecea}
@media(prefers-color-scheme:dark){:root{--paper:#14181d;--card:#1b2128;--ink:#e6eaee;--soft:#9aa6b2;--line:#2d353e;
--accent:#7db4f0;--good:#6fd3a5;--good-paper:#15291f;--bad:#ff8f85;--bad-paper:#331a18}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.6 system-ui,sans-serif}
main{max-width:54rem;margin:0 auto;padding:3rem 1.25rem 5rem}
h1{font-size:1.9rem;line-height:1.2;letter-spacing:-.015em;margin:0 0 1.5rem}
h2{font-size:1.25rem;margin:3rem 0 .75rem;letter-spacing:-.01em}
h3{font-size:1.05rem;margin:2rem 0 .5rem}
p{max-width:42rem;margin:.75rem 0;overflow-wrap:anywhere}
.callout{max-width:none;padding:.8rem 1.1rem;border-left:4px solid;border-radius:6px;margin:1.5rem 0}
.good{color:var(--good);background:var(--good-paper)}
.bad{color:var(--bad);background:var(--bad-paper)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:1rem;margin:1.5rem 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.1rem}
.tile b{display:block;font-size:1.75rem;line-height:1.2;letter-spacing:-.02em;color:var(--accent)}
.tile span{display:block;font-weight:600;margin-top:.25rem}
.tile small{color:var(--soft);font-size:.85rem}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-size:.94rem;font-variant-numeric:tabular-nums}
th,td{padding:.55rem 1rem;text-align:left;white-space:nowrap}
th{color:var(--soft);font-weight:600;font-size:.85rem}
tbody td,tfoot td{border-top:1px solid var(--line)}
tfoot td{font-weight:650}
a{color:var(--accent)}
.right{text-align:right}
td.left{white-space:normal;overflow-wrap:anywhere;min-width:6rem}
figure{margin:1.25rem 0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.1rem}
figure svg{display:block;width:100%;max-width:42rem;height:auto}
figcaption{color:var(--soft);font-size:.9rem;margin-top:.75rem;max-width:42rem}
@media(max-width:34rem){main{padding-top:1.75rem}h1{font-size:1.5rem}th,td{padding:.5rem .7rem}figure{padding:.6rem}}
"""
