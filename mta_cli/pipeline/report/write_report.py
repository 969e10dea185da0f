"""Reports of evaluations as Markdown and as one self-contained HTML page, from result documents only.

The page has no script and loads nothing. Names are not trusted: control characters are removed, and no character of a
name acts as markup.
"""

from __future__ import annotations

import html as markup
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from mta_cli.errors import BadInput
from mta_cli.pipeline.report import charts
from mta_cli.pipeline.report.blocks import (
    Block,
    Collapsible,
    Heading,
    Paragraph,
    Table,
    TableCell,
    all_charts,
    report_blocks,
    report_title,
)
from mta_cli.pipeline.report.charts import Chart
from mta_cli.pipeline.report.files import write_whole_file
from mta_cli.pipeline.report.results import Document, slug
from mta_cli.pipeline.report.style import SVG_NAMESPACE
from mta_cli.printable import clean_line

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# What Markdown would read as more than a character: the start of code, emphasis, a cell's end, a link's middle, a tag.
_MARKDOWN_SPECIAL = re.compile(r"[\\`*|~$#]|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|<(?!\s)|&(?=[#\w])")


def render_markdown(documents: Sequence[Document], images: Mapping[str, str]) -> str:
    """The report in Markdown. `images` maps a chart's name to the address of its picture; others are left out.

    Raises BadInput when there is no document.
    """
    return "\n\n".join(_markdown_blocks(report_blocks(_require_documents(documents)), images)) + "\n"


def render_html(documents: Sequence[Document]) -> str:
    """The report as one HTML page with its style and its charts inside. Raises BadInput when there is no document."""
    made = report_blocks(_require_documents(documents))
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">\n'
        f"<title>{_escape_html(report_title(documents))}</title>\n<style>\n{_page_css()}</style>"
    )
    body = "\n".join([_html_block(made[0]), _contents(made), *map(_html_block, made[1:])])
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def write_reports(documents: Sequence[Document], folder: Path) -> list[Path]:
    """Write report.md, report.html, report.json (the documents) and a PNG for each chart into `folder`.

    Returns their paths in this order. All content is made before the first file is written, and each file is written
    whole or not at all. Raises BadInput when there is no document or the folder cannot be written.
    """
    drawn = {chart.name: charts.chart_png(chart) for chart in all_charts(report_blocks(_require_documents(documents)))}
    images = {name: f"{name}.png" for name in drawn}
    pages = {
        "report.md": render_markdown(documents, images),
        "report.html": render_html(documents),
        "report.json": json.dumps(list(documents), indent=1, ensure_ascii=False) + "\n",
    }
    pictures = [write_whole_file(folder / images[name], content) for name, content in drawn.items()]
    return [*(write_whole_file(folder / name, text.encode()) for name, text in pages.items()), *pictures]


def _require_documents(documents: Sequence[Document]) -> Sequence[Document]:
    if not documents:
        raise BadInput("There is no evaluation to report.", hint="mta eval list")
    return documents


def _escape_html(text: str) -> str:
    return markup.escape(clean_line(text))


def _page_css() -> str:
    return (files("mta_cli.pipeline.report") / "page.css").read_text(encoding="utf-8")


def _contents(made: Sequence[Block]) -> str:
    """Links to the tasks, when there are several."""
    tasks = [block for block in made if isinstance(block, Heading) and block.anchor]
    links = (f'<li><a href="#{task.anchor}">{_escape_html(task.text)}</a></li>' for task in tasks)
    return f"<nav><ul>{''.join(links)}</ul></nav>" if len(tasks) > 1 else ""


def _html_block(block: Block) -> str:
    if isinstance(block, Heading):
        anchor = f' id="{block.anchor}"' if block.anchor else ""
        return f"<h{block.level}{anchor}>{_escape_html(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_escape_html(block.text)}</p>"
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Collapsible):
        inner = "\n".join(map(_html_block, block.blocks))
        return f"<details>\n<summary>{_escape_html(block.title)}</summary>\n{inner}\n</details>"
    drawn = charts.chart_svg(block).replace(f' xmlns="{SVG_NAMESPACE}"', "", 1)
    return f"<figure>\n{drawn}\n<figcaption>{_escape_html(block.caption)}</figcaption>\n</figure>"


def _html_table(table: Table) -> str:
    def classes(index: int, cell: TableCell | None = None) -> str:
        found = ["number"] if index in table.numeric_columns else []
        found += [slug(cell.verdict)] if cell is not None and cell.verdict else []
        return f' class="{" ".join(found)}"' if found else ""

    head = "".join(f'<th scope="col"{classes(i)}>{_escape_html(name)}</th>' for i, name in enumerate(table.columns))
    body = []
    for row in table.rows:
        cells = (f"<td{classes(i, cell)}>{_html_cell(cell)}</td>" for i, cell in enumerate(row[1:], 1))
        marked = ' class="reference"' if row[0].text == table.reference_row else ""
        body.append(f'<tr{marked}><th scope="row">{_escape_html(row[0].text)}</th>{"".join(cells)}</tr>')
    rows = "\n".join(body)
    caption = f"\n<caption>{_escape_html(table.title)}</caption>" if table.title else ""
    return (
        f'<div class="wide"><table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
    )


def _html_cell(cell: TableCell) -> str:
    return f"<strong>{_escape_html(cell.text)}</strong>" if cell.strong else _escape_html(cell.text)


def _markdown_blocks(made: Iterable[Block], images: Mapping[str, str]) -> Iterable[str]:
    for block in made:
        if isinstance(block, Heading):
            yield f"{'#' * block.level} {_escape_markdown(block.text)}"
        elif isinstance(block, Paragraph):
            yield _escape_markdown(block.text)
        elif isinstance(block, Table):
            yield _markdown_table(block)
        elif isinstance(block, Collapsible):
            yield f"**{_escape_markdown(block.title)}**"
            yield from _markdown_blocks(block.blocks, images)
        elif block.name in images:
            yield _markdown_image(block, images[block.name])


def _markdown_image(chart: Chart, address: str) -> str:
    caption = _escape_markdown(chart.caption)
    return f"![{re.sub(r'[][]', '', caption)}]({quote(address, safe='/:.')})\n\n{caption}"


def _markdown_table(table: Table) -> str:
    rules = ("---:" if i in table.numeric_columns else "---" for i in range(len(table.columns)))
    title = f"**{_escape_markdown(table.title)}**\n\n" if table.title else ""
    lines = [map(_escape_markdown, table.columns), rules, *(map(_markdown_cell, row) for row in table.rows)]
    return title + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_cell(cell: TableCell) -> str:
    return f"**{_escape_markdown(cell.text)}**" if cell.strong else _escape_markdown(cell.text)


def _escape_markdown(text: str) -> str:
    """Text without active Markdown characters."""
    return _MARKDOWN_SPECIAL.sub(lambda found: f"\\{found.group()}", clean_line(text))
