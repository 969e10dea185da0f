"""The tables of a report, from result documents. The cells are texts; templates lay them out and escape them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mta_cli.lab.report import wording
from mta_cli.lab.report.results import (
    Document,
    best_methods,
    difference_verdict,
    differences_by_memory,
    differences_by_reference,
    is_exploratory,
    mean_score,
    memory_variants,
    method_cost,
    metrics,
    rank_methods,
    same_settings,
    signed_score,
    used_settings,
)
from mta_cli.options import MEMORIES
from mta_cli.pipeline.evaluation import ladder_text
from mta_cli.pipeline.evaluation.metric_names import LOGLIK_METRIC, metric_title
from mta_cli.text.formatting import (
    NO_VALUE,
    finite_or_none,
    format_count,
    format_interval,
    format_number,
    format_p_value,
    format_seconds_number,
)


@dataclass(frozen=True)
class Cell:
    """One cell. `strong`: it is the best of its column, or a difference that is significant after Holm's correction.

    `verdict` is the verdict of a difference.
    """

    text: str
    strong: bool = False
    verdict: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    The `numeric` columns after the first hold numbers. `reference` names the reference's row. If `collapsed`, a page
    shows only the title until the reader opens it.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    numeric: int = 0
    reference: str = ""
    title: str = ""
    collapsed: bool = False


COST_COLUMNS: tuple[tuple[str, str, Callable[[object], str]], ...] = (
    ("bytes", "bytes a user", format_count),
    ("seconds", "seconds to personalise a user", format_seconds_number),
    ("seconds_per_query", "seconds a query", format_seconds_number),
    ("tokens_per_second", "prompt tokens/s", format_count),
)


def has_cost(document: Document, what: str) -> bool:
    """Whether the cost is known for any method; see `results.method_cost`."""
    return any(method_cost(document, method, what) is not None for method in document["methods"])


def ladder_table(document: Document) -> Table | None:
    """The steps of the ladder from the bottom, with what each adds; None for a document without a ladder."""
    ladder = document.get("ladder")
    if ladder is None:
        return None
    columns = ladder_text.table_columns(ladder)
    rows = [
        (*map(Cell, cells[:-1]), Cell(cells[-1], strong=cells[-1] == "worth it", verdict=cells[-1]))
        for cells in ladder_text.table_rows(ladder)
    ]
    return Table(columns, rows, len(columns) - 2, title="The ladder: what each step adds to the one below it")


def methods_table(document: Document) -> Table:
    """Every method's scores and costs, the best method first."""
    shown = metrics(document)
    winners = {metric: best_methods(document, metric) for metric in shown}
    costs = [row for row in COST_COLUMNS if has_cost(document, row[0])]
    rows = []
    for method in rank_methods(document):
        scores = document["methods"][method]
        cells = [Cell(format_interval(scores.get(metric)), method in winners[metric]) for metric in shown]
        cells += [Cell(write(method_cost(document, method, what))) for what, _, write in costs]
        rows.append((Cell(method), *cells))
    columns = ("method", *map(metric_title, shown), *(name for _, name, _ in costs))
    return Table(columns, rows, len(columns) - 1, document["reference"])


def memory_tables(document: Document) -> list[Table]:
    """Tables of each method with each label memory: the main metric, and the likelihood.

    Empty if no method was measured with several memories.
    """
    if not memory_variants(document):
        return []
    return [memory_table(document, one) for one in metrics(document) if one in (document["metric"], LOGLIK_METRIC)]


def memory_table(document: Document, metric: str) -> Table:
    """A metric of each method with each label memory. No rows where no method has more than one."""
    variants = memory_variants(document)
    memories = [memory for memory in MEMORIES if any(memory in methods for methods in variants.values())]
    best = best_methods(document, metric)

    def cell(method: str | None) -> Cell:
        if method is None:
            return Cell(NO_VALUE)
        return Cell(format_interval(document["methods"][method].get(metric)), method in best)

    rows = [(Cell(stem), *(cell(methods.get(memory)) for memory in memories)) for stem, methods in variants.items()]
    columns = ("method", *(f"memory {memory}" for memory in memories))
    return Table(columns, rows, len(memories), title=f"{metric_title(metric)} by label memory")


def difference_tables(document: Document) -> list[Table]:
    """The paired differences of each metric.

    For each metric: a table by label memory if the reference was compared with several, then a table of the remaining
    methods for each label memory of the reference.
    """
    tables = []
    for metric in metrics(document):
        by_memory = differences_by_memory(document, metric)
        if by_memory:
            tables.append(_memory_difference_table(document, metric, by_memory))
        placed = {row["b"] for rows in by_memory.values() for row in rows.values()}
        for reference, rows in differences_by_reference(document, metric).items():
            if others := [row for row in rows if row["b"] not in placed]:
                tables.append(_difference_table(document, metric, reference, others))
    return tables


def _memory_difference_table(document: Document, metric: str, found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The reference minus each other method, both with the same label memory."""
    memories = [memory for memory in MEMORIES if any(memory in rows for rows in found.values())]
    rows = [(Cell(stem), *(_difference_cell(own.get(memory)) for memory in memories)) for stem, own in found.items()]
    columns = ("other method", *(f"memory {memory}" for memory in memories))
    reference = document["reference"]
    what = f"{reference} minus the other with the same label memory (bold: p < .05 after Holm's correction)"
    title = f"Paired differences in {metric_title(metric)}: {what}"
    return Table(columns, rows, len(memories), title=title, collapsed=metric != document["metric"])


def _difference_cell(row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell(NO_VALUE)
    verdict = difference_verdict(row)
    remains = verdict != "not shown" and not is_exploratory(row)
    return Cell(wording.describe_compact_difference(row), strong=remains, verdict=verdict)


def _difference_table(document: Document, metric: str, reference: str, found: Sequence[Any]) -> Table:
    rows = [
        (
            Cell(row["b"]),
            Cell(format_interval(row, signed=True)),
            Cell(format_p_value(row.get("p"))),
            Cell(format_p_value(row.get("p_holm"))),
            Cell(wording.describe_difference(row), verdict=difference_verdict(row)),
        )
        for row in found
    ]
    columns = ("other method", f"{reference} - other [95 %]", "p", "p, Holm", f"{reference} is")
    title = f"Paired differences in {metric_title(metric)}: {reference} minus the other"
    return Table(columns, rows, 3, title=title, collapsed=metric != document["metric"])


def settings_table(document: Document) -> Table:
    """The settings and temperatures of the methods that have any."""
    return _settings_table([document], ("temperature by fold",), "Settings and calibration")


def seed_settings_tables(group: Sequence[Document]) -> list[Table]:
    """The settings and temperatures of several seeds: one table if the settings agree, otherwise one for each seed."""
    if same_settings(group):
        columns = tuple(f"temperature by fold, seed {document['seed']}" for document in group)
        return [_settings_table(group, columns, "Settings and calibration")]
    return [
        _settings_table([document], ("temperature by fold",), f"Settings and calibration of seed {document['seed']}")
        for document in group
    ]


def _settings_table(documents: Sequence[Document], temperature_columns: tuple[str, ...], title: str) -> Table:
    """A row for each method: its settings, equal in all `documents`, and a column of temperatures for each document."""
    methods = dict.fromkeys(method for document in documents for method in document["methods"])
    settings = {method: used_settings(document, method) for document in documents for method in document["methods"]}
    calibrations = [document.get("calibration") or {} for document in documents]
    rows = [
        (
            Cell(method),
            Cell(wording.describe_settings(settings[method] if len(settings[method]) > 1 else settings[method][0])),
            *(Cell(_temperatures(calibration.get(method))) for calibration in calibrations),
        )
        for method in methods
        if any(settings[method]) or any(calibration.get(method) for calibration in calibrations)
    ]
    return Table(("method", "settings", *temperature_columns), rows, title=title, collapsed=True)


def _temperatures(found: Any) -> str:
    """The temperature of each fold, or the lowest and highest of its calibration parts."""
    folds = found if isinstance(found, list | tuple) else [found]
    return ", ".join(_span(own) if isinstance(own, list | tuple) else format_number(own) for own in folds)


def _span(found: Sequence[Any]) -> str:
    told = [format_number(value) for value in sorted(found, key=lambda value: float("inf") if value is None else value)]
    return " to ".join(dict.fromkeys((told[0], told[-1])))


def seed_tables(group: Sequence[Document]) -> list[Table]:
    """The scores of several seeds of one design, a table for each metric, and the paired differences in the
    main metric, a table for each label memory of the reference.
    """
    by_seed = [differences_by_reference(document, document["metric"]) for document in group]
    references = dict.fromkeys(reference for found in by_seed for reference in found)
    return [
        *(_seed_scores(group, metric) for metric in metrics(group[0])),
        *(_seed_differences_to(one, group, [found.get(one, []) for found in by_seed]) for one in references),
    ]


def _seed_scores(group: Sequence[Document], metric: str) -> Table:
    """Each method's values by seed with their mean, the best mean first."""
    methods = dict.fromkeys(method for document in group for method in document["methods"])
    means = {method: mean_score(group, method, metric) for method in methods}
    order = sorted(methods, key=lambda method: _descending_key(means[method], metric))
    rows = []
    for method in order:
        cells = [Cell(format_interval(document["methods"].get(method, {}).get(metric))) for document in group]
        is_top = means[method] is not None and means[method] == means[order[0]]
        rows.append((Cell(method), *cells, Cell(format_number(means[method]), is_top)))
    return _seed_table("method", metric_title(metric), group, rows, group[0]["reference"])


def _descending_key(value: float | None, metric: str) -> tuple[bool, float]:
    return (value is None, 0.0 if value is None else -signed_score(value, metric))


def _seed_differences_to(reference: str, group: Sequence[Document], by_seed: Sequence[Sequence[Any]]) -> Table:
    """A table of the paired differences `reference` minus each other method: a column for each seed, then their mean.

    `by_seed` has the rows of each document of `group`; the mean is left out where a seed lacks the pair.
    """
    found = [{row["b"]: row for row in rows} for rows in by_seed]
    rows = []
    for other in dict.fromkeys(other for by_method in found for other in by_method):
        own = [by_method.get(other) for by_method in found]
        values = [value for row in own if row and (value := finite_or_none(row["value"])) is not None]
        mean = sum(values) / len(values) if len(values) == len(group) else None
        rows.append((Cell(other), *map(_seed_difference, own), Cell(format_number(mean, signed=True))))
    marked = any(row and is_exploratory(row) for by_method in found for row in by_method.values())
    note = f" ({wording.EXPLORATORY_NOTE})" * marked
    title = f"Paired differences in {metric_title(group[0]['metric'])}: {reference} minus the other{note}"
    return _seed_table("other method", title, group, rows)


def _seed_difference(row: Any) -> Cell:
    if row is None:
        return Cell(NO_VALUE)
    verdict = difference_verdict(row)
    return Cell(f"{format_interval(row, signed=True)} {wording.describe_verdict(row)}", verdict=verdict)


def _seed_table(
    first_column: str, title: str, group: Sequence[Document], rows: Sequence[tuple[Cell, ...]], reference: str = ""
) -> Table:
    columns = (first_column, *(f"seed {document['seed']}" for document in group), "mean")
    return Table(columns, rows, len(columns) - 1, reference, title)
