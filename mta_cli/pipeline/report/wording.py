"""Numbers and designs of result documents as words, the same in every report, chart and table. Knows no layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

from mta_cli.pipeline.report.results import Document, known, metric_name, verdict

UNKNOWN = "–"
UNITS = ("B", "kB", "MB", "GB", "TB")
COUNTED = {
    "users": ("user",),
    "queries": ("held-out query", "held-out queries"),
    "shots": ("shot",),
    "folds": ("fold",),
    "history_items": ("history item",),
    "anchors": ("anchor",),
}
NAMED = ("seed", "placement", "base", "dtype", "reference", "evaluation")
LISTED = ("seeds", "evaluations")
DESIGN = (
    "{users} with {queries}.",
    "{shots} for each user's own model.",
    "At most {history_items} in a prompt.",
    "{folds} over users, seed {seed}.",
    "{folds} over users, under the seeds {seeds}; a person's answers under all of them count together.",
    "{anchors}, placement {placement}.",
    "Base {base}.",
    "Numbers of type {dtype}.",
    "Every other method is compared with {reference}.",
    "Evaluation {evaluation}.",
    "Evaluations {evaluations}.",
)


def number(value: object, *, signed: bool = False) -> str:
    """Three decimals; a dash for what is no number."""
    found = known(value)
    if found is None:
        return UNKNOWN
    return f"{round(found, 3) + 0.0:{'+' if signed else ''}.3f}"  # adding 0.0 turns -0.0 into 0.0


def interval(found: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """`value [low, high]`, or as much of it as there is."""
    if not isinstance(found, Mapping) or known(found.get("value")) is None:
        return UNKNOWN
    value, low, high = (number(found.get(part), signed=signed) for part in ("value", "low", "high"))
    return value if UNKNOWN in (low, high) else f"{value} [{low}, {high}]"


def size(value: object) -> str:
    """Bytes in decimal units with two or three digits, such as 104 B, 1.6 MB or 77 kB."""
    found = known(value)
    if found is None:
        return UNKNOWN
    unit = 0
    while abs(found) >= 999.5 and unit < len(UNITS) - 1:
        found, unit = found / 1000, unit + 1
    return f"{found:.1f}".removesuffix(".0") + f" {UNITS[unit]}" if found < 9.95 else f"{found:.0f} {UNITS[unit]}"


def count(value: object) -> str:
    """A number of things, with commas between thousands; a mean that is no whole number keeps one decimal."""
    found = known(value)
    if found is None:
        return UNKNOWN
    return f"{found:,.1f}" if found % 1 and found < 1000 else f"{found:,.0f}"


def seconds(value: object) -> str:
    """Seconds with as many decimals as their size asks for."""
    found = known(value)
    if found is None:
        return UNKNOWN
    return f"{found:,.{3 if 0 < found < 0.1 else 2 if found < 10 else 1 if found < 100 else 0}f}"


def chance(value: object) -> str:
    """A p-value: three decimals, below a thousandth only that."""
    found = known(value)
    if found is None:
        return UNKNOWN
    return "< 0.001" if found < 0.001 else f"{found:.3f}"


def statement(difference: Mapping[str, Any]) -> str:
    """One difference in plain words."""
    said = verdict(difference)
    return f"{said} at 95 %" if said == "not told apart" else f"{said} than {difference['b']}"


def listed(names: Iterable[object]) -> str:
    """Names in a sentence: a, b and c."""
    found = [str(name) for name in names]
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def many(amount: object, one: str, more: str = "") -> str:
    """An amount with its word: 1 fold, 2 folds."""
    return f"{count(amount)} {one if known(amount) == 1 else more or one + 's'}"


def design(document: Document) -> str:
    """How it was measured, in sentences; a sentence about what the document does not say is left out."""
    words = {key: str(document[key]) for key in NAMED if document.get(key) not in (None, "auto")}
    words |= {key: listed(document[key]) for key in LISTED if document.get(key)}
    words |= {key: many(document[key], *forms) for key, forms in COUNTED.items() if document.get(key) is not None}
    said = (
        sentence for sentence in DESIGN if {key for _, key, _, _ in Formatter().parse(sentence) if key} <= set(words)
    )
    return " ".join(sentence.format_map(words) for sentence in said)


def power(document: Document) -> str:
    """The smallest difference that the design can detect, and what that rests on; empty where it was not estimated."""
    found = document.get("power")
    if not isinstance(found, Mapping) or known(found.get("detectable")) is None:
        return ""
    basis = f" ({found['basis']})" if found.get("basis") else ""
    metric = metric_name(str(found.get("metric", document["metric"])))
    return f"The smallest difference in {metric} that this design can detect is {number(found['detectable'])}{basis}."


def settings(used: object) -> str:
    """A method's settings as names and values; those that differ by fold, fold by fold."""
    if isinstance(used, list | tuple):
        return "; ".join(f"fold {fold}: {settings(own)}" for fold, own in enumerate(used, 1))
    if not isinstance(used, Mapping):
        return ""
    idle = {"steps"} if used.get("epochs") else set()  # epochs decide then
    return ", ".join(_setting(name, value) for name, value in used.items() if name not in idle)


def _setting(name: str, value: object) -> str:
    return f"{name} by the task" if name == "learning_rate" and value == 0.0 else f"{name} {value}"
