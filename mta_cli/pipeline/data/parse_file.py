"""One file → checked records and what to say about them; nothing is written. Knows formats and tasks, no store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.errors import BadInput, NotFound, UsageFault
from mta_cli.events import Event, Note, Started, Step
from mta_cli.pipeline.data.formats import FORMATS
from mta_cli.pipeline.data.formats.findings import Findings, Record, shown
from mta_cli.pipeline.data.formats.lamp import NO_GOLD, Golds, parse_golds, parse_questions, parse_users
from mta_cli.pipeline.data.formats.reading import lines_of, opened, read_document
from mta_cli.pipeline.data.formats.rows import csv_rows, jsonl_rows, parse_rows
from mta_cli.pipeline.data.formats.task_fields import Shape

if TYPE_CHECKING:
    from mta_cli.engine.text.tasks import Task

PROGRESS = 5_000
"""Records between two steps of the progress bar."""
DEFAULT_TASK = "free"

FindTask = Callable[[str], "Task"]


@dataclass(frozen=True)
class Source:
    """What was asked for: a file, its format, and whose and which task's it is where the file does not say."""

    format: str
    path: Path
    task: str | None = None
    outputs: Path | None = None
    user: str | None = None

    def check(self) -> None:
        """Raise `UsageFault` when the parts contradict each other."""
        if self.format not in FORMATS:
            raise UsageFault(f"{shown(self.format)} is no format", hint=f"choose one of {', '.join(FORMATS)}")
        if self.outputs is not None and self.format != "lamp":
            raise UsageFault(f"--outputs belongs to the format lamp, not to {self.format}")


@dataclass
class Intake:
    """A file after it was checked. `tasks` holds every task that its records belong to.

    `untimed` counts records whose time the store will not learn, because it already has them without one.
    """

    task: str | None = None
    records: list[Record] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    warnings: list[str] = field(default_factory=list)
    untimed: int = 0

    @property
    def users(self) -> list[str]:
        """Everyone whom the file names, in its order, also those without a single usable record."""
        return list(self.findings.spellings)

    def count(self, *, held_out: bool) -> int:
        """How many queries, or history items, there are."""
        return sum(record.held_out == held_out for record in self.records)


def read_source(source: Source, find: FindTask) -> Generator[Event, None, Intake]:
    """Check the whole file. Raises `NotFound`, `UsageFault` or `BadInput`; the latter lists every fault."""
    source.check()
    intake = Intake(source.task)
    if source.user is not None:
        intake.findings.spelled(source.user, source.user)
    if source.task is not None:
        intake.tasks[source.task] = find(source.task)
    yield Started(f"read {source.path.name}", unit="records")
    for record in _parsed(source, intake, find):
        intake.records.append(record)
        if len(intake.records) % PROGRESS == 0:
            yield Step("", len(intake.records))
    _find_tasks(intake, find)
    unnamed = source.format == "users" and source.task is None
    hint = f"it was read as task {DEFAULT_TASK}; name another with --task" if unnamed else None
    intake.findings.settle(source.path.name, hint)
    if not intake.records and not intake.findings.left_out:
        raise BadInput(f"{source.path.name} holds no records")
    return intake


def _parsed(source: Source, intake: Intake, find: FindTask) -> Iterator[Record]:
    if source.format == "lamp":
        return _lamp(source, intake, find)
    if source.format == "users":
        shape = _shape(intake, source.task or DEFAULT_TASK, find)
        return parse_users(read_document(source.path), shape, source.path.name, intake.findings)
    return _rows(source, intake)


def _lamp(source: Source, intake: Intake, find: FindTask) -> Iterator[Record]:
    name, findings = source.path.name, intake.findings
    golds = Golds("", {})
    if source.outputs is not None:
        golds = parse_golds(read_document(source.outputs), source.outputs.name, findings)
    told = golds.task.casefold().replace("_", "-")
    task = source.task or told
    if not task:
        raise UsageFault(f"{name} does not say which task it is", hint="name it with --task; `mta task list` shows all")
    if source.task is not None and told.startswith("lamp-") and told != source.task:
        intake.warnings.append(f"the outputs say {shown(golds.task)}, but are imported as {source.task}")
    yield from parse_questions(read_document(source.path), golds.answers, _shape(intake, task, find), name, findings)


def _rows(source: Source, intake: Intake) -> Iterator[Record]:
    name, findings = source.path.name, intake.findings
    required = frozenset({"input", "output"} if source.user is not None else {"user", "input", "output"})
    with opened(source.path) as stream:
        lines = lines_of(stream, name, findings)
        rows = (
            jsonl_rows(lines, name, findings) if source.format == "jsonl" else csv_rows(lines, name, findings, required)
        )
        yield from parse_rows(rows, source.task or DEFAULT_TASK, findings, source.user)


def _shape(intake: Intake, name: str, find: FindTask) -> Shape:
    task = intake.tasks.setdefault(name, find(name))
    intake.task = name
    return Shape(name, task.input_field, task.output_field, task.strip)


def _find_tasks(intake: Intake, find: FindTask) -> None:
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
            intake.findings.fault(record.place, f"{error.message}{hint}", "task")


def remarks(intake: Intake) -> Iterator[Note]:
    """What the person should know about a file that is imported all the same."""
    for reason, count in intake.findings.left_out.items():
        kept = "; their users' histories are imported" if reason == NO_GOLD else ""
        yield Note(f"left out, {reason}: {count:,}{kept}", warning=True)
    if intake.findings.ignored:
        yield Note(f"fields that mean nothing here: {', '.join(shown(name) for name in intake.findings.ignored)}")
    yield from (Note(text, warning=True) for text in intake.warnings)
    if intake.untimed:
        yield Note(f"stored already without a time, and stay so: {intake.untimed:,}", warning=True)
    yield from _unknown_labels(intake)
    leaked = _leaked(intake)
    if leaked:
        yield Note(
            f"held-out queries that also stand in their user's history, with the same answer: {leaked:,}", warning=True
        )


def _unknown_labels(intake: Intake) -> Iterator[Note]:
    strange: dict[str, Counter[str]] = {}
    for record in intake.records:
        task = intake.tasks[record.item.task]
        if task.learning_prompt is not None and not record.held_out:
            continue  # history items of such a task ask something else than its queries
        if task.labels and record.item.output.strip() not in task.labels:
            strange.setdefault(task.name, Counter())[record.item.output] += 1
    for name, answers in strange.items():
        some = ", ".join(shown(answer) for answer, _ in answers.most_common(3))
        yield Note(f"answers that are no label of {name}: {answers.total():,}, such as {some}", warning=True)


def _leaked(intake: Intake) -> int:
    said = {
        (record.user, record.item.task, record.item.input, record.item.output)
        for record in intake.records
        if not record.held_out
    }
    return sum(
        record.held_out and (record.user, record.item.task, record.item.input, record.item.output) in said
        for record in intake.records
    )
