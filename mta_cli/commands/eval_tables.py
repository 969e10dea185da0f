"""Tables of `mta eval` for a terminal of 80 columns. Reads dicts; computes and stores nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mta_cli.lab.report import tables, wording
from mta_cli.lab.report.results import (
    best_methods,
    differences_by_reference,
    is_exploratory,
    memory_variants,
    method_cost,
    method_score,
    metrics,
    rank_methods,
)
from mta_cli.pipeline.evaluation import ladder_text
from mta_cli.pipeline.evaluation.metric_names import LOGLIK_METRIC, metric_name, metric_title
from mta_cli.terminal import output as out
from mta_cli.terminal.tables import BoldCell, table
from mta_cli.text.formatting import (
    format_bytes,
    format_interval,
    format_number,
    format_p_value,
    format_seconds_number,
    join_words,
    pluralise,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

MAX_METHODS_SHOWN = 2  # methods of an evaluation shown in the list


def render_result(document: Mapping[str, Any]) -> RenderableType:
    """A result document: the design, the ladder and its verdicts, the methods, the paired differences, the power."""
    ladder = document.get("ladder")
    above: list[RenderableType] = []
    if ladder is not None:
        columns = ladder_text.table_columns(ladder)
        verdicts = ladder_text.verdict_lines(ladder, wording.MORE_EVIDENCE)
        steps = table(columns, ladder_text.table_rows(ladder), right=range(1, len(columns) - 3))
        above = [steps, *map(out.text, verdicts), out.text("")]
    shown = dict.fromkeys((document["metric"], LOGLIK_METRIC))
    parts = [part for metric in shown for part in _differences_tables(document, metric)]
    if power := wording.describe_power(document):
        parts.append(out.text(f"\n{power}"))
    by_memory = [_memory_table(document)] if memory_variants(document) else []
    return out.group(out.text(_headline(document), style="bold"), *above, *by_memory, _methods_table(document), *parts)


def render_evaluation_list(
    rows: Sequence[Mapping[str, Any]], age: Callable[[str | None], str | None]
) -> RenderableType:
    """The table of `mta eval list`; `age` turns a time into its age."""
    columns = ("no.", "task", "shots", "folds", "seed", "methods", "status", "created")
    return table(columns, (_list_row(row, age) for row in rows))


def render_tuning(result: Mapping[str, Any]) -> RenderableType:
    """The settings that `mta eval tune` chose for each method and fold."""
    rows = [
        (
            row["method"],
            row["fold"] + 1,
            wording.describe_settings(row["settings"]) or None,
            format_number(row.get(LOGLIK_METRIC)),
        )
        for row in result["tuned"]
    ]
    head = f"Chosen for evaluation {result['evaluation']} of task {result['task']}"
    return out.group(out.text(head, style="bold"), table(("method", "fold", "settings", "log-lik."), rows, right=(3,)))


def _headline(document: Mapping[str, Any]) -> str:
    counted = {"users": ("user",), "queries": ("query", "queries"), "shots": ("shot",), "folds": ("fold",)}
    parts = [pluralise(document[key], *words) for key, words in counted.items() if document.get(key) is not None]
    if document.get("seed") is not None:
        parts.append(f"seed {document['seed']}")
    if document.get("seeds") is not None:
        parts.append(f"seeds {join_words(document['seeds'])}")
    if document.get("bank"):
        parts.append(f"bank {document['bank']}")
    return f"{document['task']}: {', '.join(parts)}"


def _methods_table(document: Mapping[str, Any]) -> RenderableType:
    """The methods from the best to the worst; the best value of the main metric is bold."""
    main, *others = metrics(document)
    beside = [metric for metric in others[:1] if metric != LOGLIK_METRIC]
    likelihood = [LOGLIK_METRIC] if LOGLIK_METRIC in others else []
    winners = best_methods(document, main)
    rows = []
    for method in rank_methods(document):
        value = format_interval(document["methods"][method].get(main))
        rows.append(
            (
                method,
                BoldCell(value) if method in winners else value,
                *(format_number(method_score(document, method, metric)) for metric in (*beside, *likelihood)),
                format_bytes(method_cost(document, method, "bytes")),
                format_seconds_number(method_cost(document, method, "seconds")),
            )
        )
    names = [metric_name(metric) for metric in beside] + ["nats"] * len(likelihood)
    columns = ("method", f"{metric_name(main)} [95 %]", *names, "bytes", "sec.")
    return table(columns, rows, right=range(2, len(columns)))


def _memory_table(document: Mapping[str, Any]) -> RenderableType:
    shown = tables.memory_table(document, document["metric"])
    rows = [[BoldCell(cell.text) if cell.strong else cell.text for cell in row] for row in shown.rows]
    return out.group(out.text(shown.title), table(shown.columns, rows), out.text(""))


def _differences_tables(document: Mapping[str, Any], metric: str) -> list[RenderableType]:
    """The other methods' differences to the reference in one metric, a table for each label memory."""
    parts: list[RenderableType] = []
    for reference, rows in differences_by_reference(document, metric).items():
        title = "" if parts else f"\nPaired differences, {metric_title(metric)}"
        parts += [out.text(title), _differences_table(reference, rows)]
        if any(is_exploratory(row) for row in rows):
            parts.append(out.text(wording.EXPLORATORY_NOTE))
    return parts


def _differences_table(reference: str, found: Sequence[Mapping[str, Any]]) -> RenderableType:
    rows = [
        (
            row["b"],
            format_interval(row, signed=True),
            format_p_value(row.get("p")),
            format_p_value(row.get("p_holm")),
            wording.describe_verdict(row),
        )
        for row in found
    ]
    columns = (f"{reference} minus", "difference [95 %]", "p", "p, Holm", f"{reference} is")
    return table(columns, rows, right=(2, 3))


def _list_row(row: Mapping[str, Any], age: Callable[[str | None], str | None]) -> tuple[Any, ...]:
    names = list(row["methods"])
    rest = f" +{len(names) - MAX_METHODS_SHOWN}" if len(names) > MAX_METHODS_SHOWN else ""
    methods = ", ".join(map(str, names[:MAX_METHODS_SHOWN])) + rest
    return (
        row["evaluation"],
        row["task"],
        row["shots"],
        row["folds"],
        row["seed"],
        methods or None,
        row["status"],
        age(row["created"]),
    )
