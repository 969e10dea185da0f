"""How results of `mta eval` look in a terminal of 80 columns. Reads dicts; computes and stores nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mta_cli import output as out
from mta_cli.pipeline.report import wording
from mta_cli.pipeline.report.results import (
    LIKELIHOOD,
    best,
    cost,
    differences,
    metric_name,
    metrics,
    ranked,
    score,
    titled,
    verdict,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

NAMES_SHOWN = 2  # methods of an evaluation in the list


def summary(document: Mapping[str, Any]) -> RenderableType:
    """A result document: how it was measured, the methods, the paired differences, what could have been told apart."""
    shown = [metric for metric in (document["metric"], LIKELIHOOD) if differences(document, metric)]
    parts = [_differences(document, metric) for metric in shown]
    if power := wording.power(document):
        parts.append(out.text(f"\n{power}"))
    return out.group(out.text(_head(document), style="bold"), _methods(document), *parts)


def listing(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The rows of `mta eval list`."""
    columns = ("no.", "task", "shots", "folds", "seed", "methods", "status", "created")
    return out.table(columns, map(_listed, rows))


def tuned(result: Mapping[str, Any]) -> RenderableType:
    """The settings that `mta eval tune` chose for each method and fold."""
    rows = [
        (row["method"], row["fold"] + 1, wording.settings(row["settings"]) or None, wording.number(row.get(LIKELIHOOD)))
        for row in result["tuned"]
    ]
    head = f"Chosen for evaluation {result['evaluation']} of task {result['task']}"
    return out.group(
        out.text(head, style="bold"), out.table(("method", "fold", "settings", "log-lik."), rows, right=(3,))
    )


def _head(document: Mapping[str, Any]) -> str:
    counted = (("users", "user"), ("shots", "shot"), ("folds", "fold"))
    parts = {key: wording.many(document[key], word) for key, word in counted if document.get(key) is not None}
    if document.get("queries") is not None:
        parts["queries"] = wording.many(document["queries"], "query", "queries")
    if document.get("seed") is not None:
        parts["seed"] = f"seed {document['seed']}"
    if document.get("seeds") is not None:
        parts["seeds"] = f"seeds {wording.listed(document['seeds'])}"
    order = ("users", "queries", "shots", "folds", "seed", "seeds")
    return f"{document['task']}: " + ", ".join(parts[key] for key in order if key in parts)


def _methods(document: Mapping[str, Any]) -> RenderableType:
    """The methods from the best to the worst; the best value of the main metric is bold."""
    main, *others = metrics(document)
    beside = [metric for metric in others[:1] if metric != LIKELIHOOD]
    likelihood = [LIKELIHOOD] if LIKELIHOOD in others else []
    winners = best(document, main)
    rows = []
    for method in ranked(document):
        value = wording.interval(document["methods"][method].get(main))
        rows.append(
            (
                method,
                out.Strong(value) if method in winners else value,
                *(wording.number(score(document, method, metric)) for metric in (*beside, *likelihood)),
                wording.size(cost(document, method, "bytes")),
                wording.seconds(cost(document, method, "seconds")),
            )
        )
    names = [metric_name(metric) for metric in beside] + ["log-lik."] * len(likelihood)
    columns = ("method", f"{metric_name(main)} [95 %]", *names, "bytes", "sec.")
    return out.table(columns, rows, right=range(2, len(columns)))


def _differences(document: Mapping[str, Any], metric: str) -> RenderableType:
    """The reference beside every other method in one metric."""
    found = differences(document, metric)
    reference = found[0]["a"]
    rows = [(row["b"], wording.interval(row, signed=True), wording.chance(row.get("p")), verdict(row)) for row in found]
    columns = (f"{reference} minus", "difference [95 %]", "p", f"{reference} is")
    return out.group(out.text(f"\nPaired differences, {titled(metric)}"), out.table(columns, rows, right=(2,)))


def _listed(row: Mapping[str, Any]) -> tuple[Any, ...]:
    names = list(row["methods"])
    rest = f" +{len(names) - NAMES_SHOWN}" if len(names) > NAMES_SHOWN else ""
    created = str(row["created"] or "")[:10]
    methods = ", ".join(map(str, names[:NAMES_SHOWN])) + rest
    return (
        row["evaluation"],
        row["task"],
        row["shots"],
        row["folds"],
        row["seed"],
        methods or None,
        row["status"],
        created or None,
    )
