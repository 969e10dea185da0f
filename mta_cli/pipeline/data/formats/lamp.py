"""LaMP's format: questions `[{id, user_id?, input, profile}]` and outputs `{task, golds: [{id, output}]}`.

Without `user_id`, a question's id is its user. A user's profile is repeated in each of their questions and read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.fields import RecordFields
from mta_cli.pipeline.data.formats.parse_results import (
    ParseFindings,
    Record,
    SeenIds,
    SourceLocation,
    format_value,
)
from store.records import NewItem
from store.staged_records import StagedRecords

NO_GOLD = "queries without a gold answer"
NO_QUESTION = "gold answers without a question"


def recognise(sample: FileSample) -> bool:
    """Whether the file is a list of questions with their users' profiles."""
    return sample.is_json_list and sample.record is not None and {"profile", "input"} <= sample.record.keys()


@dataclass(frozen=True)
class FieldMapping:
    """A task's name, its fields in a history entry, and the function that strips the instruction from a question."""

    task: str
    input_fields: tuple[str, ...]
    output_fields: tuple[str, ...]
    strip_instruction: Callable[[str], str]

    def parse_history_item(self, entry: RecordFields) -> NewItem | None:
        """A profile entry as a history item; None if a field is faulty, or blank (then it is counted as left out)."""
        key = entry.read_id()
        blank = next((name for name in (*self.input_fields, *self.output_fields) if entry.is_blank(name)), None)
        if blank is not None:
            entry.findings.skip_counts[f"history items without {blank}"] += 1
            return None
        question = [entry.read_text_field(name) for name in self.input_fields]
        answer = [entry.read_scalar(name) for name in self.output_fields]
        time = entry.read_time("time", "date")
        if key is None or None in question or None in answer:
            return None
        return NewItem(key, self.task, _join_fields(question), _join_fields(answer), time)

    def parse_question(self, entry: RecordFields) -> str | None:
        """A question's input without the task's instruction; None if the field is faulty."""
        raw = entry.read_text_field("input")
        if raw is None:
            return None
        stripped = self.strip_instruction(raw)
        if not stripped.strip():
            entry.add_field_fault("input", "contains only the instruction")
            return None
        return stripped


def parse_golds(document: object, file: str, findings: ParseFindings) -> tuple[str, dict[str, str]]:
    """The task that an outputs document names, and its gold answers by question id; faults go to the findings."""
    answers: dict[str, str] = {}
    whole = RecordFields.from_value(document, SourceLocation(file), findings)
    if whole is None:
        return "", answers
    task = (whole.read_scalar("task") if whole.has_value("task") else None) or ""
    for fields in whole.read_objects("golds"):
        key, answer = fields.read_id(), fields.read_scalar("output")
        if key in answers:
            fields.add_field_fault("id", f"{format_value(key)} was already used")
        elif key is not None and answer is not None:
            answers[key] = answer
    return task, answers


def parse_questions(
    entries: Iterable[object],
    answers: Mapping[str, str],
    shape: FieldMapping,
    file: str,
    findings: ParseFindings,
    staged: StagedRecords,
) -> Iterator[Record]:
    """Stage the histories in a file of questions, and a held-out query for each question with a gold in `answers`.

    `answers` has the gold answers by question id.
    """
    ids, asked = SeenIds(findings, staged), dict[str, int]()
    for number, entry in enumerate(entries, 1):
        fields = RecordFields.from_value(entry, SourceLocation(file, number), findings)
        if fields is None:
            continue
        key = fields.read_id()
        repeated = key is not None and asked.setdefault(key, number) != number
        if key is not None and repeated:
            fields.add_field_fault("id", f"{format_value(key)} was already used in record {asked[key]}")
        user = fields.read_user("id" if fields.values.get("user_id") is None else "user_id")
        question, time = shape.parse_question(fields), fields.read_time("time", "date")
        yield from read_history(fields, user, shape, ids)
        if key is None or user is None or question is None or repeated:
            continue
        if key in answers:
            item = NewItem(key, shape.task, question, answers[key], time)
            record = Record(user, item, fields.location, held_out=True)
            if ids.add_if_new(record, "id"):
                yield record
        else:
            findings.skip_counts[NO_GOLD] += 1
    unused = sum(key not in asked for key in answers)
    if unused and unused == len(answers):
        fault = f"none of the {unused:,} gold answers belongs to a question of this file"
        findings.add_fault(SourceLocation(file), fault)
    elif unused:
        findings.skip_counts[NO_QUESTION] += unused


def read_history(
    fields: RecordFields, user: str | None, shape: FieldMapping, ids: SeenIds, *, once: bool = False
) -> Iterator[Record]:
    """Stage the history items of an entry's profile. With `once`, a repeated id is a fault even if the item is
    unchanged.
    """
    for entry in fields.read_objects("profile"):
        item = shape.parse_history_item(entry)
        if item is None or user is None:
            continue
        record = Record(user, item, fields.location)
        if ids.add_if_new(record, entry.path("id"), may_repeat=not once):
            yield record


def _join_fields(parts: list[str | None]) -> str:
    return "\n".join(part for part in parts if part is not None)
