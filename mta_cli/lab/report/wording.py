"""Numbers and designs of result documents as text, the same in every report, chart and table."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

from mta_cli.lab.report.results import Document, difference_verdict, is_exploratory
from mta_cli.pipeline.evaluation.metric_names import metric_name
from mta_cli.text.formatting import (
    finite_or_none,
    format_interval,
    format_number,
    format_p_value,
    join_words,
    pluralise,
)

EXPLORATORY = "p < .05 before Holm's correction but not after"
EXPLORATORY_NOTE = f"* {EXPLORATORY}"
MORE_EVIDENCE = "More: a larger --shots, more users or more items."
COUNTED_KEYS = {
    "users": ("user",),
    "queries": ("held-out query", "held-out queries"),
    "shots": ("shot",),
    "folds": ("fold",),
    "history_items": ("history item",),
    "anchors": ("anchor",),
}
NAMED_KEYS = ("seed", "bank", "placement", "base", "dtype", "reference", "evaluation")
LISTED_KEYS = ("seeds", "evaluations")
DESIGN_SENTENCES = (
    "{users} with {queries}.",
    "{shots} for each user's own model.",
    "At most {history_items} in a prompt.",
    "{folds} over users, seed {seed}.",
    "{folds} over users, under the seeds {seeds}; a user's answers under all of them count together.",
    "{anchors}, placement {placement}.",
    "The bank {bank}, which contains no data of these users.",
    "Base {base}.",
    "Numbers of type {dtype}.",
    "Every other method is compared with {reference}.",
    "Evaluation {evaluation}.",
    "Evaluations {evaluations}.",
)


def describe_compact_difference(difference: Mapping[str, Any]) -> str:
    """A difference with its interval, p and adjusted p in one cell."""
    plain, adjusted = (format_p_value(difference.get(key)) for key in ("p", "p_holm"))
    return f"{format_interval(difference, signed=True)}, p {plain} (Holm {adjusted})"


def describe_verdict(difference: Mapping[str, Any]) -> str:
    """The verdict on a difference, for a table's cell; `*` marks an exploratory one (`EXPLORATORY_NOTE`)."""
    return difference_verdict(difference) + "*" * is_exploratory(difference)


def describe_difference(difference: Mapping[str, Any]) -> str:
    """One difference as a sentence."""
    said = difference_verdict(difference)
    if said == "not shown":
        return said
    return f"{said} than {difference['b']}{f', {EXPLORATORY}' * is_exploratory(difference)}"


def describe_design(document: Document) -> str:
    """Sentences on the design of the evaluation. Missing values are left out."""
    words = {key: str(document[key]) for key in NAMED_KEYS if document.get(key) not in (None, "auto")}
    if len({row["a"] for row in document.get("differences", ())}) > 1:
        words["reference"] += ", with the same label memory where both were measured with it"
    words |= {key: join_words(document[key]) for key in LISTED_KEYS if document.get(key)}
    words |= {
        key: pluralise(document[key], *forms) for key, forms in COUNTED_KEYS.items() if document.get(key) is not None
    }
    said = (
        sentence
        for sentence in DESIGN_SENTENCES
        if {key for _, key, _, _ in Formatter().parse(sentence) if key} <= set(words)
    )
    return " ".join(sentence.format_map(words) for sentence in said)


def describe_power(document: Document) -> str:
    """The smallest difference that the design can detect, and its basis.

    Empty if it was not estimated or is 0: two methods with identical answers give no estimate.
    """
    found = document.get("power")
    if not isinstance(found, Mapping) or not finite_or_none(found.get("detectable")):
        return ""
    basis = f" ({found['basis']})" if found.get("basis") else ""
    metric = metric_name(str(found.get("metric", document["metric"])))
    detectable = format_number(found["detectable"])
    return f"The smallest difference in {metric} that this design can detect is {detectable}{basis}."


def describe_settings(used: object) -> str:
    """A method's settings as names and values; a list has the settings of each fold. `epochs` replaces `steps`."""
    if isinstance(used, list | tuple):
        return "; ".join(f"fold {fold}: {describe_settings(own)}" for fold, own in enumerate(used, 1))
    if not isinstance(used, Mapping):
        return ""
    idle = {"steps"} if used.get("epochs") else set()  # epochs take precedence
    return ", ".join(f"{name} {value}" for name, value in used.items() if name not in idle)
