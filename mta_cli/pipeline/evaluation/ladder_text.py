"""Turns a ladder's JSON document into sentences and table rows, for the command line, the window and reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mta_cli.pipeline.evaluation.metric_names import LOGLIK_METRIC, metric_name
from mta_cli.text.formatting import NO_VALUE, format_interval, format_number, format_p_value, join_words, pluralise

Ladder = Mapping[str, Any]

PERSONAL_STEPS = ("fused", "adapted")
TABLE_COLUMNS = ("step", "nats", "adds [95 %]", "p", "verdict")
RIVAL = {"worth it": "beaten", "not shown": "not beaten", "worse": "ahead"}
"""The word for a rival (`no-model` or another user's model), by the verdict on the highest step compared with it."""
UNIT_WORDS = {"users": "user", "questions": "question"}


def table_columns(ladder: Ladder) -> tuple[str, ...]:
    """The column titles for `table_rows`. Only a ladder with a metric besides the likelihood has a column for it."""
    named = [] if ladder["metric"] == LOGLIK_METRIC else [metric_name(ladder["metric"])]
    return (TABLE_COLUMNS[0], *named, *TABLE_COLUMNS[1:])


def table_rows(ladder: Ladder) -> list[tuple[str, ...]]:
    """A row for each step from the bottom: its value, and its difference from the step below with p and verdict.

    The rows of `no-model` and of another user's model show the difference of the highest step from them.
    """
    from_below: dict[str, Mapping[str, Any]] = {}
    for row in ladder["comparisons"]:
        from_below.setdefault(row["step"], row)  # the nearest step below comes first
    rows = []
    for one in ladder["steps"]:
        metric = [] if ladder["metric"] == LOGLIK_METRIC else [format_number(one["metric"])]
        rows.append(
            (
                one["step"],
                *metric,
                format_number(one[LOGLIK_METRIC]),
                *_difference_cells(ladder, from_below, one["step"]),
            )
        )
    return rows


def _difference_cells(ladder: Ladder, from_below: Mapping[str, Mapping[str, Any]], step: str) -> tuple[str, str, str]:
    """The cells for difference, p-value and verdict. A rival's row compares the highest step with the rival."""
    if (row := from_below.get(step)) is not None:
        return format_interval(row, signed=True), p_text(row), row["verdict"]
    row = {"another's": ladder["control"], "no-model": ladder["no_model"]}.get(step)
    return ("", "", "") if row is None else (format_interval(row, signed=True), p_text(row), RIVAL[row["verdict"]])


def p_text(row: Mapping[str, Any]) -> str:
    """The p-value, after Holm's correction if there is one; short, so that a table fits 80 columns."""
    return format_p_value(row.get("p_holm", row.get("p"))).replace("< 0.001", "<.001")


def difference_text(row: Mapping[str, Any]) -> str:
    """`+0.030 [+0.016, +0.044], p 0.001`: a difference in nats, with its interval and p."""
    return f"{format_interval(row, signed=True)}, p {p_text(row)}"


def verdict_lines(ladder: Ladder, more: str = "") -> list[str]:
    """Sentences on a ladder: a warning about `no-model`, the verdict on each step, authorship, and the sample size.

    `more` is the caller's sentence on how to measure more.
    """
    told = [_comparison_line(ladder, row) for row in ladder["comparisons"] if not _is_part_of_personal(ladder, row)]
    return [*no_model_warning(ladder), *told, *whose_lines(ladder), _sample_size_line(ladder, more)]


def _is_part_of_personal(ladder: Ladder, row: Mapping[str, Any]) -> bool:
    """Whether a row compares only a part of the personal model, while another row compares the whole."""
    whole = personal_row(ladder)
    return row["step"] in PERSONAL_STEPS and row is not whole


def personal_row(ladder: Ladder) -> Mapping[str, Any] | None:
    """The comparison of the whole personal model with the common one; None if it was not measured."""
    found = [row for row in ladder["comparisons"] if row["step"] in PERSONAL_STEPS]
    return found[-1] if found else None


RIVALS = {"another's": "another user's model", "others": "the mean of other users' models"}


def _comparison_line(ladder: Ladder, row: Mapping[str, Any]) -> str:
    said = f"{row['adds'][0].upper()}{row['adds'][1:]}: {row['verdict']} ({difference_text(row)})"
    rivals = {one["below"]: one for one in (ladder["control"], ladder.get("others")) if one is not None}
    if row["step"] not in PERSONAL_STEPS:
        return f"{said}."
    if row["why"] in rivals:
        return f"{said}: not ahead of {RIVALS[row['why']]} ({difference_text(rivals[row['why']])})."
    if row["verdict"] == "worth it" and rivals:
        ahead = [f"{RIVALS[name]} ({difference_text(one)})" for name, one in rivals.items()]
        return f"{said}, and ahead of {join_words(ahead)}."
    return f"{said}."


def no_model_warning(ladder: Ladder) -> list[str]:
    """A list with a warning if the highest step is not shown to be better than no model; otherwise empty."""
    row = ladder["no_model"]
    if row is None or row["verdict"] == "worth it":
        return []
    how = "worse than" if row["verdict"] == "worse" else "not shown to be better than"
    return [f"All steps together are {how} answers without a model ({difference_text(row)})."]


def whose_lines(ladder: Ladder) -> list[str]:
    """A sentence for each personal step and naive Bayes: how often the gold is likeliest under the user's own model."""
    return [f"Whose is it? {whose_text(one, ladder['unit'])}." for one in ladder.get("whose", ())]


def whose_text(one: Mapping[str, Any], unit: str = "users") -> str:
    """How often a step's own model ranks first among all users' models, as text:
    `adapted: own model first in 27 of 40 (chance 4), share .675 [.5, .8]; ahead of the mean of the others for ...`.

    `unit`, a key of `UNIT_WORDS`, names what the last count counts.
    """
    style = one["step"] == "naive-bayes"
    who = "naive Bayes on characters, no model: own texts" if style else f"{one['step']}: own model"
    interval = f"{format_number(one['share'])} [{format_number(one['low'])}, {format_number(one['high'])}]"
    return (
        f"{who} first in {one['first']:.3g} of {one['questions']} (chance {one['chance']:.2g}), share {interval}; "
        f"ahead of the mean of the others for {one['ahead']} of {pluralise(one['users'], UNIT_WORDS[unit])}, "
        f"p {format_p_value(one['p'])}"
    )


def _sample_size_line(ladder: Ladder, more: str) -> str:
    """The number of questions, and the difference that they can detect."""
    unit, row = UNIT_WORDS[ladder["unit"]], personal_row(ladder)
    rests = pluralise(ladder["questions"], "question")
    if ladder["unit"] == "users":
        rests += f" of {pluralise(ladder['units'], 'user')}"
    if any(one["why"] == "too few" for one in ladder["comparisons"]):
        return f"Measured on {rests}: too few for a verdict{f'. {more}' if more else '.'}"
    least = (row or (ladder["comparisons"] or [{}])[-1]).get("detectable")
    power = "" if not least else f"; 80 % power for a difference of {format_number(least)} nats"
    return f"Measured on {rests}, intervals over {unit}s{power}.{f' {more}' if more else ''}"


def short_verdict(ladder: Ladder) -> str:
    """The verdicts on all steps in one line."""
    rows = [row for row in ladder["comparisons"] if not _is_part_of_personal(ladder, row)]
    named = {verdict: [row["adds"] for row in rows if row["verdict"] == verdict] for verdict in RIVAL}
    shown = {verdict: adds for verdict, adds in named.items() if adds or verdict == "worth it"}
    return "; ".join(f"{verdict}: {', '.join(adds) or NO_VALUE}" for verdict, adds in shown.items())
