"""Guesses the columns that a source does not name, and describes all of them in plan lines."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mta_cli.errors import BadInput, Command, Flag
from mta_cli.events import PlanLine
from mta_cli.pipeline.data.column_mapping import find_column
from mta_cli.pipeline.data.formats.catalog import FORMATS
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.pipeline.data.table_sample import detect_format, read_table_sample

COMMAND = "quick"
PARTS = ("user", "input", "output", "time")


@dataclass(frozen=True)
class CompleteSource:
    """A source that an import can read, and plan lines that describe its columns.

    `is_document` says whether its format is of the kind `document`; such a source names an existing task.
    """

    source: ImportSource
    plan_lines: tuple[PlanLine, ...]
    is_document: bool = False

    @property
    def text(self) -> str:
        """The source's name and its plan lines in one line."""
        parts = ", ".join(f"{line.name} {line.value} ({line.origin})" for line in self.plan_lines)
        return f"{self.source.name}: {parts}"


def complete_columns(source: ImportSource) -> CompleteSource:
    """The source with guesses for the `PARTS` that have no flag and no column of that name.

    An import of it leaves faulty records out. Raises the errors of reading the file, and BadInput, with the columns and
    an example command, if a required part cannot be guessed, or if a document comes without a task.
    """
    source.require_consistent()
    form = detect_format(source)
    kind = FORMATS[form].kind if form is not None else None
    is_document = kind == "document"
    if form is not None:
        source.require_format_consistent(form)
    if is_document and source.task is None:
        raise BadInput(
            f"{source.name} is in the format {form}, for which no task can be made from the data",
            hint=("name an existing task with ", Flag("task"), "; ", Command("task list"), " shows all tasks"),
        )
    source = replace(source, skip_faulty=kind not in ("document", "repository"))
    sample = read_table_sample(source)
    if sample is None or not sample.rows:
        return CompleteSource(source, (), is_document)
    guess, lines, columns = sample.guess(source.columns).columns, [], source.columns
    missing = sample.missing_parts(source)
    for part in PARTS:
        given, own = getattr(columns, part), find_column(part, sample.columns)
        if part == "user" and source.user is not None:
            lines.append(PlanLine(part, source.user, "given"))
        elif given is not None:
            lines.append(PlanLine(part, given or "none", "given"))
        elif own is not None:
            lines.append(PlanLine(part, own, "by its name"))
        elif (guessed := getattr(guess, part)) is not None and (part in missing or part == "time"):
            columns = replace(columns, **{part: guessed})
            source = replace(source, guessed_time=source.guessed_time or part == "time")
            lines.append(PlanLine(part, guessed, "guessed"))
    complete = replace(source, columns=columns)
    sample.require_columns(complete, COMMAND)
    return CompleteSource(complete, tuple(lines))
