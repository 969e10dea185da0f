"""One file → checked records and findings; nothing is written. Knows formats and tasks, no store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.engine.text.labels import find_label
from mta_cli.errors import BadInput, NotFound, UsageError
from mta_cli.events import Event, JobProgress, JobStarted, Note
from mta_cli.pipeline.data.formats import FORMATS
from mta_cli.pipeline.data.formats.lamp import (
    NO_GOLD,
    FieldMapping,
    GoldAnswers,
    parse_golds,
    parse_questions,
    parse_users,
)
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, Record, format_value
from mta_cli.pipeline.data.formats.reading import iter_lines, open_file, read_document
from mta_cli.pipeline.data.formats.rows import csv_rows, jsonl_rows, parse_rows

if TYPE_CHECKING:
    from mta_cli.engine.text.tasks import Task

PROGRESS_EVERY = 5_000
"""Records between two steps of the progress bar."""
DEFAULT_TASK = "free"

FindTask = Callable[[str], "Task"]


@dataclass(frozen=True)
class ImportSource:
    """The request: a file, its format, and the user and task for records that name none."""

    format: str
    path: Path
    task: str | None = None
    outputs: Path | None = None
    user: str | None = None

    def require_consistent(self) -> None:
        """Raises UsageError when the parts contradict each other."""
        if self.format not in FORMATS:
            raise UsageError(f"{format_value(self.format)} is no format", hint=f"choose one of {', '.join(FORMATS)}")
        if self.outputs is not None and self.format != "lamp":
            raise UsageError(f"--outputs belongs to the format lamp, not to {self.format}")


@dataclass
class ParsedFile:
    """A checked file. `tasks` holds every task of its records.

    `untimed` counts records whose time is not stored, because the store already has them without one.
    """

    task: str | None = None
    records: list[Record] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    findings: ParseFindings = field(default_factory=ParseFindings)
    warnings: list[str] = field(default_factory=list)
    times_not_stored: int = 0

    @property
    def user_names(self) -> list[str]:
        """All users in the file, in its order, also those without a usable record."""
        return list(self.findings.spellings)

    def count(self, *, held_out: bool) -> int:
        """How many queries, or history items, there are."""
        return sum(record.held_out == held_out for record in self.records)


def parse_import_file(source: ImportSource, find: FindTask) -> Generator[Event, None, ParsedFile]:
    """Check the whole file. Raises `NotFound`, `UsageError` or `BadInput`; the latter lists every fault."""
    source.require_consistent()
    intake = ParsedFile(source.task)
    if source.user is not None:
        intake.findings.add_spelling(source.user, source.user)
    if source.task is not None:
        intake.tasks[source.task] = find(source.task)
    yield JobStarted(f"read {source.path.name}", unit="records")
    for record in _parse_records(source, intake, find):
        intake.records.append(record)
        if len(intake.records) % PROGRESS_EVERY == 0:
            yield JobProgress("", len(intake.records))
    _find_tasks(intake, find)
    unnamed = source.format == "users" and source.task is None
    hint = f"it was read as task {DEFAULT_TASK}; name another with --task" if unnamed else None
    intake.findings.raise_faults(source.path.name, hint)
    if not intake.records and not intake.findings.skip_counts:
        raise BadInput(f"{source.path.name} holds no records")
    return intake


def _parse_records(source: ImportSource, intake: ParsedFile, find: FindTask) -> Iterator[Record]:
    if source.format == "lamp":
        return _lamp(source, intake, find)
    if source.format == "users":
        shape = _field_mapping(intake, source.task or DEFAULT_TASK, find)
        return parse_users(read_document(source.path), shape, source.path.name, intake.findings)
    return _parse_row_file(source, intake)


def _lamp(source: ImportSource, intake: ParsedFile, find: FindTask) -> Iterator[Record]:
    name, findings = source.path.name, intake.findings
    golds = GoldAnswers("", {})
    if source.outputs is not None:
        golds = parse_golds(read_document(source.outputs), source.outputs.name, findings)
    told = golds.task.casefold().replace("_", "-")
    task = source.task or told
    if not task:
        raise UsageError(f"{name} does not say which task it is", hint="name it with --task; `mta task list` shows all")
    if source.task is not None and told.startswith("lamp-") and told != source.task:
        intake.warnings.append(f"the outputs say {format_value(golds.task)}, but are imported as {source.task}")
    yield from parse_questions(
        read_document(source.path), golds.answers, _field_mapping(intake, task, find), name, findings
    )


def _parse_row_file(source: ImportSource, intake: ParsedFile) -> Iterator[Record]:
    name, findings = source.path.name, intake.findings
    required = frozenset({"input", "output"} if source.user is not None else {"user", "input", "output"})
    with open_file(source.path) as stream:
        lines = iter_lines(stream, name, findings)
        rows = (
            jsonl_rows(lines, name, findings) if source.format == "jsonl" else csv_rows(lines, name, findings, required)
        )
        yield from parse_rows(rows, source.task or DEFAULT_TASK, findings, source.user)


def _field_mapping(intake: ParsedFile, name: str, find: FindTask) -> FieldMapping:
    task = intake.tasks.setdefault(name, find(name))
    intake.task = name
    return FieldMapping(name, task.input_field, task.output_field, task.strip_instruction)


def _find_tasks(intake: ParsedFile, find: FindTask) -> None:
    """Every task that a record names must exist; a missing one is a fault of the first record that names it."""
    unknown: set[str] = set()
    for record in intake.records:
        name = record.item.task
        if name in intake.tasks or name in unknown:
            continue
        try:
            intake.tasks[name] = find(name)
        except NotFound as error:
            unknown.add(name)
            hint = f" ({error.hint})" if error.hint else ""
            intake.findings.add_fault(record.location, f"{error.message}{hint}", "task")


def import_notes(intake: ParsedFile) -> Iterator[Note]:
    """Notes for the user about a file that is imported all the same."""
    for reason, count in intake.findings.skip_counts.items():
        kept = "; their users' histories are imported" if reason == NO_GOLD else ""
        yield Note(f"left out, {reason}: {count:,}{kept}", warning=True)
    if intake.findings.ignored_fields:
        yield Note(
            f"fields that mean nothing here: {', '.join(format_value(name) for name in intake.findings.ignored_fields)}"
        )
    yield from (Note(text, warning=True) for text in intake.warnings)
    if intake.times_not_stored:
        yield Note(f"stored already without a time, and stay so: {intake.times_not_stored:,}", warning=True)
    yield from _unknown_labels(intake)
    leaked = _count_leaked_queries(intake)
    if leaked:
        yield Note(
            f"held-out queries that also stand in their user's history, with the same answer: {leaked:,}", warning=True
        )


def _unknown_labels(intake: ParsedFile) -> Iterator[Note]:
    strange: dict[str, Counter[str]] = {}
    for record in intake.records:
        task = intake.tasks[record.item.task]
        if task.learning_prompt is not None and not record.held_out:
            continue  # history items of such a task differ in kind from its queries
        if task.labels and find_label(record.item.output, task.labels) is None:
            strange.setdefault(task.name, Counter())[record.item.output] += 1
    for name, answers in strange.items():
        some = ", ".join(format_value(answer) for answer, _ in answers.most_common(3))
        yield Note(f"answers that are no label of {name}: {answers.total():,}, such as {some}", warning=True)


def _count_leaked_queries(intake: ParsedFile) -> int:
    said = {
        (record.user, record.item.task, record.item.input, record.item.output)
        for record in intake.records
        if not record.held_out
    }
    return sum(
        record.held_out and (record.user, record.item.task, record.item.input, record.item.output) in said
        for record in intake.records
    )
