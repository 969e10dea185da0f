"""The content of a report of evaluations as blocks (headings, sentences, tables and charts), without a layout.

All content comes from the result documents. Writers turn blocks into Markdown or HTML, and escape the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mta_cli.pipeline.report import charts, wording
from mta_cli.pipeline.report.charts import Chart
from mta_cli.pipeline.report.results import (
    Document,
    best_methods,
    difference_verdict,
    differences,
    file_stem,
    find_pooled_document,
    find_series,
    finite_or_none,
    group_by_task,
    group_seeds,
    mean_score,
    method_cost,
    metric_title,
    metrics,
    rank_methods,
    same_settings,
    signed_score,
    unique_documents,
)


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page's title. A heading with an `anchor` can be a link's target."""

    level: int
    text: str
    anchor: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class TableCell:
    """One cell: `strong` marks the best of its column; `verdict` is the word of a difference's verdict."""

    text: str
    strong: bool = False
    verdict: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows. `numeric_columns` hold numbers; `reference_row` is the chosen row.

    `title` is the caption where no heading precedes the table.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    numeric_columns: frozenset[int] = frozenset()
    reference_row: str = ""
    title: str = ""


@dataclass(frozen=True)
class Collapsible:
    """Blocks that a page may show collapsed."""

    title: str
    blocks: tuple[Block, ...]


Block = Heading | Paragraph | Table | Collapsible | Chart


@dataclass
class _ChartNames:
    """Gives every chart a unique name."""

    documents: Sequence[Document]
    taken: set[tuple[str, str | None]] = field(default_factory=set)

    def stem(self, document: Document, across: str | None = None) -> str:
        """A file name that no other document or series has."""
        plain = stem = file_stem(document, self.documents, across=across)
        count = 1
        while (stem, across) in self.taken:
            count += 1
            stem = f"{plain}-{count}"
        self.taken.add((stem, across))
        return stem


def report_title(documents: Sequence[Document]) -> str:
    """The report's title."""
    return f"Evaluation of {wording.join_words(group_by_task(documents))}"


def report_blocks(documents: Sequence[Document]) -> list[Block]:
    """The whole report. Duplicate documents are used once."""
    found = unique_documents(documents)
    names = _ChartNames(found)
    made: list[Block] = [Heading(1, report_title(found))]
    for number, (task, there) in enumerate(group_by_task(found).items(), 1):
        made.append(Heading(2, task, f"task-{number}"))
        own = [document for document in there if "seeds" not in document]
        for by in ("shots", "anchors"):
            made += [charts.series_chart(group, by, names.stem(group[-1], by)) for group in find_series(own, by)]
        for group in group_seeds(own):
            made += _design_blocks(group, names, find_pooled_document(there, group))
    return made


def all_charts(made: Sequence[Block]) -> list[Chart]:
    """The charts among blocks, in order."""
    found: list[Chart] = []
    for block in made:
        found += (
            [block] if isinstance(block, Chart) else all_charts(block.blocks) if isinstance(block, Collapsible) else []
        )
    return found


def _design_blocks(group: Sequence[Document], names: _ChartNames, together: Document | None) -> Iterator[Block]:
    """The blocks of one design: the pooled seeds (`together`), the seeds side by side, then each evaluation."""
    yield Heading(3, _design_heading(group))
    if len(group) == 1:
        yield from _evaluation(group[0], names)
        return
    if together is not None:
        yield from _evaluation(together, names)
    apart = "" if same_settings(group) else " Settings differ between the seeds."
    yield Paragraph(f"By seed. The mean is over the seeds and has no interval: each seed's is its own.{apart}")
    yield from (_seeds(group, metric) for metric in metrics(group[0]))
    yield _seed_differences(group)
    for document in group:
        yield Collapsible(f"Seed {document['seed']}", tuple(_evaluation(document, names)))


def _design_heading(group: Sequence[Document]) -> str:
    first = group[0]
    parts = [wording.pluralise(first[key], key[:-1]) for key in ("shots", "anchors") if first.get(key) is not None]
    seeds = wording.join_words(document["seed"] for document in group)
    return ", ".join([*parts, f"seed{'s' if len(group) > 1 else ''} {seeds}"])


def _evaluation(document: Document, names: _ChartNames) -> Iterator[Block]:
    stem = names.stem(document)
    yield Paragraph(wording.describe_design(document))
    if power := wording.describe_power(document):
        yield Paragraph(power)
    yield _methods(document)
    yield charts.interval_chart(document, stem)
    yield from _differences(document)
    if any(method_cost(document, method, "bytes") is not None for method in document["methods"]):
        yield charts.size_chart(document, stem)
    yield from _settings(document)


COST_COLUMNS: tuple[tuple[str, str, Callable[[object], str]], ...] = (
    ("bytes", "bytes a user", wording.format_count),
    ("seconds", "seconds to personalise a user", wording.format_seconds),
    ("seconds_per_query", "seconds a query", wording.format_seconds),
    ("tokens_per_second", "prompt tokens/s", wording.format_count),
)


def _methods(document: Document) -> Table:
    shown = metrics(document)
    winners = {metric: best_methods(document, metric) for metric in shown}
    costs = [
        row
        for row in COST_COLUMNS
        if any(method_cost(document, method, row[0]) is not None for method in document["methods"])
    ]
    rows = []
    for method in rank_methods(document):
        scores = document["methods"][method]
        cells = [TableCell(wording.format_interval(scores.get(metric)), method in winners[metric]) for metric in shown]
        rows.append(
            (
                TableCell(method),
                *cells,
                *(TableCell(write(method_cost(document, method, what))) for what, _, write in costs),
            )
        )
    columns = ("method", *map(metric_title, shown), *(name for _, name, _ in costs))
    return Table(columns, tuple(rows), frozenset(range(1, len(columns))), document["reference"])


def _differences(document: Document) -> Iterator[Block]:
    """The paired differences in every metric. A page may collapse those of other metrics than the main one."""
    for metric in metrics(document):
        found = differences(document, metric)
        if not found:
            continue
        reference = found[0]["a"]
        head = f"Paired differences in {metric_title(metric)}: {reference} minus the other"
        columns = ("other method", f"{reference} - other [95 %]", "p", f"{reference} is")
        rows = tuple(
            (
                TableCell(row["b"]),
                TableCell(wording.format_interval(row, signed=True)),
                TableCell(wording.format_p_value(row.get("p"))),
                _verdict_cell(row),
            )
            for row in found
        )
        if metric == document["metric"]:
            yield Table(columns, rows, frozenset((1, 2)), title=head)
        else:
            yield Collapsible(head, (Table(columns, rows, frozenset((1, 2))),))


def _verdict_cell(difference: Any) -> TableCell:
    return TableCell(wording.describe_difference(difference), verdict=difference_verdict(difference))


def _settings(document: Document) -> Iterator[Block]:
    """Settings and calibration, where there are any."""
    settings, calibration = document.get("settings") or {}, document.get("calibration") or {}
    rows = [
        (
            TableCell(method),
            TableCell(wording.describe_settings(settings.get(method))),
            TableCell(_temperatures(calibration.get(method))),
        )
        for method in document["methods"]
        if settings.get(method) or calibration.get(method)
    ]
    if rows:
        yield Collapsible(
            "Settings and calibration", (Table(("method", "settings", "temperature by fold"), tuple(rows)),)
        )


def _temperatures(found: Any) -> str:
    """The temperature of each fold, or the lowest and highest of its calibration parts."""
    folds = found if isinstance(found, list | tuple) else [found]
    return ", ".join(_span(own) if isinstance(own, list | tuple) else wording.format_number(own) for own in folds)


def _span(found: Sequence[Any]) -> str:
    told = [
        wording.format_number(value)
        for value in sorted(found, key=lambda value: float("inf") if value is None else value)
    ]
    return " to ".join(dict.fromkeys((told[0], told[-1])))


def _seeds(group: Sequence[Document], metric: str) -> Table:
    """Each method's values by seed with their mean, the best mean first."""
    methods = dict.fromkeys(method for document in group for method in document["methods"])
    means = {method: mean_score(group, method, metric) for method in methods}
    order = sorted(methods, key=lambda method: _descending_key(means[method], metric))
    top = next((means[method] for method in order), None)
    rows = []
    for method in order:
        cells = [
            TableCell(wording.format_interval(document["methods"].get(method, {}).get(metric))) for document in group
        ]
        is_top = top is not None and means[method] == top
        rows.append((TableCell(method), *cells, TableCell(wording.format_number(means[method]), is_top)))
    return _seed_table(("method", metric_title(metric)), group, rows, group[0]["reference"])


def _descending_key(value: float | None, metric: str) -> tuple[bool, float]:
    return (value is None, 0.0 if value is None else -signed_score(value, metric))


def _seed_differences(group: Sequence[Document]) -> Table:
    """The paired differences in the main metric by seed, with their mean."""
    found = [{row["b"]: row for row in differences(document, document["metric"])} for document in group]
    others = dict.fromkeys(other for rows in found for other in rows)
    rows = []
    for other in others:
        there = [own.get(other) for own in found]
        values = [finite_or_none(row["value"]) for row in there if row is not None]
        whole = [value for value in values if value is not None]
        middle = sum(whole) / len(whole) if len(whole) == len(group) else None
        cells = [_seed_difference(row) for row in there]
        rows.append((TableCell(other), *cells, TableCell(wording.format_number(middle, signed=True))))
    title = f"Paired differences in {metric_title(group[0]['metric'])}: {group[0]['reference']} minus the other"
    return _seed_table(("other method", title), group, rows)


def _seed_difference(row: Any) -> TableCell:
    if row is None:
        return TableCell(wording.NO_VALUE)
    return TableCell(
        f"{wording.format_interval(row, signed=True)} {difference_verdict(row)}", verdict=difference_verdict(row)
    )


def _seed_table(
    names: tuple[str, str], group: Sequence[Document], rows: Sequence[tuple[TableCell, ...]], marked: str = ""
) -> Table:
    """A table by seed. `names` are the headings of the first column and of the table."""
    columns = (names[0], *(f"seed {document['seed']}" for document in group), "mean")
    return Table(columns, tuple(rows), frozenset(range(1, len(columns))), marked, names[1])
