"""Reports of evaluations as Markdown and as one self-contained HTML page, from result documents only.

The layout is in `templates`. The page has no script and loads nothing. Names are not trusted: every text that a
template writes loses its control characters, and none of its characters acts as markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mta_cli.errors import BadInput, Command
from mta_cli.lab.report import charts, tables, wording
from mta_cli.lab.report.charts import Chart
from mta_cli.lab.report.files import write_whole_file
from mta_cli.lab.report.results import (
    Document,
    file_stem,
    find_pooled_document,
    find_series,
    group_by_task,
    group_seeds,
    same_settings,
    unique_documents,
)
from mta_cli.lab.report.style import SVG_NAMESPACE
from mta_cli.pipeline.evaluation import ladder_text
from mta_cli.text.formatting import join_words, pluralise
from mta_cli.text.printable import clean_line

# What Markdown would read as more than a character: the start of code, emphasis, a cell's end, a link's middle, a tag.
_MARKDOWN_SPECIAL = re.compile(r"[\\`*|~$#]|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|<(?!\s)|&(?=[#\w])")


def write_reports(documents: Sequence[Document], folder: Path) -> list[Path]:
    """Write report.md, report.html, report.json (the documents) and a PNG for each chart into `folder`.

    Returns their paths in this order. All content is made before the first file is written, and each file is written
    whole or not at all. Raises BadInput without documents, or if the folder cannot be written.
    """
    report = Report(documents)
    pages = {
        "report.md": render_markdown(report),
        "report.html": render_html(report),
        "report.json": json.dumps(list(documents), indent=1, ensure_ascii=False) + "\n",
    }
    files = {name: text.encode() for name, text in pages.items()}
    pictures = {f"{chart.name}.png": charts.chart_png(chart) for chart in report.charts}
    for name, content in {**pictures, **files}.items():
        write_whole_file(folder / name, content)
    return [folder / name for name in (*files, *pictures)]


def render_markdown(report: Report) -> str:
    """The report in Markdown. Its pictures are `<name of the chart>.png` beside it."""
    text = _environment(_escape_markdown).get_template("report.jinja").render(report.content, layout="markdown.jinja")
    return re.sub(r"\n{3,}", "\n\n", text.strip()) + "\n"


def render_html(report: Report) -> str:
    """The report as one HTML page with its style and its charts inside."""
    return (
        _environment(lambda text: escape(clean_line(text)))
        .get_template("page.html")
        .render(report.content, layout="html.jinja")
    )


def _environment(escape_text: Callable[[str], Markup]) -> Environment:
    """Templates that write every text through `escape_text`; only `Markup` is written as it is."""
    made = Environment(
        loader=PackageLoader("mta_cli.lab.report"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else escape_text(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["svg"] = lambda chart: Markup(charts.chart_svg(chart).replace(f' xmlns="{SVG_NAMESPACE}"', "", 1))
    return made


def _escape_markdown(text: str) -> Markup:
    """Text without active Markdown characters."""
    return Markup(_MARKDOWN_SPECIAL.sub(lambda found: f"\\{found.group()}", clean_line(text)))


@dataclass
class Report:
    """What the templates show: `content`, with its `charts` in order. Duplicate documents are used once.

    Raises BadInput when there is no document.
    """

    documents: Sequence[Document]
    charts: list[Chart] = field(init=False, default_factory=list)
    content: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        if not self.documents:
            raise BadInput("There is no evaluation to report.", hint=Command("eval list"))
        self.documents, self._stems = unique_documents(self.documents), set[tuple[str, str | None]]()
        tasks = group_by_task(self.documents)
        self.content = {
            "title": f"Evaluation of {join_words(tasks)}",
            "tasks": [self._task(task, found) for task, found in tasks.items()],
        }

    def _task(self, task: str, documents: Sequence[Document]) -> dict[str, Any]:
        own = [document for document in documents if "seeds" not in document]
        series = [
            self._chart(charts.series_chart(group, by, self._stem(group[-1], by)))
            for by in ("shots", "anchors", "task_epochs")
            for group in find_series(own, by)
        ]
        designs = [self._design(group, find_pooled_document(documents, group)) for group in group_seeds(own)]
        return {"name": task, "series_charts": series, "designs": designs}

    def _design(self, group: Sequence[Document], pooled: Document | None) -> dict[str, Any]:
        """The content for one design: its only seed or the pooled seeds first, then the seeds if there are several.

        Several seeds have tables with a column for each seed. If they are not pooled, each seed has its own tables too.
        """
        whole = group[0] if len(group) == 1 else pooled
        several = len(group) > 1
        sizes = [pluralise(group[0][key], key[:-1]) for key in ("shots", "anchors") if group[0].get(key) is not None]
        seeds = join_words(document["seed"] for document in group)
        seed_tables = [*tables.seed_tables(group), *(tables.seed_settings_tables(group) if pooled else ())]
        apart = "" if same_settings(group) else " Settings differ between the seeds."
        note = f"By seed. Each interval belongs to one seed; the mean over the seeds has none.{apart}"
        return {
            "heading": ", ".join([*sizes, f"seed{'s' if several else ''} {seeds}"]),
            "whole": self._evaluation(whole) if whole else None,
            "seeds_note": note if several else "",
            "seed_tables": seed_tables if several else [],
            "seeds": [(document["seed"], self._evaluation(document)) for document in group if several and not pooled],
        }

    def _evaluation(self, document: Document) -> dict[str, Any]:
        stem = self._stem(document)
        interval_chart = self._chart(charts.interval_chart(document, stem))
        has_sizes = tables.has_cost(document, "bytes")
        return {
            "design": wording.describe_design(document),
            "power": wording.describe_power(document),
            "ladder": tables.ladder_table(document),
            "verdicts": ladder_text.verdict_lines(document["ladder"], wording.MORE_EVIDENCE)
            if document.get("ladder")
            else [],
            "by_memory": tables.memory_tables(document),
            "methods": tables.methods_table(document),
            "interval_chart": interval_chart,
            "differences": tables.difference_tables(document),
            "size_chart": self._chart(charts.size_chart(document, stem)) if has_sizes else None,
            "settings": tables.settings_table(document),
        }

    def _chart(self, chart: Chart) -> Chart:
        self.charts.append(chart)
        return chart

    def _stem(self, document: Document, across: str | None = None) -> str:
        """A file name for a document or series that is unique in the report."""
        plain = stem = file_stem(document, self.documents, across=across)
        count = 1
        while (stem, across) in self._stems:
            count += 1
            stem = f"{plain}-{count}"
        self._stems.add((stem, across))
        return stem
