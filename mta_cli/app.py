"""The `mta` command: its groups, the global flags, and the translation of errors to messages and exit codes.

Knows no job. Exit codes: 0 done, 1 unexpected, 2 usage, 3 not found, 4 bad input, 5 integrity, 130 interrupted.
"""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from mta_cli import __version__
from mta_cli.commands.shared.arguments import StoreOption
from mta_cli.commands.shared.context import GlobalFlags
from mta_cli.commands.shared.lazy_typer import LazyGroup, import_command
from mta_cli.errors import Interrupted, MtaError, UsageError, did_you_mean
from mta_cli.terminal.output import Output, StdoutClosed, flush_stdout, prepare_streams

COMMAND_TARGETS = {
    "init": "init:init",
    "model": "model:app",
    "task": "task:app",
    "data": "data:app",
    "user": "user:app",
    "bank": "bank:app",
    "ask": "chat:ask",
    "compare": "chat:compare",
    "chat": "chat:chat",
    "eval": "eval:app",
    "serve": "serve:app",
    "ps": "ps:ps",
    "tui": "tui:tui",
    "quick": "quick:quick",
    "demo": "demo:demo",
    "config": "config:app",
    "doctor": "doctor:doctor",
    "backup": "backup:backup",
    "restore": "backup:restore",
    "snapshot": "snapshot:snapshot",
    "pull": "snapshot:pull",
    "help": "help:help_",
}
"""The module and attribute of each command, in the order in which help lists them."""
HIDDEN_TARGETS = {"version": "help:version"}
"""Commands that help does not list, because a flag does the same."""
OPTIONS_ANYWHERE = ("store", "verbose", "quiet")
COMPLETION_FLAGS = ("--show-completion", "--install-completion")
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


class RootGroup(LazyGroup):
    """The `mta` command. Imports a command's module only for that command and for the help."""

    def __init__(self, **settings: Any) -> None:
        places = {**COMMAND_TARGETS, **HIDDEN_TARGETS}.items()
        super().__init__(builders={name: partial(import_command, name, place) for name, place in places}, **settings)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands."""
        return list(COMMAND_TARGETS)

    @cached_property
    def options_anywhere(self) -> list[Any]:
        """Copies of the global options, which help does not show, so that they are also accepted after a command."""
        copies: list[Any] = [copy.copy(each) for each in self.params if each.name in OPTIONS_ANYWHERE]
        for each in copies:
            each.hidden, each.expose_value, each.callback = True, False, _add_flag_after_command
        return copies

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line. `--show-completion SHELL` is for that shell; without SHELL, for the running shell."""
        if len(args) == 2 and args[0] in COMPLETION_FLAGS:
            if args[1] not in SHELLS:
                raise UsageError(
                    f"There is no completion for {args[1]!r:.80}.", hint=f"choose one of {', '.join(SHELLS)}"
                )
            flag = next(each for each in self.params if args[0] in each.opts)
            assert flag.callback is not None
            flag.callback(ctx, flag, args[1])  # exits the program
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Ctrl-C raises Interrupted, where Typer would exit silently."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None


app = typer.Typer(
    name="mta",
    help="Personalise a language model for many users: one bank of anchors, one small recipe and stack a user.",
    cls=RootGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        Output().write_stdout(f"mta {__version__}\n")
        raise typer.Exit


@app.callback()
def set_global_flags(
    ctx: typer.Context,
    store: StoreOption = None,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, show_default=False, help="Show details; given twice, also tracebacks."
        ),
    ] = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No notes and no progress, only results and errors.")
    ] = False,
) -> None:
    """Store the flags before the command."""
    _add_global_flags(ctx.ensure_object(GlobalFlags), store=store, verbose=verbose, quiet=quiet)


def _add_global_flags(given: GlobalFlags, *, store: str | None = None, verbose: int = 0, quiet: bool = False) -> None:
    if store is not None:
        given.store = Path(store)
    given.verbosity += verbose
    given.quiet = given.quiet or quiet


def _add_flag_after_command(ctx: Any, parameter: Any, value: Any) -> None:
    if value is None or value is False or value == 0:
        return
    ctx.find_root().params[parameter.name] = value  # name completion reads the store from here
    if (given := ctx.find_object(GlobalFlags)) is not None:
        _add_global_flags(given, **{parameter.name: value})


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every failure is explained on standard error."""
    given = GlobalFlags(words=tuple(arguments))
    try:
        outcome = get_command(app).main(args=list(arguments), prog_name="mta", standalone_mode=False, obj=given)
        return outcome if isinstance(outcome, int) else 0
    except StdoutClosed:
        return 0
    except BaseException as error:
        if isinstance(error, MtaError) and error.hint:
            error.hint = given.text_with_store(error.hint)
        return _handle_error(error, Output(quiet=given.quiet, verbosity=given.verbosity))


def _handle_error(error: BaseException, output: Output) -> int:
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        return 0  # the reader of the help has closed the pipe (`mta --help | head -1`)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, MtaError):
        output.error(error)
        return error.exit_code
    if isinstance(error, typer.Abort):
        output.error(MtaError("stopped; nothing was changed"))
        return 1
    if isinstance(error, typer.TyperException):
        if type(error).__name__ == "NoArgsIsHelpError":  # `mta` or `mta user` alone: its message is the help text
            output.print_help(error.format_message())
        else:
            output.error(_usage_error(error))
        return error.exit_code
    output.error(error)
    return 1


def _usage_error(error: typer.TyperException) -> MtaError:
    """A mistake on the command line as a UsageError, with the nearest options or the help command as a hint."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "mta"
    near = list(getattr(error, "possibilities", None) or ())[:2]
    message = (error.message if near else error.format_message()) or "a command is missing"
    message = message.replace("Value error, ", "", 1)  # pydantic's prefix
    return MtaError(message, hint=did_you_mean(near, f"{path} --help"))


def main() -> None:
    """The console script."""
    # Importing model libraries creates a million permanent objects; garbage collection after every 700 of them would
    # take a sixth of the start.
    gc.set_threshold(50_000)
    prepare_streams()
    code = run_command_line(sys.argv[1:])
    flush_stdout()
    if "torch" not in sys.modules:  # torch would report remaining objects as leaked
        gc.freeze()  # the process ends here, so a last garbage collection is not needed
    sys.exit(code)
