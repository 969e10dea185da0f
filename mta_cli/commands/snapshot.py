"""`mta snapshot` and `mta pull`: signatures, help and rendering; the jobs are in the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mta_cli.commands.shared.arguments import DryRunOption, JsonOption, complete_tasks
from mta_cli.commands.shared.context import app_context
from mta_cli.configuration.settings import StoreOptions
from mta_cli.terminal.output import text

PLACE = "A folder, s3://BUCKET/PATH or gs://BUCKET/PATH."
KeyOption = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="The key that signs a snapshot and verifies it.")
]


def snapshot(
    ctx: typer.Context,
    to: Annotated[str, typer.Argument(metavar="TO", help=PLACE, show_default=False)],
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", "-t", metavar="TASK", help="Only this task; can be repeated.", autocompletion=complete_tasks
        ),
    ] = None,
    hash_names: Annotated[
        bool, typer.Option("--hash-names", help="Replace users' names by HMACs with the key.")
    ] = False,
    key: KeyOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Publish the store for other machines.

    The snapshot holds what answers need: banks, recipes, stacks, labels and names; no texts, chats or runs. Only new
    files are written. mta pull makes a read-only store from it.
    """
    from mta_cli.pipeline.maintenance.snapshot import publish_snapshot

    context = app_context(ctx, json=json)
    with context.open_registry() as registry:
        events = publish_snapshot(registry, to, task or (), key, hash_names=hash_names, dry_run=dry_run)
        context.output.run_job_and_print(events, _render_snapshot, dry_run=dry_run)


def pull(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="FROM", help=PLACE, show_default=False)],
    key: KeyOption = None,
    trust_unsigned: Annotated[
        bool,
        typer.Option("--trust-unsigned", help="Pull even a snapshot that is not signed with the earlier copy's key."),
    ] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Make the store a copy of a snapshot.

    An earlier copy is updated. A copy is read-only. Only missing files are fetched, and all are verified before
    anything is changed. A running mta serve continues with the new copy. A store that is not a copy is never replaced.
    """
    from mta_cli.pipeline.maintenance.snapshot import pull_snapshot

    context = app_context(ctx, json=json)
    timeout = context.settings.build_options(StoreOptions).timeout
    events = pull_snapshot(context.store_dir, source, key, timeout, dry_run=dry_run, trust_unsigned=trust_unsigned)
    context.output.run_job_and_print(events, _render_pull, dry_run=dry_run)


def _render_snapshot(result: dict[str, Any]) -> Any:
    return text(
        f"{result['users']:,} users and {result['adapters']:,} adapters are in {result['to']}: "
        f"{result['written']:,} files written ({result['written_bytes']:,} bytes), {result['removed']:,} removed"
    )


def _render_pull(result: dict[str, Any]) -> Any:
    return text(
        f"{result['users']:,} users and {result['adapters']:,} adapters are in the store at {result['store']}: "
        f"{result['fetched']:,} files fetched ({result['fetched_bytes']:,} bytes), {result['removed']:,} removed"
    )
