"""`mta data`: import histories into the store. Signature, help and rendering; the job is in the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli import output as out
from mta_cli.commands.shared.arguments import (
    AssumeConsentOption,
    ConsentOption,
    DryRunOption,
    ImportTaskOption,
    JsonOption,
)
from mta_cli.commands.shared.context import app_context, make_consent_prompt
from mta_cli.commands.shared.lazy_typer import CommandApp
from mta_cli.commands.shared.next_steps import suggest_after_import
from mta_cli.pipeline.data.formats import FORMATS

if TYPE_CHECKING:
    from rich.console import RenderableType

app = CommandApp("Import histories.")


def complete_formats(incomplete: str) -> list[tuple[str, str]]:
    """Formats that begin with the typed text, each with its meaning."""
    return [(name, meaning) for name, meaning in FORMATS.items() if name.startswith(incomplete)]


FormatArgument = Annotated[
    str, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.", autocompletion=complete_formats)
]
PathArgument = Annotated[Path, typer.Argument(metavar="PATH", help="The file; - reads standard input.")]
OutputsOption = Annotated[
    Path | None, typer.Option("--outputs", metavar="FILE", help="The answers to LaMP's questions.")
]


@app.command("import")
def import_(
    ctx: typer.Context,
    format: FormatArgument,
    path: PathArgument,
    outputs: OutputsOption = None,
    task: ImportTaskOption = None,
    can_anchor: ConsentOption = None,
    yes: AssumeConsentOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Import a file of histories.

    All of the file is checked first. Importing it again changes nothing; new items are added.
    """
    from mta_cli.pipeline.users.import_file import import_file

    context = app_context(ctx, json=json)
    piped = str(path) == "-"
    source = Path("/dev/stdin") if piped else path
    ask = make_consent_prompt(context, can_anchor, yes=yes, piped=piped)
    with context.open_registry() as reg:
        job = import_file(
            reg, format, source, task=task, outputs=outputs, can_anchor=can_anchor, ask=ask, dry_run=dry_run
        )
        done = context.output.run_job_and_print(job, _render_import, dry_run=dry_run, resumes=True)
        if not dry_run:
            suggest_after_import(context, reg, done["tasks"])


def _render_import(result: dict[str, Any]) -> RenderableType:
    what = (("history items", "items"), ("held-out queries", "queries"))
    counts = [
        (name, f"{result[f'{key}_added']:,} new, {result[f'{key}_unchanged']:,} known already") for name, key in what
    ]
    return out.key_value_grid([("task", result["tasks"]), ("users", result["users"]), *counts])
