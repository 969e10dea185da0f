"""`mta backup` and `mta restore`: signatures, help and rendering; the jobs are in the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mta_cli.commands.shared.arguments import DryRunOption, JsonOption, YesOption
from mta_cli.commands.shared.context import app_context, confirm
from mta_cli.configuration.settings import StoreOptions
from mta_cli.terminal.output import text

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The backup's file.", show_default=False)]


def backup(ctx: typer.Context, file: FileArgument, yes: YesOption = False, json: JsonOption = False) -> None:
    """Write the store to one file, a backup.

    It contains the database and the adapter files, but neither the store's settings file nor the server's keys. Only
    you can read the file. Other processes can go on working.
    """
    from mta_cli.pipeline.maintenance.backup import write_backup

    context = app_context(ctx, json=json)
    with context.open_registry() as registry:
        events = write_backup(registry, file, lambda question: confirm(context.output, question, yes=yes))
        context.output.run_job_and_print(events, _render_backup)


def restore(
    ctx: typer.Context,
    file: FileArgument,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Replace the store by a backup.

    All of the backup is verified first. Users who were removed since it was made are not brought back.
    """
    from mta_cli.pipeline.maintenance.backup import restore as restore_store

    context = app_context(ctx, json=json)
    timeout = context.settings.build_options(StoreOptions).timeout

    def agree(question: str) -> None:
        confirm(context.output, question, yes=yes)

    events = restore_store(context.store_dir, file, timeout, agree, dry_run=dry_run)
    context.output.run_job_and_print(events, _render_restore, dry_run=dry_run)


def _render_backup(result: dict[str, Any]) -> Any:
    return text(f"{result['users']:,} users and {result['adapters']:,} adapters are in {result['file']}")


def _render_restore(result: dict[str, Any]) -> Any:
    return text(f"{result['users']:,} users and {result['adapters']:,} adapters are in the store at {result['store']}")
