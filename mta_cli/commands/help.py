"""`mta help` and `mta version`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mta_cli import __version__
from mta_cli.commands.shared.context import app_context
from mta_cli.commands.shared.lazy_typer import LazyGroup
from mta_cli.errors import UsageError


def _complete_commands(ctx: typer.Context) -> list[str]:
    found: Any = ctx.find_root().command
    for name in ctx.params.get("command") or ():
        found = found.get_command(ctx, name)
    return list(found.list_commands(ctx))


CommandArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[COMMAND...]", help="The command, such as user adapt.", autocompletion=_complete_commands),
]


def help_(ctx: typer.Context, command: CommandArgument = None) -> None:
    """Show the help of a command."""
    here: Any = ctx.find_root()
    for name in command or ():
        if not isinstance(here.command, LazyGroup):
            raise UsageError(
                f"{here.command_path} is a command without subcommands.", hint=f"mta help {here.command_path[4:]}"
            )
        found = here.command.find_command(here, name)
        here = found.make_context(name, [], parent=here, resilient_parsing=True)
    app_context(ctx).output.write_stdout(f"{here.get_help()}\n")


def version(ctx: typer.Context) -> None:
    """Print the version."""
    app_context(ctx).output.write_stdout(f"mta {__version__}\n")
