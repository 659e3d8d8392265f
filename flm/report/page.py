"""The HTML of a report: pieces of a page that needs no network, no script and no file beside it."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from flm.measures.estimate import Estimate
from flm.report.film_strip import shade, visible
from flm.report.records import Film, Frame, Samples, TextSet
from flm.report.tables import Cell, Table, number

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; color: #222;
  background: #fff; max-width: 66rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: .75rem; border-top: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; }
nav { font-size: .9rem; margin: .75rem 0 0; }
nav a { margin-right: 1.1rem; white-space: nowrap; }
a { color: #005a93; }
.missing { color: #555; background: #f5f5f5; border-left: 3px solid #bbb; padding: .5rem .8rem; }
code { font: .85em/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: baseline; border-bottom: 1px solid #e6e6e6; }
th { font-weight: 600; color: #444; border-bottom: 1px solid #999; vertical-align: bottom; }
th.n, td.n { text-align: right; padding-left: .7rem; }
th.n { max-width: 9rem; overflow-wrap: break-word; }
td.n { white-space: nowrap; }
.error { color: #666; font-size: .85em; }
dl.commands { font-size: .85rem; display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; }
dl.commands dd { margin: 0; }
summary { cursor: pointer; color: #005a93; font-size: .9rem; }
.columns { display: grid; gap: 1rem 1.5rem; grid-auto-columns: minmax(0, 1fr); grid-auto-flow: column; align-items: start; }
.columns h4 { margin: 0; font-size: .9rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; line-height: 1.45; border: 1px solid #e2e2e2;
  border-radius: 4px; padding: .5rem .65rem; margin: .5rem 0; }
.moment { display: grid; grid-template-columns: 4.6rem minmax(0, 1fr); margin: .55rem 0; }
.moment > .tau { font-size: .75rem; color: #666; padding-top: .1rem; font-variant-numeric: tabular-nums; }
.strip { font: .74rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.strip .given { text-decoration: underline; text-underline-offset: 2px; }
.key { font-size: .8rem; color: #444; }
.key span { display: inline-block; width: 1.2rem; height: .8rem; border: 1px solid #ccc; }
footer { margin-top: 3rem; padding-top: .75rem; border-top: 1px solid #ddd; font-size: .8rem; color: #555; }
@media (max-width: 46rem) { .columns { grid-auto-flow: row; } }
"""


def document(title: str, introduction: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole page. sections: (identifier, heading, inner HTML); the other arguments are text, except footer: HTML."""
    links = "\n".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{escape(heading)}</h2>\n{inner}</section>\n' for name, heading, inner in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # an icon of its own, or a browser would ask for one
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n'
        f"<header><h1>{escape(title)}</h1>\n<p>{escape(introduction)}</p>\n<nav>{links}</nav></header>\n"
        f"<main>\n{body}</main>\n<footer>{footer}</footer>\n</body>\n</html>\n"
    )


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def missing(text: str, command: str) -> str:
    """What is not there, and the command that makes it."""
    return f'<p class="missing">{escape(text)} <code>{escape(command)}</code></p>\n'


def picture(png: bytes, description: str) -> str:
    """An embedded figure; its description is for those who do not see it."""
    data = base64.b64encode(png).decode("ascii")
    return f'<figure><img alt="{escape(description)}" src="data:image/png;base64,{data}"></figure>\n'


def table(content: Table) -> str:
    """Numbers are aligned right; an estimate shows its standard error; empty cells are dashes."""
    numeric = [all(not isinstance(row[i], str) for row in content.rows) for i in range(len(content.columns))]
    numeric = [n or (i > 0 and content.columns[i] == "steps") for i, n in enumerate(numeric)]
    head = "".join(_cell("th", escape(name), n) for name, n in zip(content.columns, numeric, strict=True))
    rows = "".join(
        "<tr>" + "".join(_cell("td", _value(cell), n) for cell, n in zip(row, numeric, strict=True)) + "</tr>\n"
        for row in content.rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n'


def command_list(commands: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(run)}</dt><dd><code>{escape(line)}</code></dd>" for run, line in commands)
    return f'<details open><summary>Commands</summary><dl class="commands">{rows}</dl></details>\n' if rows else ""


def texts(run: Samples, count: int, characters: int) -> str:
    """Columns of texts next to each other: fewest steps, most steps, real text."""
    generated = list(run.generated[:1]) + list(run.generated[1:][-1:])
    columns = []
    for one in [*generated, *([run.real] if run.real is not None else [])]:
        heading = "real text" if one.steps is None else f"{one.steps} step{'s' * (one.steps > 1)}"
        columns.append(f"<div><h4>{heading}</h4>{_texts_of(one, count, characters)}</div>")
    return f'<div class="columns">{"".join(columns)}</div>\n'


def films(reels: Sequence[Film], tokens: int) -> str:
    """Films next to each other, each moment's tokens shaded by probability; the first `tokens` of a text."""
    columns = []
    for film in reels:
        moments = "".join(
            f'<div class="moment"><div class="tau">tau {frame.tau:.2f}</div>'
            f'<div class="strip">{_strip(frame, tokens)}</div></div>\n'
            for frame in film.frames
        )
        columns.append(f"<div><h4>{film.steps} step{'s' * (film.steps > 1)}</h4>{moments}</div>")
    return f'<div class="columns">{"".join(columns)}</div>\n'


def shading_key() -> str:
    boxes = "".join(f'<span style="background:{shade(step / 5)}"></span>' for step in range(6))
    return f'<p class="key">probability of the token shown: 0 {boxes} 1; given tokens are underlined</p>\n'


def _strip(frame: Frame, tokens: int) -> str:
    spans = []
    for token, probability, given in list(zip(frame.tokens, frame.probability, frame.given, strict=True))[:tokens]:
        mark = ' class="given"' if given else ""
        spans.append(
            f'<span{mark} style="background:{shade(probability)}" title="{probability:.2f}">{escape(visible(token))}</span>'
        )
    return "".join(spans)


def _texts_of(one: TextSet, count: int, characters: int) -> str:
    if one.texts is None:
        return paragraph("The file of texts is not beside the result.")
    boxes = []
    for text in one.texts[:count]:
        cut = text if len(text) <= characters else text[:characters].rstrip() + " \u2026"
        shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in cut)
        boxes.append(f'<div class="text">{escape(shown)}</div>')
    return "".join(boxes)


def _cell(tag: str, inner: str, is_number: bool) -> str:
    return f'<{tag} class="n">{inner}</{tag}>' if is_number else f"<{tag}>{inner}</{tag}>"


def _value(cell: Cell) -> str:
    if cell is None:
        return "&ndash;"
    if isinstance(cell, str):
        return f"<code>{cell}</code>" if len(cell) == 12 and set(cell) <= set("0123456789abcdef") else escape(cell)
    if isinstance(cell, Estimate):
        error = "" if cell.standard_error is None else f' <span class="error">&plusmn; {cell.standard_error:.2g}</span>'
        return number(cell.mean) + error
    return number(cell)
