"""The forms that read a file: an import, and a quick look from a file to a verdict.

Columns and formats are guessed by the same code as on the command line. Runs no job.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mta_cli.errors import UsageError
from mta_cli.events import Event
from mta_cli.options import MachineOptions
from mta_cli.pipeline.data.formats import FORMATS
from mta_cli.tui.dialogs.form import FormField, FormValues
from mta_cli.tui.dialogs.job_request import (
    FormContext,
    JobForm,
    JobRequest,
    build_options,
    parse_path,
    shared_fields,
    task_field,
)

if TYPE_CHECKING:
    from mta_cli.pipeline.data.column_mapping import ColumnMapping
    from mta_cli.pipeline.data.import_source import ImportSource
    from store.registry import Registry

MINUTES, MIN_MINUTES, MAX_MINUTES = 3.0, 0.1, 10_000.0
MAX_COUNT, MAX_STEP = 10**9, 1e9
NO_COLUMN = "-"
COLUMN_HELPS = {
    "user": "The column of the users' names.",
    "input": 'The column of what a user was asked, or a template such as "{title}. {text}".',
    "output": "The column of what the user answered, or a template.",
    "time": f"The column of the time; {NO_COLUMN} for none.",
}


def _column_fields(default: str, *, advanced: bool) -> tuple[FormField, ...]:
    """The fields of a table's columns. The time's field is always collapsed."""
    return tuple(
        FormField(part, part, default_text=default, help=help, advanced=advanced or part == "time")
        for part, help in COLUMN_HELPS.items()
    )


def _consent_field(default: str) -> FormField:
    return FormField(
        "can_anchor",
        "may be anchors",
        default_text=default,
        choices=("yes", "no"),
        help="Whether these users may be anchors, whose models help to serve other users.",
    )


def _name_field(*, advanced: bool) -> FormField:
    return FormField(
        "me",
        "your name",
        default_text="where the file names no user",
        help="The user of a file of one user. For mail your addresses, for WhatsApp, Slack and Discord your names "
        "there, separated by commas.",
        advanced=advanced,
    )


def _import_fields(context: FormContext) -> tuple[FormField, ...]:
    from mta_cli.pipeline.data.presets import PRESETS

    return (
        FormField(
            "path", "file", help="The path of the file, of a folder of files, or of a git repository.", required=True
        ),
        FormField(
            "format",
            "format",
            default_text="by its content",
            choices=tuple(FORMATS),
            help="The format of the file; empty: by its content.",
        ),
        FormField(
            "preset",
            "export of a site",
            default_text="no",
            choices=tuple(PRESETS),
            help="The site that the file is an export of; also adds a task for its ratings.",
        ),
        _name_field(advanced=False),
        *_column_fields("the column of this name", advanced=False),
        task_field(context),
        FormField(
            "hold_out",
            "hold out",
            default_text="0",
            help="Items of each user that are held out to measure: the last by time, else drawn.",
        ),
        _consent_field("new users may; not those of mail, chats, repositories"),
        FormField(
            "id",
            "id",
            default_text="the column of this name",
            help=f"The column of the id; {NO_COLUMN} for none.",
            advanced=True,
        ),
        FormField(
            "outputs",
            "answers",
            default_text="none",
            help="For the format lamp: the file with the answers.",
            advanced=True,
        ),
        FormField("seed", "seed", default_text="0", help="What draws held-out items without a time.", advanced=True),
        FormField(
            "skip_faulty",
            "skip faulty",
            default_text="no",
            choices=("yes", "no"),
            help="Leave out records with a fault, and count them.",
            advanced=True,
        ),
        FormField(
            "round",
            "round",
            default_text="no",
            help="Round numbers in the output to multiples of this; other outputs are left out.",
            advanced=True,
        ),
    )


def _import_source(filled: FormValues) -> ImportSource:
    from mta_cli.pipeline.data.import_source import ImportSource

    me, also_me = _parse_names(filled["me"])
    source = ImportSource(
        filled["format"] or None,
        parse_path(filled["path"]),
        filled["task"] or None,
        parse_path(filled["outputs"]) if filled["outputs"] else None,
        me,
        _column_mapping(filled),
        filled["preset"] or None,
        _parse_count(filled, "hold_out", 0),
        _parse_count(filled, "seed", 0),
        also_me,
        filled["skip_faulty"] == "yes",
        _parse_number(filled, "round", 0.0, 0.0, MAX_STEP),
    )
    source.require_consistent()
    return source


def _import_request(context: FormContext, filled: FormValues) -> JobRequest:
    source, can_anchor = _import_source(filled), _parse_consent(filled)

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        from mta_cli.pipeline.users.import_file import import_source

        return import_source(reg, source, can_anchor=can_anchor, dry_run=dry_run)

    return JobRequest("data import", source.name, make)


def _suggest_import(filled: FormValues) -> Mapping[str, str]:
    """Suggestions for an import: whether the file needs the user's name, and guesses for the columns of a table."""
    from mta_cli.pipeline.data.table_sample import read_table_sample

    source = _import_source(filled)
    if not source.path.is_file() or source.preset is not None:
        return {}
    sample = read_table_sample(source)
    if sample is None:
        return {**dict.fromkeys((*COLUMN_HELPS, "id"), "none: the file is not a table"), "me": _name_words(source)}
    missing, guess = sample.missing_parts(source), sample.guess().columns
    likely = {part: f"needed; perhaps {guessed}" for part in missing if (guessed := getattr(guess, part))}
    wanted = "needed where no column names the users" if "user" in missing else "none: a column names the users"
    return {"me": wanted, **dict.fromkeys(missing, "needed"), **likely}


def _name_words(source: ImportSource) -> str:
    """Whether a file that is not a table needs its user's name."""
    from mta_cli.pipeline.data.table_sample import detect_format

    form = detect_format(source)
    if form is None:
        return "needed if the files do not name their users"
    if FORMATS[form].kind == "document":
        return f"none: a file in the format {form} names its users"
    return f"needed: a file in the format {form} does not name you"


def _quick_fields(context: FormContext) -> tuple[FormField, ...]:
    return (
        FormField(
            "path",
            "file",
            help="A table with what each user was asked and answered, or a git repository.",
            required=True,
        ),
        *_column_fields("guessed from the file", advanced=False),
        FormField(
            "minutes", "minutes", default_text=f"{MINUTES:g}", help="About how long it may take; more trains more."
        ),
        _name_field(advanced=True),
        FormField(
            "task", "task", default_text="the file's name", help="The name of the task that is made.", advanced=True
        ),
        FormField(
            "hold_out",
            "hold out",
            default_text="as stored, else a fifth, 2 to 12; of one user 10 to 12",
            help="Items of each user that are held out to measure: the last by time, else drawn.",
            advanced=True,
        ),
        replace(_consent_field("new users may"), advanced=True),
        *shared_fields(context),
    )


def _quick_source(filled: FormValues, seed: int = 0) -> ImportSource:
    from mta_cli.pipeline.data.import_source import ImportSource

    me, also_me = _parse_names(filled["me"])
    path, columns = parse_path(filled["path"]), _column_mapping(filled)
    hold_out = _parse_count(filled, "hold_out", 0, least=1)
    task = filled["task"] or None
    source = ImportSource(None, path, task, None, me, columns, hold_out=hold_out, seed=seed, also_me=also_me)
    source.require_consistent()
    return source


def _quick_request(context: FormContext, filled: FormValues) -> JobRequest:
    from mta_cli.pipeline.quick.run import OPTION_CLASSES, QuickRequest, run_quick

    options = build_options(context, filled, *OPTION_CLASSES)
    source, can_anchor = _quick_source(filled, options[MachineOptions].seed), _parse_consent(filled)
    request = QuickRequest(source, options, _parse_number(filled, "minutes", MINUTES, MIN_MINUTES, MAX_MINUTES))

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        return run_quick(reg, request, can_anchor=can_anchor, dry_run=dry_run)

    return JobRequest("quick", source.name, make)


def _suggest_quick(filled: FormValues) -> Mapping[str, str]:
    """Default columns for empty fields, as `mta quick` completes them."""
    from mta_cli.pipeline.quick.columns import complete_columns

    source = _quick_source(filled)
    if not source.path.is_file():
        return {}
    lines = complete_columns(source).plan_lines
    return {"time": "none", **{line.name: f"{line.value} ({line.origin})" for line in lines}}


def _column_mapping(filled: FormValues) -> ColumnMapping:
    from mta_cli.pipeline.data.column_mapping import ColumnMapping

    typed = {part: filled.get(part) or None for part in (*COLUMN_HELPS, "id")}
    none = {part: "" for part in ("time", "id") if typed[part] == NO_COLUMN}
    return ColumnMapping(**typed | none)


def _parse_names(text: str) -> tuple[str | None, tuple[str, ...]]:
    """The first of several names separated by commas, checked, and the others."""
    from store.names import check_name

    names = [name for part in text.split(",") if (name := part.strip())]
    return (check_name(names[0]), tuple(names[1:])) if names else (None, ())


def _parse_consent(filled: FormValues) -> bool | None:
    return {"yes": True, "no": False}.get(filled["can_anchor"])


def _parse_count(filled: FormValues, name: str, default: int, *, least: int = 0) -> int:
    text = filled[name]
    if not text:
        return default
    if not (text.isdecimal() and least <= int(text) <= MAX_COUNT):
        raise UsageError(f"--{name.replace('_', '-')}: {text!r:.80} is not a whole number from {least} on")
    return int(text)


def _parse_number(filled: FormValues, name: str, default: float, least: float, most: float) -> float:
    text = filled[name]
    try:
        number = float(text or default)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise UsageError(f"--{name}: {text!r:.80} is not a number from {least:g} to {most:,.0f}")
    return number


IMPORT_FORM = JobForm(
    "data import",
    "i",
    "Histories from a file, checked as a whole first.",
    _import_fields,
    _import_request,
    _suggest_import,
)
QUICK_FORM = JobForm(
    "quick",
    "f",
    "A table of your own: from the file to a verdict.",
    _quick_fields,
    _quick_request,
    _suggest_quick,
)
