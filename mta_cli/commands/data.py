"""`mta data`: import histories into the store. Signature, help and rendering; the job is in the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli.commands.shared.arguments import (
    AssumeConsentOption,
    ConsentOption,
    DryRunOption,
    ImportTaskOption,
    JsonOption,
)
from mta_cli.commands.shared.context import app_context, make_consent_prompt, stdin_is_terminal
from mta_cli.commands.shared.lazy_typer import CommandGroup
from mta_cli.commands.shared.next_steps import suggest_after_import
from mta_cli.commands.shared.option_flags import Flags, options
from mta_cli.errors import Command, UsageError
from mta_cli.options import ImportOptions
from mta_cli.pipeline.data.formats.catalog import FORMATS
from mta_cli.terminal import tables

if TYPE_CHECKING:
    from rich.console import RenderableType

app = CommandGroup("Import histories.")


def complete_formats() -> list[tuple[str, str]]:
    """The formats, each with its meaning."""
    return [(name, each.meaning) for name, each in FORMATS.items()]


FormatArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="FORMAT",
        help=f"One of {', '.join(FORMATS)}. Without it, the format is recognised from the content.",
        autocompletion=complete_formats,
        show_default=False,
    ),
]
PathArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="PATH",
        help="The file, a folder or zip archive of files, or a git repository; - reads standard input.",
        show_default=False,
    ),
]


@app.command("import")
@options(ImportOptions)
def import_(
    ctx: typer.Context,
    *,
    format: FormatArgument = None,
    path: PathArgument = None,
    flags: Flags,
    task: ImportTaskOption = None,
    can_anchor: ConsentOption = None,
    yes: AssumeConsentOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Import histories or a git repository.

    Everything is checked before anything is stored. Importing a file again adds only its new items.
    """
    from mta_cli.commands.import_columns import ask_for_columns
    from mta_cli.pipeline.data.import_source import ImportSource
    from mta_cli.pipeline.users.import_file import import_source

    context = app_context(ctx, flags, json=json)
    format, path = _split_format_and_path(format, path)
    piped = str(path) == "-"
    given = context.options[ImportOptions]
    source = ImportSource.from_options(Path("/dev/stdin") if piped else path, given, format=format, task=task)
    ask = make_consent_prompt(context, can_anchor, yes=yes, piped=piped, third_parties=source.is_repository)
    with context.open_registry() as reg:
        if stdin_is_terminal() and not json:
            source = ask_for_columns(context.output, source, context.global_flags.words)
        job = import_source(reg, source, can_anchor=can_anchor, ask=ask, dry_run=dry_run)
        done = context.output.run_job_and_print(job, _render_import, dry_run=dry_run, resumes=True)
        if not dry_run:
            suggest_after_import(context, reg, done["tasks"])


def _split_format_and_path(first: str | None, path: Path | None) -> tuple[str | None, Path]:
    """The format, if given, and the path; a single word is the path. Raises UsageError without a path."""
    if path is not None:
        return first, path
    if not first or (first in FORMATS and not Path(first).exists()):
        what = "No file was named." if not first else f"{first} is a format, and no file was named."
        raise UsageError(what, hint=(Command("data import"), f" {first or '[FORMAT]'} PATH"))
    return None, Path(first)


def _render_import(result: dict[str, Any]) -> RenderableType:
    what = (("history items", "items"), ("held-out queries", "queries"))
    counts = [
        (name, f"{result[f'{key}_added']:,} new, {result[f'{key}_unchanged']:,} known already") for name, key in what
    ]
    return tables.key_value_grid([("task", result["tasks"]), ("users", result["users"]), *counts])
