"""`mta tui`: opens the window on the store."""

from __future__ import annotations

import typer

from mta_cli.commands.shared.context import app_context, stdin_is_terminal
from mta_cli.errors import UsageError


def tui(ctx: typer.Context) -> None:
    """Open the window on the store."""
    context = app_context(ctx)
    if not (stdin_is_terminal() and context.output.console(stderr=False).is_terminal):
        raise UsageError(
            "mta tui needs a terminal for input and output.", hint="mta --help lists commands that work without one"
        )
    settings, store = context.settings, context.store_dir
    from mta_cli.tui.app import MtaApp

    window = MtaApp(store, settings)
    window.run()
    if window.return_code:  # the window has already shown the error
        raise typer.Exit(window.return_code)
