"""Reads result documents of `mta eval`: ranks, differences, and groups of documents.

Reads dicts only. Independent of the store, and of the layout of reports, charts and tables.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from mta_cli.pipeline.evaluation.metric_names import LOGLIK_METRIC, LOWER_IS_BETTER
from mta_cli.text.formatting import finite_or_none

Document = Mapping[str, Any]
Verdict = Literal["better", "worse", "not shown"]

SIGNIFICANCE_LEVEL = 0.05
# Documents that agree in these keys have the same design; seeds, and settings tuned by seed, may differ.
DESIGN_KEYS = (
    "task",
    "metric",
    "shots",
    "folds",
    "history_items",
    "anchors",
    "task_epochs",
    "placement",
    "base",
    "dtype",
    "options",
    "reference",
)
_HABIT_SETTINGS = ("prior_weight", "prior_strength")  # as in `MEMORY_SETTINGS`, whose module imports torch
# Prefixes in file names for the keys that distinguish the documents of a task.
FILE_NAME_PREFIXES = {
    "shots": "shots",
    "anchors": "anchors",
    "task_epochs": "epochs",
    "history_items": "history",
    "folds": "folds",
    "placement": "",
    "base": "",
    "seed": "seed",
    "seeds": "seeds",
}


def metrics(document: Document) -> list[str]:
    """The metrics of a document: the main one first, the log-likelihood last, the others in the document's order."""
    found = dict.fromkeys(metric for scores in document["methods"].values() for metric in scores)
    between = [metric for metric in found if metric not in (document["metric"], LOGLIK_METRIC)]
    return list(dict.fromkeys([document["metric"], *between, *([LOGLIK_METRIC] if LOGLIK_METRIC in found else [])]))


def method_score(document: Document, method: str, metric: str, part: str = "value") -> float | None:
    """A method's metric: `part` is value, low or high of its interval. None if the document has none."""
    found = document["methods"].get(method, {}).get(metric)
    return finite_or_none(found.get(part)) if isinstance(found, Mapping) else None


def value_and_interval(document: Document, method: str, metric: str) -> tuple[float, float, float]:
    """Value, low and high for a chart: NaN without a value, and the value in place of an unknown end."""
    value, low, high = (method_score(document, method, metric, part) for part in ("value", "low", "high"))
    middle = math.nan if value is None else value
    return middle, middle if low is None else low, middle if high is None else high


def method_cost(document: Document, method: str, what: str) -> float | None:
    """A method's cost: `what` is bytes, seconds, seconds_per_query or tokens_per_second."""
    return finite_or_none(((document.get("costs") or {}).get(method) or {}).get(what))


def memory_variants(document: Document) -> dict[str, dict[str, str]]:
    """The methods that were measured with several label memories: {name without suffix: {memory: method}}.

    The best method comes first. Methods without a recorded memory are left out, as in files that lack the memories.
    """
    memories, found = document.get("memory") or {}, dict[str, dict[str, str]]()
    for method in rank_methods(document):
        if memories.get(method):
            found.setdefault(method.partition("+")[0], {})[memories[method]] = method
    return {stem: methods for stem, methods in found.items() if len(methods) > 1}


def signed_score(value: float, metric: str) -> float:
    """`value`, negated if a lower value of the metric is better, so that more is always better."""
    return -value if metric in LOWER_IS_BETTER else value


def rank_methods(document: Document, metric: str | None = None) -> list[str]:
    """The methods from best to worst by `metric` (default: the main). Ties keep their order; unknown come last."""
    by = metric or document["metric"]

    def place(method: str) -> tuple[bool, float]:
        value = method_score(document, method, by)
        return (True, 0.0) if value is None else (False, -signed_score(value, by))

    return sorted(document["methods"], key=place)


def best_methods(document: Document, metric: str) -> frozenset[str]:
    """The methods with the best value."""
    first = method_score(document, rank_methods(document, metric)[0], metric) if document["methods"] else None
    equal = (method for method in document["methods"] if method_score(document, method, metric) == first)
    return frozenset() if first is None else frozenset(equal)


def pareto_front(document: Document, sizes: Mapping[str, float]) -> list[str]:
    """The methods that are better than every method of at most the same size in bytes, by size."""
    metric, front = document["metric"], list[str]()

    def good(method: str) -> float:
        return signed_score(method_score(document, method, metric) or 0.0, metric)

    for method in sorted(sizes, key=lambda method: (sizes[method], -good(method))):
        if not front or good(method) > good(front[-1]):
            front.append(method)
    return front


def differences(document: Document, metric: str) -> list[Mapping[str, Any]]:
    """The paired differences in one metric, in the rank order of the other methods by the main metric."""
    places = {method: place for place, method in enumerate(rank_methods(document))}
    found = [row for row in document.get("differences", ()) if row["metric"] == metric]
    return sorted(found, key=lambda row: places.get(row["b"], len(places)))


def differences_by_reference(document: Document, metric: str) -> dict[str, list[Mapping[str, Any]]]:
    """`differences` by the method that is compared: the reference, then its variants with other label memories."""
    found: dict[str, list[Mapping[str, Any]]] = {document["reference"]: []}
    for row in differences(document, metric):
        found.setdefault(row["a"], []).append(row)
    return {reference: rows for reference, rows in found.items() if rows}


def compared_with(document: Document) -> dict[str, str]:
    """By a method's name, the one that it was compared with: the reference with the same label memory if that was
    measured, otherwise the reference.
    """
    return {row["b"]: row["a"] for row in document.get("differences", ())}


def differences_by_memory(document: Document, metric: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    """`differences` between methods with the same label memory, by the other's name without suffix and by memory.

    Empty if the reference was compared with one label memory only.
    """
    rows, memories = differences(document, metric), document.get("memory") or {}
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    if len({row["a"] for row in rows}) < 2:
        return found
    for row in rows:
        memory = memories.get(row["b"])
        if memory and memory == memories.get(row["a"]):
            found.setdefault(row["b"].partition("+")[0], {})[memory] = row
    return found


def difference_verdict(difference: Mapping[str, Any]) -> Verdict:
    """The verdict on `a` against `b`.

    They differ if the 95 % interval of a - b excludes 0 and p, if known, is below .05. Both are required, because
    the bootstrap interval is a little too narrow for few users and the permutation test is not.
    """
    low, high, p = (
        finite_or_none(difference.get("low")),
        finite_or_none(difference.get("high")),
        finite_or_none(difference.get("p")),
    )
    if low is None or high is None or low <= 0 <= high or (p is not None and p >= SIGNIFICANCE_LEVEL):
        return "not shown"
    return "better" if signed_score(low, difference["metric"]) > 0 else "worse"


def is_exploratory(difference: Mapping[str, Any]) -> bool:
    """Whether p is below .05 before Holm's correction over all methods but not after (`p_holm`)."""
    adjusted = finite_or_none(difference.get("p_holm"))
    alone = difference_verdict(difference) != "not shown"
    return alone and adjusted is not None and adjusted >= SIGNIFICANCE_LEVEL


def unique_documents(documents: Iterable[Document]) -> list[Document]:
    """The documents without duplicates."""
    return list({_canonical(document): document for document in documents}.values())


def group_by_task(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """The documents of each task, in order of first appearance."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(str(document["task"]), []).append(document)
    return groups


def find_pooled_document(documents: Sequence[Document], group: Sequence[Document]) -> Document | None:
    """The document among `documents` that pools the evaluations of `group`."""
    numbers = {document.get("evaluation") for document in group}
    return next((document for document in documents if set(document.get("evaluations", ())) == numbers), None)


def group_seeds(documents: Sequence[Document]) -> list[list[Document]]:
    """Groups of documents with the same design and different seeds, sorted by seed.

    A document whose seed is in every group of its design begins a new group. Settings may differ within a group, since
    they may be tuned by seed; a document that fits several groups joins one with the same settings, if there is one.
    """
    groups: list[list[Document]] = []
    for document in documents:
        free = [
            group
            for group in groups
            if _design(group[0]) == _design(document) and document["seed"] not in [other["seed"] for other in group]
        ]
        if not free:
            groups.append([document])
            continue
        min(free, key=lambda group: not same_settings([group[0], document])).append(document)
    return [sorted(group, key=lambda document: _order(document["seed"])) for group in groups]


def same_settings(documents: Sequence[Document]) -> bool:
    """Whether each method had the same `used_settings` in all of these documents that measured it."""
    found: dict[str, set[str]] = {}
    for document in documents:
        for method in document["methods"]:
            found.setdefault(method, set()).add(_canonical(used_settings(document, method)))
    return all(len(own) == 1 for own in found.values())


def used_settings(document: Document, method: str) -> list[dict[str, Any]]:
    """A method's settings, one dict for all folds or one for each, without those that its label memory does not use.

    With neighbours, the settings of habit are unused. A measured bank (`bank`) may have no neighbours, so for it they
    are kept.
    """
    settings = (document.get("settings") or {}).get(method) or {}
    unused = () if "bank" in document else _HABIT_SETTINGS
    return [
        {key: value for key, value in own.items() if key not in unused or "neighbour_weight" not in own}
        for own in (settings if isinstance(settings, list) else [settings])
    ]


def find_series(documents: Sequence[Document], by: str) -> list[list[Document]]:
    """Groups of at least two documents that differ in `by`, a number of the design, and otherwise only in settings.

    Where two documents have the same `by`, their settings must agree too. Among documents with the same settings, the
    latest evaluation is taken.
    """
    counted = [document for document in documents if finite_or_none(document.get(by)) is not None]
    found: list[list[Document]] = []
    for group in _group_documents(counted, lambda document: _design(document, without=by) + str(document["seed"])):
        repeated = len({document[by] for document in group}) < len(group)
        for part in (
            _group_documents(group, lambda document: _canonical(document.get("settings"))) if repeated else [group]
        ):
            last = {other[by]: other for other in sorted(part, key=lambda other: _order(other.get("evaluation")))}
            if len(last) > 1:
                found.append([last[value] for value in sorted(last)])
    return found


def mean_score(documents: Sequence[Document], method: str, metric: str) -> float | None:
    """The mean of a method's values over documents; None if any of them lacks a value."""
    values = [method_score(document, method, metric) for document in documents]
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


def file_stem(document: Document, among: Sequence[Document], *, across: str | None = None) -> str:
    """A safe file name for the charts of a document: its task, its shots and what differs from others of the task.

    With `across`, the name of a series in which that key differs. It has letters, digits and dashes only.
    """
    kin = [other for other in among if slug(other["task"]) == slug(document["task"])]
    parts = [slug(document["task"])]
    for key, prefix in FILE_NAME_PREFIXES.items():
        differs = len({_canonical(other.get(key)) for other in kin}) > 1
        if key in document and key != across and (differs or (key == "shots" and across is None)):
            parts.append(prefix + slug(document.get(key)))
    return "-".join(parts)


def slug(value: object) -> str:
    """Lower-case ASCII letters, digits and single dashes; never empty, at most 60 characters."""
    return re.sub(r"[^a-z0-9]+", "-", str(value).lower()).strip("-")[:60].rstrip("-") or "x"


def _group_documents(documents: Iterable[Document], key: Callable[[Document], str]) -> list[list[Document]]:
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(key(document), []).append(document)
    return list(groups.values())


def _design(document: Document, *, without: str = "") -> str:
    return _canonical({key: document.get(key, "") for key in DESIGN_KEYS if key != without})


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _order(value: object) -> tuple[bool, float, str]:
    """A sort key: numbers by size, then other values."""
    number = finite_or_none(value)
    return (number is None, number or 0.0, str(value))
