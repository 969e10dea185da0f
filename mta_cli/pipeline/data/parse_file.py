"""Parses files into checked, staged records and findings, without importing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mta_cli.engine.text.labels import find_label, parse_number
from mta_cli.errors import BadInput, Command, Flag, NotFound, UsageError, Words, words_to_text
from mta_cli.events import Event, JobProgress, JobStarted, Note
from mta_cli.pipeline.data.formats.archive import ArchivedFile
from mta_cli.pipeline.data.formats.catalog import FORMATS
from mta_cli.pipeline.data.formats.detect import is_certainly_importable, read_sample, require_format
from mta_cli.pipeline.data.formats.json_array import iter_array, read_document
from mta_cli.pipeline.data.formats.lamp import NO_GOLD, FieldMapping, parse_golds, parse_questions
from mta_cli.pipeline.data.formats.mail.replies import MailReplies
from mta_cli.pipeline.data.formats.messengers.replies import MessengerReplies
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, Record, format_value
from mta_cli.pipeline.data.formats.reading import open_rewindable
from mta_cli.pipeline.data.formats.rows import RawRow, parse_rows
from mta_cli.pipeline.data.formats.users import parse_users
from mta_cli.pipeline.data.git.commits import read_commits
from mta_cli.pipeline.data.import_source import DEFAULT_TASK, ImportSource
from mta_cli.pipeline.data.table_sample import checked_rows
from store.staged_records import HeldOut

if TYPE_CHECKING:
    from mta_cli.engine.text.tasks import Task
    from store.staged_records import StagedRecords

PROGRESS_EVERY = 5_000
"""Records between two progress events."""
MAX_COUNTED_ANSWERS = 1_000
"""At most this many different unknown labels are counted separately."""
UNKNOWN_FILES = "files of an unknown format"

FindTask = Callable[[str], "Task"]


@dataclass
class UnknownLabelCounts:
    """Counts a task's answers that are not labels of the task.

    `total` counts all of them, `examples` each of the first `MAX_COUNTED_ANSWERS` different ones.
    """

    total: int = 0
    examples: Counter[str] = field(default_factory=Counter)

    @property
    def frequent(self) -> list[str]:
        """The three most frequent unknown labels."""
        return [answer for answer, _ in self.examples.most_common(3)]

    @property
    def some(self) -> str:
        """The three most frequent unknown labels, for a message."""
        return ", ".join(map(format_value, self.frequent))

    def add(self, answer: str) -> None:
        """Count an answer that is not a label."""
        self.total += 1
        if len(self.examples) < MAX_COUNTED_ANSWERS or answer in self.examples:
            self.examples[answer] += 1


@dataclass
class ParsedFile:
    """The checked records and findings of an import's files.

    `counts[True]` is the number of held-out queries, `counts[False]` of history items. `labelled` counts the answers
    that should be labels, by task. `formats` are the files' formats. `held_out` describes the items that were held out.
    `times_not_stored` counts records whose time is dropped because the store already has them without one.
    `repeated_queries` are stored queries (user, task, key) with the same content as a record of another time.
    """

    staged: StagedRecords
    counts: Counter[bool] = field(default_factory=Counter)
    tasks: dict[str, Task] = field(default_factory=dict)
    unknown_tasks: set[str] = field(default_factory=set)
    unknown_labels: dict[str, UnknownLabelCounts] = field(default_factory=dict)
    labelled: Counter[str] = field(default_factory=Counter)
    findings: ParseFindings = field(default_factory=ParseFindings)
    warnings: list[str] = field(default_factory=list)
    times_not_stored: int = 0
    repeated_queries: set[tuple[str, str, str]] = field(default_factory=set)
    held_out: HeldOut = field(default_factory=HeldOut)
    formats: dict[str, None] = field(default_factory=dict)

    @property
    def input_authors(self) -> list[str]:
        """The authors of the inputs, if these are other people."""
        return list(dict.fromkeys(filter(None, (FORMATS[form].input_authors for form in self.formats))))

    @property
    def third_parties(self) -> str:
        """A description of the users if they are not the person who imports them; otherwise empty."""
        return next((parties for form in self.formats if (parties := FORMATS[form].third_parties)), "")

    @property
    def user_names(self) -> Collection[str]:
        """The users in the file's order; in the formats `users` and `lamp` also users without records."""
        return self.findings.users.keys()

    def count(self, record: Record, find: FindTask) -> None:
        """Count a record, and its answer if its task has labels (see `require_labels`).

        An unknown task is added as a fault of the first record that names it.
        """
        self.counts[record.held_out] += 1
        name = record.item.task
        if name not in self.tasks:
            if name in self.unknown_tasks:
                return
            try:
                self.tasks[name] = find(name)
            except NotFound as error:
                self.unknown_tasks.add(name)
                hint = f" ({words_to_text(error.hint)})" if error.hint else ""
                self.findings.add_fault(record.location, f"{error}{hint}", "task", of_record=False)
                return
        task = self.tasks[name]
        # with a learning prompt, history items have another kind of output than queries
        asked = task.learning_prompt is None or record.held_out
        if asked and task.labels:
            self.labelled[name] += 1
            if find_label(record.item.output, task.labels) is None:
                self.unknown_labels.setdefault(name, UnknownLabelCounts()).add(record.item.output)

    def require_labels(self, file: str) -> None:
        """Raises `BadInput` if most answers of a task are not its labels, because the task is then probably wrong."""
        for name, unknown in self.unknown_labels.items():
            count, task = self.labelled[name], self.tasks[name]
            if 2 * unknown.total <= count:
                continue
            is_number = task.kind == "score" and all(parse_number(answer) is not None for answer in unknown.frequent)
            rounded = ("round them to its scale with ", Flag("round", "N"), ", or ") if is_number else ()
            shown = (Command("task show", name), " lists the labels")
            raise BadInput(
                f"{unknown.total:,} of {count:,} answers in {file} are not labels of {name}, such as {unknown.some}",
                hint=(*rounded, "import them with ", Flag("task", DEFAULT_TASK), ", which accepts any text; ", *shown),
            )


def parse_import_file(
    source: ImportSource, find: FindTask, staged: StagedRecords
) -> Generator[Event, None, ParsedFile]:
    """Check a source completely and stage its records; returns the findings.

    `source` must have passed `require_consistent`.

    Raises `NotFound`, `UsageError` or `BadInput`, which lists the faults.
    """
    intake = ParsedFile(staged, findings=ParseFindings(skip_faulty=source.skip_faulty))
    if source.task is not None:
        intake.tasks[source.task] = find(source.task)
    yield JobStarted(f"read {source.name}", unit="records")
    for number, record in enumerate(_parse_records(source, intake, find), 1):
        intake.count(record, find)
        if number % PROGRESS_EVERY == 0:
            yield JobProgress("", number)
    intake.findings.raise_faults(source.name, _fault_hint(source, intake))
    if not intake.counts and intake.findings.skipped_places:
        hint = (
            _fault_hint(source, intake) or "every record has a fault, so there is nothing to import: correct the file"
        )
        intake.findings.raise_all(source.name, hint)
    if not intake.counts and not intake.findings.skip_counts:
        raise BadInput(f"{source.name} contains no records", hint="check that it is the right file")
    return intake


def _fault_hint(source: ImportSource, intake: ParsedFile) -> Words | None:
    """A hint for the faults of a file."""
    if "users" in intake.formats and source.task is None:
        return (f"the file was read as task {DEFAULT_TASK}; name another task with ", Flag("task"))
    if "time" in intake.findings.fault_fields and all(FORMATS[form].kind == "table" for form in intake.formats):
        return ("name another column with ", Flag("time"), ", or ignore times with ", Flag("time", ""))
    return None


def _parse_records(source: ImportSource, intake: ParsedFile, find: FindTask) -> Iterator[Record]:
    if source.is_repository:
        intake.formats["git"] = None
        rows = read_commits(source.path, source.commits, intake.findings)
        yield from parse_rows(rows, source.default_task, intake.findings, intake.staged, keep_untimed=True)
        return
    mails = MailReplies(source.addresses, source.name, intake.staged.mails, intake.findings)
    talk = MessengerReplies(source.names, source.name, intake.findings)

    def parse(rows: Iterator[RawRow]) -> Iterator[Record]:
        return parse_rows(rows, source.default_task, intake.findings, intake.staged, source.user)

    for path in source.files():
        with open_rewindable(path) as stream:
            if source.passes_over_unknown and not is_certainly_importable(stream, path.name):
                intake.findings.skip_counts[UNKNOWN_FILES] += 1
                continue
            form = require_format(read_sample(stream, path.name), "csv" if source.preset else source.format)
            source.require_format_consistent(form)
            intake.formats[form] = None
            if FORMATS[form].kind == "mail":
                mails.add(FORMATS[form].load().read_mails(stream, path.name, intake.findings))
                continue
            if FORMATS[form].kind == "messenger":
                messages = FORMATS[form].load().read_messages(stream, path, intake.findings)
                yield from parse(talk.add(form, messages))
                continue
            parse_file = _parse_document if FORMATS[form].kind == "document" else _parse_table
            yield from parse_file(stream, path, form, source, intake, find)
    yield from parse(talk.end())
    yield from parse(mails.rows())
    if not intake.formats:
        raise BadInput(f"{source.name} contains no file in a known format", hint=f"known formats: {', '.join(FORMATS)}")


def _parse_table(
    stream: BinaryIO, path: Path | ArchivedFile, form: str, source: ImportSource, intake: ParsedFile, find: FindTask
) -> Iterator[Record]:
    findings = intake.findings
    rows = FORMATS[form].load().read_rows(stream, path.name, findings)
    if (preset := source.known_preset) is not None and isinstance(path, Path):
        rows = checked_rows(rows, path.name, lambda sample: preset.require_columns(sample.columns, path.name))
        rows = preset.read(rows, preset.read_details(path, findings), findings)
    rows = checked_rows(rows, path.name, lambda sample: sample.require_columns(source))
    task, mapping, untimed = source.default_task, source.mapping, source.keeps_untimed
    step, scale = source.round_to, source.scale
    yield from parse_rows(rows, task, findings, intake.staged, source.user, mapping, step, untimed, scale)
    if preset is not None:  # other columns in an export are normal
        findings.ignored_fields.clear()


def _parse_document(
    stream: BinaryIO, path: Path | ArchivedFile, form: str, source: ImportSource, intake: ParsedFile, find: FindTask
) -> Iterator[Record]:
    entries = iter_array(stream, path.name, intake.findings)
    if form == "lamp":
        answers, task = _load_gold_answers(source, intake)
        shape = _field_mapping(intake, task, find)
        yield from parse_questions(entries, answers, shape, path.name, intake.findings, intake.staged)
    else:
        shape = _field_mapping(intake, source.default_task, find)
        yield from parse_users(entries, shape, path.name, intake.findings, intake.staged)


def _load_gold_answers(source: ImportSource, intake: ParsedFile) -> tuple[Mapping[str, str], str]:
    """The gold answers to LaMP's questions and their task, from the request or the outputs file."""
    given, answers = "", dict[str, str]()
    if source.outputs is not None:
        given, answers = parse_golds(read_document(source.outputs), source.outputs.name, intake.findings)
    told = given.casefold().replace("_", "-")
    task = source.task or told
    if not task:
        raise UsageError(
            f"{source.name} does not name the task of its records",
            hint=("name the task with ", Flag("task"), "; ", Command("task list"), " shows all tasks"),
        )
    if source.task is not None and told.startswith("lamp-") and told != source.task:
        intake.warnings.append(f"the outputs file names task {format_value(given)}, but is imported as {source.task}")
    return answers, task


def _field_mapping(intake: ParsedFile, name: str, find: FindTask) -> FieldMapping:
    task = intake.tasks.setdefault(name, find(name))
    return FieldMapping(name, task.input_field, task.output_field, task.strip_instruction)


def import_notes(intake: ParsedFile) -> Iterator[Note]:
    """Notes and warnings about the parsed files: what was left out, ignored or assumed."""
    yield from (Note(text) for text in intake.findings.notes)
    yield from (Note(text, warning=True) for text in intake.findings.doubts)
    for reason, count in intake.findings.skip_counts.items():
        kept = "; their users' histories are imported" if reason == NO_GOLD else ""
        yield Note(f"left out, {reason}: {count:,}{kept}", warning=True)
    if faulty := len(intake.findings.skipped_places):
        yield Note(
            f"left out, records with a fault: {faulty:,}, such as {intake.findings.fault_lines[0]}", warning=True
        )
    if intake.findings.unread_times:
        yield Note(
            f"records kept without their unreadable time: {intake.findings.unread_times:,}, such as "
            f"{intake.findings.unread_time_example}",
            warning=True,
        )
    if intake.findings.ignored_fields:
        yield Note(
            f"fields that were not read: {', '.join(format_value(name) for name in intake.findings.ignored_fields)}"
        )
    yield from (Note(text, warning=True) for text in intake.warnings)
    if intake.times_not_stored:
        yield Note(
            f"items already stored without a time; their time in the file is not added: {intake.times_not_stored:,}",
            warning=True,
        )
    for name, unknown in intake.unknown_labels.items():
        yield Note(f"answers that are not labels of {name}: {unknown.total:,}, such as {unknown.some}", warning=True)
    leaked = intake.staged.count_leaked_queries() if intake.counts[True] else 0
    leaked += sum(not intake.staged.kinds_of_key(*query) for query in intake.repeated_queries)
    if leaked:
        yield Note(
            f"held-out queries that are also in their user's history, with the same answer: {leaked:,}", warning=True
        )
