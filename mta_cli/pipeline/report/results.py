"""What a result document of `mta eval` says: who comes first, which differences are told apart, numbers as text.

Reads dicts and nothing else. Knows neither the store nor what a report, a chart or a table looks like.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

Document = Mapping[str, Any]
Verdict = Literal["better", "worse", "not told apart"]

LIKELIHOOD = "gold_loglik"
LEVEL = 0.05
LOWER_IS_BETTER = frozenset({"mae", "rmse"})
NAMES = {
    "macro_f1": "macro-F1",
    "mae": "MAE",
    "rmse": "RMSE",
    "rouge_1": "ROUGE-1",
    "rouge_l": "ROUGE-L",
    LIKELIHOOD: "gold log-likelihood",
}
# What makes two documents the same evaluation but for the seed and for settings, which may be tuned by seed.
DESIGN = (
    "task",
    "metric",
    "shots",
    "folds",
    "history_items",
    "anchors",
    "placement",
    "base",
    "dtype",
    "options",
    "reference",
)
# How the name of a file says what tells a document from the others of its task.
IN_FILE_NAMES = {
    "shots": "shots",
    "anchors": "anchors",
    "history_items": "history",
    "folds": "folds",
    "placement": "",
    "base": "",
    "seed": "seed",
    "seeds": "seeds",
}


def known(value: object) -> float | None:
    """`value` when it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def metric_name(metric: str) -> str:
    """The metric as people write it."""
    return NAMES.get(metric, metric.replace("_", " "))


def direction(metric: str) -> str:
    """What a reader must know of a metric's sign and unit; empty where more is better and there is no unit."""
    if metric in LOWER_IS_BETTER:
        return "lower is better"
    return "nats" if metric == LIKELIHOOD else ""


def titled(metric: str) -> str:
    """The metric's name with what `direction` says."""
    said = direction(metric)
    return metric_name(metric) + (f" ({said})" if said else "")


def metrics(document: Document) -> list[str]:
    """The metrics of a document: the main one first, the log-likelihood last, the others as they come."""
    found = dict.fromkeys(metric for scores in document["methods"].values() for metric in scores)
    between = [metric for metric in found if metric not in (document["metric"], LIKELIHOOD)]
    return [document["metric"], *between, *([LIKELIHOOD] if LIKELIHOOD in found else [])]


def score(document: Document, method: str, metric: str, part: str = "value") -> float | None:
    """One number of a method: `part` is value, low or high. None where the document has none."""
    found = document["methods"].get(method, {}).get(metric)
    return known(found.get(part)) if isinstance(found, Mapping) else None


def whisker(document: Document, method: str, metric: str) -> tuple[float, float, float]:
    """Value, low and high as a chart needs them: NaN where there is no value, the value where an end is not known."""
    value, low, high = (score(document, method, metric, part) for part in ("value", "low", "high"))
    middle = math.nan if value is None else value
    return middle, middle if low is None else low, middle if high is None else high


def cost(document: Document, method: str, what: str) -> float | None:
    """What a method costs: `what` is bytes, seconds, seconds_per_query or tokens_per_second."""
    return known(((document.get("costs") or {}).get(method) or {}).get(what))


def goodness(value: float, metric: str) -> float:
    """`value` turned so that more is better."""
    return -value if metric in LOWER_IS_BETTER else value


def ranked(document: Document, metric: str | None = None) -> list[str]:
    """The methods from the best to the worst by `metric` (else the main one); equals as they come, unknown last."""
    by = metric or document["metric"]

    def place(method: str) -> tuple[bool, float]:
        value = score(document, method, by)
        return (True, 0.0) if value is None else (False, -goodness(value, by))

    return sorted(document["methods"], key=place)


def best(document: Document, metric: str) -> frozenset[str]:
    """The method with the best value, or those that share it."""
    first = score(document, ranked(document, metric)[0], metric) if document["methods"] else None
    equal = (method for method in document["methods"] if score(document, method, metric) == first)
    return frozenset() if first is None else frozenset(equal)


def smallest_best(document: Document, sizes: Mapping[str, float]) -> list[str]:
    """The methods that are better than every one with as few bytes or fewer, by size (the Pareto front)."""
    metric, front = document["metric"], list[str]()

    def good(method: str) -> float:
        return goodness(score(document, method, metric) or 0.0, metric)

    for method in sorted(sizes, key=lambda method: (sizes[method], -good(method))):
        if not front or good(method) > good(front[-1]):
            front.append(method)
    return front


def differences(document: Document, metric: str) -> list[Mapping[str, Any]]:
    """The paired differences in one metric, in the order in which the other methods rank by the main one."""
    places = {method: place for place, method in enumerate(ranked(document))}
    found = [row for row in document.get("differences", ()) if row["metric"] == metric]
    return sorted(found, key=lambda row: places.get(row["b"], len(places)))


def verdict(difference: Mapping[str, Any]) -> Verdict:
    """How `a` does beside `b`: told apart where the 95 % interval of a - b excludes 0 and p, if known, is below .05.

    The interval is a little narrow for few users, the permutation test is not; so both are asked.
    """
    low, high, p = known(difference.get("low")), known(difference.get("high")), known(difference.get("p"))
    if low is None or high is None or low <= 0 <= high or (p is not None and p >= LEVEL):
        return "not told apart"
    return "better" if goodness(low, difference["metric"]) > 0 else "worse"


def distinct(documents: Iterable[Document]) -> list[Document]:
    """The documents without repetitions."""
    return list({_canonical(document): document for document in documents}.values())


def by_task(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """The documents of each task, tasks as they come."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(str(document["task"]), []).append(document)
    return groups


def over_seeds(documents: Sequence[Document], group: Sequence[Document]) -> Document | None:
    """Among `documents` the one that says what the evaluations of `group` found together."""
    numbers = {document.get("evaluation") for document in group}
    return next((document for document in documents if set(document.get("evaluations", ())) == numbers), None)


def by_seed(documents: Sequence[Document]) -> list[list[Document]]:
    """Groups of documents of one design, by seed. Each seed comes once in a group: a second one begins another group.

    Settings may differ, since they may be tuned by seed; where there is a choice, those with the same go together.
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
    """Whether the methods of all these documents had the same settings."""
    return len({_canonical(document.get("settings")) for document in documents}) <= 1


def series(documents: Sequence[Document], by: str) -> list[list[Document]]:
    """Groups of at least two documents that differ in `by` (shots or anchors) and otherwise only in settings.

    Where that leaves two documents with the same `by`, their settings must agree too; of two that are alike even then
    the later evaluation is taken.
    """
    counted = [document for document in documents if known(document.get(by)) is not None]
    found: list[list[Document]] = []
    for group in _alike(counted, lambda document: _design(document, without=by) + str(document["seed"])):
        repeated = len({document[by] for document in group}) < len(group)
        for part in _alike(group, lambda document: _canonical(document.get("settings"))) if repeated else [group]:
            last = {other[by]: other for other in sorted(part, key=lambda other: _order(other.get("evaluation")))}
            if len(last) > 1:
                found.append([last[value] for value in sorted(last)])
    return found


def mean(documents: Sequence[Document], method: str, metric: str) -> float | None:
    """The mean of a method's values over documents; None unless every one of them has it."""
    values = [score(document, method, metric) for document in documents]
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


def file_stem(document: Document, among: Sequence[Document], *, across: str | None = None) -> str:
    """A safe name for what is drawn of a document: its task, its shots and what else tells it from its task's others.

    With `across`, the name of a series in which that key differs. Letters, digits and dashes only, never a path.
    """
    kin = [other for other in among if slug(other["task"]) == slug(document["task"])]
    parts = [slug(document["task"])]
    for key, prefix in IN_FILE_NAMES.items():
        differs = len({_canonical(other.get(key)) for other in kin}) > 1
        if key in document and key != across and (differs or (key == "shots" and across is None)):
            parts.append(prefix + slug(document.get(key)))
    return "-".join(parts)


def slug(value: object) -> str:
    """Lower-case ASCII letters, digits and single dashes; never empty, at most 60 characters."""
    return re.sub(r"[^a-z0-9]+", "-", str(value).lower()).strip("-")[:60].rstrip("-") or "x"


def _alike(documents: Iterable[Document], key: Callable[[Document], str]) -> list[list[Document]]:
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(key(document), []).append(document)
    return list(groups.values())


def _design(document: Document, *, without: str = "") -> str:
    return _canonical({key: document.get(key, "") for key in DESIGN if key != without})


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _order(value: object) -> tuple[bool, float, str]:
    """Numbers by size, then whatever else there is."""
    number = known(value)
    return (number is None, number or 0.0, str(value))
