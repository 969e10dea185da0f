"""What a report of evaluations says, in plain blocks: headings, sentences, tables and charts, whatever they become.

Says nothing that the result documents do not say. Knows neither Markdown nor HTML, and cleans no text: writers do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mta_cli.pipeline.report import charts, wording
from mta_cli.pipeline.report.charts import Chart
from mta_cli.pipeline.report.results import (
    Document,
    best,
    by_seed,
    by_task,
    cost,
    differences,
    distinct,
    file_stem,
    goodness,
    known,
    mean,
    metrics,
    over_seeds,
    ranked,
    same_settings,
    series,
    titled,
    verdict,
)


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page's own. One with an `anchor` can be linked to."""

    level: int
    text: str
    anchor: str = ""


@dataclass(frozen=True)
class Sentences:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Cell:
    """One cell: `strong` is the best of its column, `tone` is a verdict's word."""

    text: str
    strong: bool = False
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows; the columns in `right` hold numbers; `marked` names the chosen row.

    `title` says what it shows where no heading does.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    right: frozenset[int] = frozenset()
    marked: str = ""
    title: str = ""


@dataclass(frozen=True)
class Fold:
    """Blocks that a page may show closed."""

    title: str
    blocks: tuple[Block, ...]


Block = Heading | Sentences | Table | Fold | Chart


@dataclass
class _Names:
    """Gives every chart a name of its own."""

    documents: Sequence[Document]
    taken: set[tuple[str, str | None]] = field(default_factory=set)

    def stem(self, document: Document, across: str | None = None) -> str:
        """A stem that no other document or series has."""
        plain = stem = file_stem(document, self.documents, across=across)
        count = 1
        while (stem, across) in self.taken:
            count += 1
            stem = f"{plain}-{count}"
        self.taken.add((stem, across))
        return stem


def title(documents: Sequence[Document]) -> str:
    """The report's title."""
    return f"Evaluation of {wording.listed(by_task(documents))}"


def blocks(documents: Sequence[Document]) -> list[Block]:
    """The whole report. Documents that say the same are taken once."""
    found = distinct(documents)
    names = _Names(found)
    made: list[Block] = [Heading(1, title(found))]
    for number, (task, there) in enumerate(by_task(found).items(), 1):
        made.append(Heading(2, task, f"task-{number}"))
        own = [document for document in there if "seeds" not in document]
        for by in ("shots", "anchors"):
            made += [charts.across(group, by, names.stem(group[-1], by)) for group in series(own, by)]
        for group in by_seed(own):
            made += _group(group, names, over_seeds(there, group))
    return made


def all_charts(made: Sequence[Block]) -> list[Chart]:
    """The charts among blocks, in order."""
    found: list[Chart] = []
    for block in made:
        found += [block] if isinstance(block, Chart) else all_charts(block.blocks) if isinstance(block, Fold) else []
    return found


def _group(group: Sequence[Document], names: _Names, together: Document | None) -> Iterator[Block]:
    """One design: of several seeds what they found `together`, then side by side, then each evaluation."""
    yield Heading(3, _label(group))
    if len(group) == 1:
        yield from _evaluation(group[0], names)
        return
    if together is not None:
        yield from _evaluation(together, names)
    apart = "" if same_settings(group) else " Settings differ between the seeds."
    yield Sentences(f"By seed. The mean is over the seeds and has no interval: each seed's is its own.{apart}")
    yield from (_seeds(group, metric) for metric in metrics(group[0]))
    yield _seed_differences(group)
    for document in group:
        yield Fold(f"Seed {document['seed']}", tuple(_evaluation(document, names)))


def _label(group: Sequence[Document]) -> str:
    first = group[0]
    parts = [wording.many(first[key], key[:-1]) for key in ("shots", "anchors") if first.get(key) is not None]
    seeds = wording.listed(document["seed"] for document in group)
    return ", ".join([*parts, f"seed{'s' if len(group) > 1 else ''} {seeds}"])


def _evaluation(document: Document, names: _Names) -> Iterator[Block]:
    stem = names.stem(document)
    yield Sentences(wording.design(document))
    if power := wording.power(document):
        yield Sentences(power)
    yield _methods(document)
    yield charts.intervals(document, stem)
    yield from _differences(document)
    if any(cost(document, method, "bytes") is not None for method in document["methods"]):
        yield charts.by_bytes(document, stem)
    yield from _settings(document)


COSTS: tuple[tuple[str, str, Callable[[object], str]], ...] = (
    ("bytes", "bytes a user", wording.count),
    ("seconds", "seconds to personalise a user", wording.seconds),
    ("seconds_per_query", "seconds a query", wording.seconds),
    ("tokens_per_second", "prompt tokens/s", wording.count),
)


def _methods(document: Document) -> Table:
    shown = metrics(document)
    winners = {metric: best(document, metric) for metric in shown}
    costs = [row for row in COSTS if any(cost(document, method, row[0]) is not None for method in document["methods"])]
    rows = []
    for method in ranked(document):
        scores = document["methods"][method]
        cells = [Cell(wording.interval(scores.get(metric)), method in winners[metric]) for metric in shown]
        rows.append((Cell(method), *cells, *(Cell(write(cost(document, method, what))) for what, _, write in costs)))
    columns = ("method", *map(titled, shown), *(name for _, name, _ in costs))
    return Table(columns, tuple(rows), frozenset(range(1, len(columns))), document["reference"])


def _differences(document: Document) -> Iterator[Block]:
    """Every metric's paired differences; what is not the main metric may be closed."""
    for metric in metrics(document):
        found = differences(document, metric)
        if not found:
            continue
        reference = found[0]["a"]
        head = f"Paired differences in {titled(metric)}: {reference} minus the other"
        columns = ("other method", f"{reference} - other [95 %]", "p", f"{reference} is")
        rows = tuple(
            (Cell(row["b"]), Cell(wording.interval(row, signed=True)), Cell(wording.chance(row.get("p"))), _said(row))
            for row in found
        )
        if metric == document["metric"]:
            yield Table(columns, rows, frozenset((1, 2)), title=head)
        else:
            yield Fold(head, (Table(columns, rows, frozenset((1, 2))),))


def _said(difference: Any) -> Cell:
    return Cell(wording.statement(difference), tone=verdict(difference))


def _settings(document: Document) -> Iterator[Block]:
    """Settings and calibration, where there are any."""
    settings, calibration = document.get("settings") or {}, document.get("calibration") or {}
    rows = [
        (Cell(method), Cell(wording.settings(settings.get(method))), Cell(_temperatures(calibration.get(method))))
        for method in document["methods"]
        if settings.get(method) or calibration.get(method)
    ]
    if rows:
        yield Fold("Settings and calibration", (Table(("method", "settings", "temperature by fold"), tuple(rows)),))


def _temperatures(found: Any) -> str:
    """Of each fold the only one, or the least and the most of its parts'."""
    folds = found if isinstance(found, list | tuple) else [found]
    return ", ".join(_span(own) if isinstance(own, list | tuple) else wording.number(own) for own in folds)


def _span(found: Sequence[Any]) -> str:
    told = [
        wording.number(value) for value in sorted(found, key=lambda value: float("inf") if value is None else value)
    ]
    return " to ".join(dict.fromkeys((told[0], told[-1])))


def _seeds(group: Sequence[Document], metric: str) -> Table:
    """Each method's values by seed with their mean, the best mean first."""
    methods = dict.fromkeys(method for document in group for method in document["methods"])
    means = {method: mean(group, method, metric) for method in methods}
    order = sorted(methods, key=lambda method: _falling(means[method], metric))
    top = next((means[method] for method in order), None)
    rows = []
    for method in order:
        cells = [Cell(wording.interval(document["methods"].get(method, {}).get(metric))) for document in group]
        is_top = top is not None and means[method] == top
        rows.append((Cell(method), *cells, Cell(wording.number(means[method]), is_top)))
    return _seed_table(("method", titled(metric)), group, rows, group[0]["reference"])


def _falling(value: float | None, metric: str) -> tuple[bool, float]:
    return (value is None, 0.0 if value is None else -goodness(value, metric))


def _seed_differences(group: Sequence[Document]) -> Table:
    """The paired differences in the main metric by seed, with their mean."""
    found = [{row["b"]: row for row in differences(document, document["metric"])} for document in group]
    others = dict.fromkeys(other for rows in found for other in rows)
    rows = []
    for other in others:
        there = [own.get(other) for own in found]
        values = [known(row["value"]) for row in there if row is not None]
        whole = [value for value in values if value is not None]
        middle = sum(whole) / len(whole) if len(whole) == len(group) else None
        cells = [_seed_difference(row) for row in there]
        rows.append((Cell(other), *cells, Cell(wording.number(middle, signed=True))))
    title = f"Paired differences in {titled(group[0]['metric'])}: {group[0]['reference']} minus the other"
    return _seed_table(("other method", title), group, rows)


def _seed_difference(row: Any) -> Cell:
    if row is None:
        return Cell(wording.UNKNOWN)
    return Cell(f"{wording.interval(row, signed=True)} {verdict(row)}", tone=verdict(row))


def _seed_table(
    names: tuple[str, str], group: Sequence[Document], rows: Sequence[tuple[Cell, ...]], marked: str = ""
) -> Table:
    """`names` are the first column's and the table's."""
    columns = (names[0], *(f"seed {document['seed']}" for document in group), "mean")
    return Table(columns, tuple(rows), frozenset(range(1, len(columns))), marked, names[1])
