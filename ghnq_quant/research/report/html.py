"""The building blocks of a report's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ghnq_quant.research.report.plots import Panel

_STYLE = """
:root { color-scheme: light; --ink: #1d2129; --soft: #5b6472; --line: #dfe3e8; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f6f8; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 1.2rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: .6rem 0 .2rem; }
h2 { font-size: 1.3rem; margin: 0 0 .3rem; }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.2rem 1.3rem 1.4rem; margin: 1.1rem 0; }
p { margin: .35rem 0 .6rem; max-width: 80ch; }
.soft { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  margin: .3rem 0 .6rem; }
th, td { padding: .32rem .75rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
thead th { border-bottom: 1.5px solid var(--ink); font-weight: 600; }
thead tr.over th { border-bottom: none; color: var(--soft); font-weight: 500; text-align: center;
  padding-bottom: 0; }
tbody tr:nth-child(even) td { background: #f8f9fa; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(265px, 100%), 1fr));
  gap: .6rem; }
.panels img { width: 100%; max-width: 420px; height: auto; display: block; }
.beside { display: flex; flex-wrap: wrap; gap: 0 2.6rem; }
.beside > div { min-width: 0; }
td.text, th.text { text-align: left; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: .3rem 0 .5rem;
  list-style: none; font-size: .9rem; }
.legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: 50%;
  margin-right: .4rem; }
details { margin: .7rem 0 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: #f1f3f5; border-radius: 6px; padding: .7rem .9rem; font-size: .82rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 600px) { main { padding: .6rem .5rem 3rem; } section { padding: .9rem .8rem; }
  th, td { padding: .28rem .5rem; } h1 { font-size: 1.4rem; } }
@media print { body { background: #fff; } section { break-inside: avoid-page; border: none; } }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page without any reference to another file."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A box with a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def heading(text: str) -> str:
    """A heading inside of a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, soft: bool = False) -> str:
    """Plain text."""
    return f"<p{' class=soft' if soft else ''}>{escape(text)}</p>"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    over: Sequence[tuple[str, int]] = (),
    texts: int = 1,
) -> str:
    """A table that scrolls sideways where the page is narrow.

    Args:
        head: titles of the columns.
        rows: as many cells each.
        over: titles above the head, and how many columns each spans.
        texts: how many of the first columns hold text, not numbers.
    """
    lines = ["<div class=scroll><table><thead>"]
    if over:
        cells = "".join(f"<th colspan={span}>{escape(text)}</th>" for text, span in over)
        lines.append(f"<tr class=over>{cells}</tr>")
    lines.append(_row("th", head, texts) + "</thead>")
    lines.append("<tbody>")
    lines += [_row("td", row, texts) for row in rows]
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def _row(tag: str, cells: Sequence[str], texts: int) -> str:
    of_text = [" class=text" if i < texts else "" for i in range(len(cells))]
    inner = "".join(
        f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(of_text, cells, strict=True)
    )
    return f"<tr>{inner}</tr>"


def beside(*parts: str) -> str:
    """Parts next to one another where the page is wide enough."""
    return "<div class=beside>" + "\n".join(f"<div>{part}</div>" for part in parts) + "</div>"


def panels(plots: Sequence[Panel], legend: Mapping[str, str] | None = None) -> str:
    """Plots beside one another, under a legend of names and colours."""
    items = "".join(
        f'<li><i style="background:{colour}"></i>{escape(name)}</li>'
        for name, colour in (legend or {}).items()
    )
    images = "\n".join(
        f'<img alt="{escape(plot.title)}" src="{plot.data_uri()}" loading="lazy">' for plot in plots
    )
    head = f"<ul class=legend>{items}</ul>\n" if items else ""
    return f"{head}<div class=panels>\n{images}\n</div>"


def folded(title: str, *parts: str) -> str:
    """Content that shows once its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>\n" + "\n".join(parts) + "\n</details>"


def code(text: str) -> str:
    """A command or other text in which line breaks count."""
    return f"<pre>{escape(text)}</pre>"
