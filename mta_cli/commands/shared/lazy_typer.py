"""Commands that are imported and built only when a command line names them, and that convert fewer values.

Typer builds every command before it runs one, and converts every value through pydantic. Each of these takes as long as
a whole quick command. A group here finds its commands in the way that click documents: `list_commands`, `get_command`.
Two things depend on undocumented parts of Typer, so `typer` has an upper bound in pyproject.toml. Typer has no hook for
the class of a parameter, so `LazyPage` changes the class of each parameter. And a parameter's Python type is known only
from its `type_descriptor`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from mta_cli.commands.shared.help_page import usage_pieces, write_examples, write_parameters
from mta_cli.errors import UsageError, did_you_mean

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])
MIN_LIKENESS = 0.65  # command names at least this similar to an unknown name (`difflib` ratio) are suggested
OTHER_WORDS = {
    "create": ("add", "build"),
    "del": ("rm",),
    "delete": ("rm",),
    "info": ("show",),
    "ls": ("list",),
    "new": ("add", "build"),
    "remove": ("rm",),
    "run": ("ask", "chat"),
    "train": ("bank", "build", "adapt"),
}
"""Other programs' names for our commands."""
PATH_METAVARS = ("DIR", "FILE", "PATH", "TO", "FROM")


def _lazy_class(typers_class: Any) -> Any:
    """A subclass of a parameter class of Typer, with less conversion, and completion that ignores case.

    It has no other base, because an object's class cannot be changed to one with a second base.
    """

    class LazyParameter(typers_class):  # type: ignore[misc]
        def process_value(self, ctx: Any, value: Any) -> Any:
            """The value for the command. Plain text, defaults and missing options are not converted.

            Raises UsageError for an empty path, which Python would treat as the current directory.
            """
            if value == "" and self.metavar in PATH_METAVARS and not ctx.resilient_parsing:
                name = self.metavar if self.param_type_name == "argument" else self.opts[0]
                raise UsageError(f"{name} is empty.", hint="name a file or a folder; . is the current one")
            absent = value is None and self.nargs == 1 and (ctx.resilient_parsing or not self.required)
            kind = self.type_descriptor.annotation
            if kind == list[str] and value:
                value = list(value)
            elif not absent and type(value) is not kind:
                return super().process_value(ctx, value)
            return value if self.callback is None else self.callback(ctx, self, value)

        def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
            """The completions that begin with the typed text, ignoring case, written as the shell reads them.

            Typer keeps only completions of the same case, so it is asked for all. In a list with commas the last name
            counts.
            """
            head, comma, typed = incomplete.rpartition(",") if "," in (self.metavar or "") else ("", "", incomplete)
            wanted = typed.casefold()
            found = [each for each in super().shell_complete(ctx, "") if each.value.casefold().startswith(wanted)]
            for each in found:
                each.value = _quote_for_bash(f"{head}{comma}{each.value}", incomplete)
            return found

    return LazyParameter


def _quote_for_bash(value: str, incomplete: str) -> str:
    """`value` escaped for bash, which inserts completions as they are. Unchanged in other shells and inside quotes."""
    line = os.environ.get("COMP_WORDS")
    if line is None or line.endswith(('"' + incomplete, "'" + incomplete)):
        return value
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", value)


LAZY_CLASSES = {each: _lazy_class(each) for each in (TyperArgument, TyperOption)}


class LazyPage:
    """A mixin for the parameters and the help page of a command or group, placed before Typer's class."""

    def get_params(self, ctx: Any) -> Any:
        """The command's own parameters, and the root's options that every command accepts."""
        own: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for each in own:
            each.__class__ = LAZY_CLASSES.get(type(each), type(each))
        return own if ctx.parent is None else [*own, *getattr(ctx.find_root().command, "options_anywhere", ())]

    def format_options(self: Any, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the options by panel, and a group's commands."""
        write_parameters(formatter, self.get_params(ctx))
        if isinstance(self, TyperGroup):
            self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the command's examples."""
        write_examples(formatter, ctx.command_path)


class LazyCommand(LazyPage, TyperCommand):
    """A command with the parameters and the help page of `LazyPage`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line: options, then arguments."""
        return usage_pieces(self.params)


class LazyGroup(LazyPage, TyperGroup):
    """A group of commands, each built on first use."""

    def __init__(self, *, builders: Mapping[str, Callable[[], Any]], **settings: Any) -> None:
        super().__init__(**settings)
        self.builders = builders

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, in the order in which they were declared."""
        return list(self.builders)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command called `cmd_name`; None if there is none."""
        if cmd_name not in self.commands and cmd_name in self.builders:
            self.commands[cmd_name] = self.builders[cmd_name]()
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with, as click returns it. Raises UsageError if there is none."""
        if not args[0].startswith("-") and not ctx.resilient_parsing:
            self.find_command(ctx, args[0])
        return super().resolve_command(ctx, args)

    def find_command(self, ctx: Any, name: str) -> Any:
        """The command called `name`. Raises UsageError if there is none, with similar commands as hint."""
        if (found := self.get_command(ctx, name)) is not None:
            return found
        known, path = self.list_commands(ctx), ctx.command_path
        meant = [each for each in OTHER_WORDS.get(name.lower(), ()) if each in known]
        inside = [f"{group} {name.lower()}" for group in known if self._has_subcommand(ctx, group, name.lower())]
        near = meant or inside or get_close_matches(name.lower(), known, n=2, cutoff=MIN_LIKENESS)
        hint = did_you_mean([f"{path} {each}" for each in near], f"{path} --help")
        raise UsageError(f"There is no command {name!r:.80} in {path}.", hint=hint)

    def _has_subcommand(self, ctx: Any, group: str, name: str) -> bool:
        found = self.get_command(ctx, group)
        return isinstance(found, LazyGroup) and name in found.list_commands(ctx)


class CommandGroup:
    """The commands of one noun, in the variable `app` of its module. Without a command, a group shows its help."""

    def __init__(self, help_text: str) -> None:
        self.help_text = help_text
        self.builders: dict[str, Callable[[], Any]] = {}

    def command(self, name: str | None = None) -> Callable[[CommandFunction], CommandFunction]:
        """A decorator that makes a function a command, by default with the function's name."""

        def register(function: CommandFunction) -> CommandFunction:
            chosen = name or function.__name__
            self.builders[chosen] = partial(build_command, chosen, function)
            return function

        return register

    def build(self, name: str) -> LazyGroup:
        """The group, without building its commands."""
        settings: dict[str, Any] = {"help": self.help_text, "no_args_is_help": True, "rich_markup_mode": None}
        return LazyGroup(name=name, builders=self.builders, **settings)


def build_command(name: str, function: Callable[..., Any]) -> Any:
    """Typer's command called `name` that calls `function`."""
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, cls=LazyCommand)(function)
    return get_command(alone)


def import_command(name: str, place: str) -> Any:
    """The command or group at `place`, `module:attribute` of `mta_cli.commands`."""
    module, _, attribute = place.partition(":")
    found = getattr(import_module(f"mta_cli.commands.{module}"), attribute)
    if isinstance(found, CommandGroup):
        return found.build(name)
    return get_command(found) if isinstance(found, typer.Typer) else build_command(name, found)
