"""Reads a task from TOML text, reporting all faults at once, and writes it back as TOML.

It opens no files and does not use the built-in tasks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from mta_cli.engine.text.labels import parse_number
from mta_cli.engine.text.tasks import DEFAULT_SCORE_LABELS, INPUT_PLACEHOLDER, METRIC_BY_KIND, OUTPUT_PLACEHOLDER, Task
from mta_cli.errors import BadInput
from mta_cli.text.toml_parser import parse_toml

TEXT_LIMIT = 10_000  # characters in any one text of a task
LABEL_LIMIT = 1_000
TOKEN_LIMIT = 100_000
PATTERN_LIMIT = 1_000  # characters of a regular expression
REPEAT_LIMIT = 1_000  # product of its repetition counts, such as {9}, which are written out when it is compiled
MAX_TASK_FILE_CHARACTERS = 1_000_000

TASK_KEYS = tuple(spec.name for spec in fields(Task))
_BUDGETS = ("query_tokens", "item_tokens", "answer_tokens")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

ValueCheck = Callable[[Any], str | None]  # returns what is wrong with a value, or None


def parse_task(text: str, origin: str) -> Task:
    """The task in a TOML text. `origin` names the text in error messages. Raises BadInput, which lists all faults."""
    if len(text) > MAX_TASK_FILE_CHARACTERS:
        raise BadInput(f"{origin} has {len(text):,} characters; a task file has at most {MAX_TASK_FILE_CHARACTERS:,}")
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise BadInput(f"{origin} is not TOML: {error}", hint="docs/tasks.md shows a task file") from error
    faults = _key_faults(table)
    if not faults:
        table = _fill_defaults(table)
        faults = _contradictions(table)
    if faults:
        raise BadInput(
            f"{origin} is not a task file ({len(faults)} {'fault' if len(faults) == 1 else 'faults'})",
            hint="docs/tasks.md describes every key",
            faults=tuple(f"{origin}: {fault}" for fault in faults),
        )
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return Task(**values)


def task_to_toml(task: Task) -> str:
    """The task as a TOML text that `parse_task` reads back as the same task. Equal tasks have equal texts."""
    values = ((key, getattr(task, key)) for key in TASK_KEYS)
    return "".join(f"{key} = {_toml(value)}\n" for key, value in values if value is not None)


def _toml(value: str | int | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, int):
        return str(value)
    letters = ((_ESCAPES.get(char) or (char if char.isprintable() else f"\\U{ord(char):08x}")) for char in value)
    return '"' + "".join(letters) + '"'


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}


def _key_faults(table: dict[str, Any]) -> list[str]:
    """Unknown keys, missing keys, and faults of single values."""
    faults = []
    for key in table:
        if key not in TASK_KEYS:
            near = get_close_matches(key, TASK_KEYS, 1)
            faults.append(f"{key[:60]!r} is not a key of a task file" + (f"; is it {near[0]}?" if near else ""))
    faults += [f"{key} is missing" for key in ("name", "prompt") if key not in table]
    for key, check in _CHECKS.items():
        if key in table and (fault := check(table[key])) is not None:
            faults.append(f"{key} {fault}")
    return faults


def _fill_defaults(table: dict[str, Any]) -> dict[str, Any]:
    """A copy in which missing values are filled in: the kind from the labels; the metric and a score's labels from the
    kind. A single field name becomes a list.
    """
    table = {"kind": "label" if table.get("labels") else "text", "description": "", **table}
    if table["kind"] == "score":
        table.setdefault("labels", list(DEFAULT_SCORE_LABELS))
    table.setdefault("metric", METRIC_BY_KIND[table["kind"]])
    for key in ("input_field", "output_field"):
        if isinstance(table.get(key), str):
            table[key] = [table[key]]
    return table


def _contradictions(table: dict[str, Any]) -> list[str]:
    """Faults of values that contradict each other."""
    kind, labels, faults = table["kind"], table.get("labels", ()), []
    if table["metric"] != METRIC_BY_KIND[kind]:
        faults.append(
            f"metric {table['metric']} does not measure kind {kind}; leave metric out, or use {METRIC_BY_KIND[kind]}"
        )
    if kind == "label" and len(labels) < 2:
        faults.append("kind label needs labels: two or more")
    if kind == "score":
        odd = [label for label in labels if parse_number(label) is None]
        faults += [f"labels of kind score are numbers such as 4 or 3.5, not {odd[0]!r}"] if odd else []
        same = [label for i, label in enumerate(labels) if not odd and float(label) in map(float, labels[:i])]
        faults += [f"label {same[0]!r} is the same number as one before it"] if same else []
        if len(labels) < 2:
            faults.append("kind score needs two or more labels")
    if kind == "text" and labels:
        faults.append('kind text has no labels; say kind = "label", or leave labels out')
    return faults


def _text_check(*needed: str, empty: bool = False, one_line: bool = False) -> ValueCheck:
    def check(value: Any) -> str | None:
        if not isinstance(value, str):
            return f"is {_describe_type(value)}, not a text"
        if len(value) > TEXT_LIMIT:
            return f"has {len(value):,} characters; the most is {TEXT_LIMIT:,}"
        if not empty and not value.strip():
            return "is empty"
        if one_line and not value.isprintable():
            return "has a line break or a control character"
        missing = [name for name in needed if name not in value]
        return f"does not contain {missing[0]}" if missing else None

    return check


def _choice_check(*choices: str) -> ValueCheck:
    return lambda value: (
        None if value in choices else f"is {_describe_value(value)}; choose one of {', '.join(choices)}"
    )


def _check_budget(value: Any) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return f"is {_describe_type(value)}, not a whole number"
    return None if 1 <= value <= TOKEN_LIMIT else f"is {_describe_value(value)}; it goes from 1 to {TOKEN_LIMIT:,}"


def _check_name(value: Any) -> str | None:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return None
    letters = "a to z, 0 to 9, '.', '_' and '-'"
    return f"is {_describe_value(value)}; it has at most 64 of {letters}, and begins with a letter or digit"


def _check_labels(value: Any) -> str | None:
    if not isinstance(value, list) or len(value) > LABEL_LIMIT:
        return f"is not a list of at most {LABEL_LIMIT:,} texts"
    for place, label in enumerate(value, 1):
        if not isinstance(label, str) or not label.strip() or label != label.strip() or len(label) > TEXT_LIMIT:
            return f"number {place} is {_describe_value(label)}; a label is a text without spaces around it"
    twice = next((label for label in value if value.count(label) > 1), None)
    return f"has {twice!r} twice" if twice is not None else None


def _check_fields(value: Any) -> str | None:
    names = [value] if isinstance(value, str) else value
    fine = isinstance(names, list) and 1 <= len(names) <= 16 and all(isinstance(name, str) and name for name in names)
    return None if fine else "is neither a field's name nor a list of 1 to 16 such names"


def _check_pattern(value: Any) -> str | None:
    if (fault := _text_check()(value)) is not None:
        return fault
    if len(value) > PATTERN_LIMIT:
        return f"has {len(value):,} characters; the most is {PATTERN_LIMIT:,}"
    counts = [min(int(count), 10**6) for count in re.findall(r"(?<=[{,])[0-9]{1,9}(?=[,}])", value)]
    if re.search(r"[0-9]{10}", value) or math.prod(max(1, count) for count in counts) > REPEAT_LIMIT:
        return f"repeats something too often; the product of its repetition counts may be at most {REPEAT_LIMIT:,}"
    import regex  # the engine that will match it

    try:
        groups = re.compile(value).groupindex
        regex.compile(value)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
        return f"is not a regular expression: {error}"
    return None if any(name.startswith("input") for name in groups) else "has no group named input: (?P<input>…)"


def _describe_value(value: Any) -> str:
    """A short description of a value, without the contents of tables and lists, which may be deeply nested."""
    small = isinstance(value, int) and value.bit_length() < 128
    return repr(str(value)[:60]) if small or isinstance(value, str | float) else _describe_type(value)


def _describe_type(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table", str: "a text"}
    return names.get(type(value), "a date or time")


_CHECKS: dict[str, ValueCheck] = {
    "name": _check_name,
    "kind": _choice_check("label", "score", "text"),
    "description": _text_check(empty=True, one_line=True),
    "prompt": _text_check(INPUT_PLACEHOLDER),
    "item": _text_check(OUTPUT_PLACEHOLDER),
    "learning_prompt": _text_check(),
    "history_header": _text_check(empty=True),
    "system": _text_check(empty=True),
    "labels": _check_labels,
    "metric": _choice_check("accuracy", "mae", "rouge"),
    "input_field": _check_fields,
    "output_field": _check_fields,
    "question_pattern": _check_pattern,
    **dict.fromkeys(_BUDGETS, _check_budget),
}
