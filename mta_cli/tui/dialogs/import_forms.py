"""The forms that read a file: an import, and `quick`, which goes from a file to a verdict.

Columns and formats are guessed by the same code as on the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mta_cli.events import Event
from mta_cli.options import ImportOptions, MachineOptions, QuickOptions
from mta_cli.pipeline.data.formats.catalog import FORMATS
from mta_cli.tui.dialogs.form import FormField, FormValues, option_fields, setting_field
from mta_cli.tui.dialogs.job_request import (
    FormContext,
    JobForm,
    JobRequest,
    build_options,
    parse_path,
    shared_fields,
)

if TYPE_CHECKING:
    from mta_cli.pipeline.data.import_source import ImportSource
    from store.registry import Registry

COLUMNS = ("user", "input", "output", "time", "id")
IMPORT_MAIN_FIELDS = ("preset", "me", "user", "input", "output", "hold_out")
QUICK_ADVANCED_FIELDS = ("time", "me", "since", "paths", "least", "body", "pseudonyms")


def _consent_field(default: str) -> FormField:
    return FormField(
        "can_anchor",
        "may be anchors",
        default_text=default,
        choices=("yes", "no"),
        help="Whether these users may be anchors, whose models help to serve other users.",
    )


def _parse_consent(filled: FormValues) -> bool | None:
    return {"yes": True, "no": False}.get(filled["can_anchor"])


def _import_fields(context: FormContext) -> tuple[FormField, ...]:
    path = "The path of the file, of a folder of files, or of a git repository."
    format = "The format of the file. If empty, it is recognised from the content."
    task = "The task of records that do not name one. If empty: free, commit for a repository, or the preset's task."
    return (
        FormField("path", "file", help=path, required=True),
        FormField("format", "format", default_text="recognised from the content", choices=tuple(FORMATS), help=format),
        *option_fields(context.settings, ImportOptions, IMPORT_MAIN_FIELDS),
        FormField("task", "task", default_text="as in the file, or free", help=task, choices=context.task_names),
        _consent_field("new users may, except users from mail, chats and repositories"),
    )


def _import_source(context: FormContext, filled: FormValues) -> ImportSource:
    from mta_cli.pipeline.data.import_source import ImportSource

    given = build_options(context, filled, ImportOptions)[ImportOptions]
    path, format, task = parse_path(filled["path"]), filled["format"] or None, filled["task"] or None
    return ImportSource.from_options(path, given, format=format, task=task)


def _import_request(context: FormContext, filled: FormValues) -> JobRequest:
    source, can_anchor = _import_source(context, filled), _parse_consent(filled)

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        from mta_cli.pipeline.users.import_file import import_source

        return import_source(reg, source, can_anchor=can_anchor, dry_run=dry_run)

    return JobRequest("data import", source.name, make)


def _suggest_import(context: FormContext, filled: FormValues) -> Mapping[str, str]:
    """Defaults shown in empty fields: guessed columns of a table, and whether the user's name is needed."""
    from mta_cli.pipeline.data.table_sample import read_table_sample

    source = _import_source(context, filled)
    if not source.path.is_file() or source.preset is not None:
        return {}
    sample = read_table_sample(source)
    if sample is None:
        return {**dict.fromkeys(COLUMNS, "not needed: the file is not a table"), "me": _name_words(source)}
    missing, guess = sample.missing_parts(source), sample.guess().columns
    likely = {part: f"required; perhaps {guessed}" for part in missing if (guessed := getattr(guess, part))}
    wanted = "required if no column names the users" if "user" in missing else "not needed: a column names the users"
    named = dict.fromkeys(COLUMNS, "the column with this name")
    return {**named, "me": wanted, **dict.fromkeys(missing, "required"), **likely}


def _name_words(source: ImportSource) -> str:
    """Text for the field `me` of a file that is not a table: whether the user's name is needed."""
    from mta_cli.pipeline.data.table_sample import detect_format

    form = detect_format(source)
    if form is None:
        return "required if the files do not name their users"
    if FORMATS[form].kind == "document":
        return f"not needed: a file in the format {form} names its users"
    return f"required: a file in the format {form} does not say which name is yours"


def _quick_fields(context: FormContext) -> tuple[FormField, ...]:
    path = "A table with what each user was asked and answered, or a git repository."
    task = "The name of the task that is made."
    column = partial(setting_field, context.settings, ImportOptions)
    collapsed = partial(setting_field, context.settings, ImportOptions, advanced=True)
    return (
        FormField("path", "file", help=path, required=True),
        *(replace(column(name), default_text="guessed from the file") for name in ("user", "input", "output")),
        *option_fields(context.settings, QuickOptions, ("minutes",)),
        *map(collapsed, QUICK_ADVANCED_FIELDS),
        FormField("task", "task", default_text="the file's name", help=task, advanced=True),
        replace(_consent_field("new users may"), advanced=True),
        *shared_fields(context),
    )


def _quick_source(context: FormContext, filled: FormValues) -> ImportSource:
    from mta_cli.pipeline.data.import_source import ImportSource

    options = build_options(context, filled, ImportOptions, MachineOptions)
    given = replace(options[ImportOptions], seed=options[MachineOptions].seed)
    return ImportSource.from_options(parse_path(filled["path"]), given, task=filled["task"] or None)


def _quick_request(context: FormContext, filled: FormValues) -> JobRequest:
    from mta_cli.pipeline.quick.run import OPTION_CLASSES, QuickRequest, run_quick

    options = build_options(context, filled, QuickOptions, *OPTION_CLASSES)
    source, can_anchor = _quick_source(context, filled), _parse_consent(filled)
    request = QuickRequest(source, options, options[QuickOptions].minutes)

    def make(reg: Registry, dry_run: bool) -> Iterator[Event]:
        return run_quick(reg, request, can_anchor=can_anchor, dry_run=dry_run)

    return JobRequest("quick", source.name, make)


def _suggest_quick(context: FormContext, filled: FormValues) -> Mapping[str, str]:
    from mta_cli.pipeline.quick.columns import complete_columns

    source = _quick_source(context, filled)
    if not source.path.is_file():
        return {}
    lines = complete_columns(source).plan_lines
    return {"time": "none", **{line.name: f"{line.value} ({line.origin})" for line in lines}}


IMPORT_FORM = JobForm(
    "data import",
    "i",
    "Histories from a file, which is checked completely first.",
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
