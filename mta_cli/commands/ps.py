"""`mta ps`: the running jobs and servers of the store."""

from __future__ import annotations

import typer

from mta_cli.commands.shared.arguments import JsonOption
from mta_cli.commands.shared.context import app_context


def ps(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the running jobs and servers."""
    from mta_cli.pipeline.bases_in_use import has_several_bases
    from mta_cli.pipeline.users.servers import running_servers

    context = app_context(ctx, json=json)
    with context.open_registry() as reg:
        several = has_several_bases(reg)
        jobs = [("job", title, None, users) for title, users in reg.jobs.running_jobs()]
        servers = [
            ("server", f"mta serve on {one.base}" if several else "mta serve", one.process, None)
            for one in running_servers(reg.root)
        ]
    columns = ("kind", "what", "process", "users")
    rows = [dict(zip(columns, row, strict=True)) for row in (*jobs, *servers)]
    context.output.print_rows(columns, rows, lambda row: [row[name] for name in columns])
