"""Typer's classes with less work: only what a command line names is imported and converted.

Typer builds every command before it runs one, and converts every value through pydantic, even the unused defaults.
Each of these takes as long as a whole quick command. Help pages and completions are ours too. Knows no command.
"""

from __future__ import annotations

import os
import re
from collections import UserDict
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_command_name, get_group

from mta_cli.errors import UsageError

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])
MIN_LIKENESS = 0.65  # of two commands' names, so that one is suggested for the other
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
"""What other programs call our commands."""
PATH_METAVARS = ("DIR", "FILE", "PATH", "TO", "FROM")


class NoSuchCommand(Exception):
    """A command that a group does not have; `near` are the names that may be meant, `path` is the group's."""

    def __init__(self, name: str, path: str, near: list[str]) -> None:
        super().__init__(name)
        self.name, self.path, self.near = name, path, near


class LazyTyperCommand(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> Any:
        """Its parameters, and the root's that are taken anywhere; converted only where needed."""
        return _prepare([*super().get_params(ctx), *_options_anywhere(ctx)])

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line: options, then arguments."""
        from mta_cli.commands.shared.help_page import usage_pieces

        return usage_pieces(self.params)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Its arguments, and its options by panel."""
        from mta_cli.commands.shared.help_page import write_parameters

        write_parameters(formatter, self.get_params(ctx))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Examples of its use."""
        from mta_cli.commands.shared.help_page import write_examples

        write_examples(formatter, ctx.command_path)


class LazyTyperGroup(TyperGroup):
    """A group of commands."""

    def get_params(self, ctx: Any) -> Any:
        """Its parameters, and the root's that are taken anywhere; converted only where needed."""
        return _prepare([*super().get_params(ctx), *_options_anywhere(ctx)])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with. Raises NoSuchCommand."""
        if not args[0].startswith("-") and not ctx.resilient_parsing:
            self.find_command(ctx, args[0])
        return super().resolve_command(ctx, args)

    def find_command(self, ctx: Any, name: str) -> Any:
        """The command called `name`. Raises NoSuchCommand."""
        found = self.get_command(ctx, name)
        if found is None:
            raise NoSuchCommand(name, ctx.command_path, self._near_commands(name.lower()))
        return found

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Its options by panel, and its commands."""
        from mta_cli.commands.shared.help_page import write_parameters

        write_parameters(formatter, self.get_params(ctx))
        self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Examples of its use."""
        from mta_cli.commands.shared.help_page import write_examples

        write_examples(formatter, ctx.command_path)

    def _near_commands(self, name: str) -> list[str]:
        known = self.list_commands(None)  # type: ignore[arg-type]  # the names do not depend on a context
        meant = [each for each in OTHER_WORDS.get(name, ()) if each in known]
        return meant or get_close_matches(name, known, n=2, cutoff=MIN_LIKENESS)


class CommandApp(typer.Typer):
    """A registry of commands. Help is plain text; a group without a command shows it."""

    def __init__(self, help_text: str = "", **settings: Any) -> None:
        shared: dict[str, Any] = {"cls": LazyTyperGroup, "no_args_is_help": True, "rich_markup_mode": None}
        super().__init__(help=help_text, pretty_exceptions_enable=False, **{**shared, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Callable[[CommandFunction], CommandFunction]:
        """The decorator that registers a function as a command."""
        return super().command(name, cls=LazyTyperCommand, **settings)


class LazyCommands(UserDict[str, Any]):
    """Commands by name, each built when it is first used."""

    def __init__(self, makers: Mapping[str, Callable[[], Any]]) -> None:
        super().__init__()
        self.data.update(makers)

    def __getitem__(self, name: str) -> Any:
        found = self.data[name]
        if not isinstance(found, TyperCommand | TyperGroup):
            found = self.data[name] = found()
        return found


def lazy_commands(places: Mapping[str, str]) -> LazyCommands:
    """The commands at `places`, `module:attribute` of `mta_cli.commands`: a group (`CommandApp`) or a function."""
    return LazyCommands({name: partial(_import_command, name, place) for name, place in places.items()})


def _import_command(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    found = getattr(import_module(f"mta_cli.commands.{module}"), attribute)
    if isinstance(found, CommandApp):
        return _build_whole_group(name, found) if found.registered_groups else _build_group(name, found)
    return _build_command(name, found)


def _build_whole_group(name: str, registered: CommandApp) -> TyperGroup:
    """A group that is a command too, with groups below it: all of it at once."""
    group = get_group(registered)
    group.name = name
    return group


def _build_group(name: str, registered: CommandApp) -> TyperGroup:
    makers: dict[str, Callable[[], Any]] = {}
    for command in registered.registered_commands:
        function: Any = command.callback
        inner = command.name or get_command_name(function.__name__)
        makers[inner] = partial(_build_command, inner, function)
    group = get_group(CommandApp(registered.info.help or ""))
    group.name, group.commands = name, LazyCommands(makers)
    return group


def _build_command(name: str, function: Callable[..., Any]) -> Any:
    alone = CommandApp(add_completion=False)
    alone.command(name)(function)
    return get_command(alone)


def _options_anywhere(ctx: Any) -> list[Any]:
    """The root's options that are taken after its commands as well; none for the root, whose own they are."""
    return [] if ctx.parent is None else getattr(ctx.find_root().command, "options_anywhere", [])


def _prepare(parameters: list[Any]) -> list[Any]:
    for each in parameters:
        if "process_value" not in vars(each):
            each.process_value = partial(_process_value, each, each.process_value)
            if each._custom_shell_complete is not None:
                each.shell_complete = partial(_complete, each)
    return parameters


def _complete(parameter: Any, ctx: Any, incomplete: str) -> list[Any]:
    """The completions that begin with the typed text in any case, written as the shell reads them.

    Typer itself keeps only those of the same case, so it is asked for all. In a list with commas the last name counts.
    """
    head, comma, typed = incomplete.rpartition(",") if "," in (parameter.metavar or "") else ("", "", incomplete)
    wanted = typed.casefold()
    found = [
        each
        for each in parameter._custom_shell_complete(ctx, parameter, "")
        if each.value.casefold().startswith(wanted)
    ]
    for each in found:
        each.value = _quote_for_bash(f"{head}{comma}{each.value}", incomplete)
    return found


def _quote_for_bash(value: str, incomplete: str) -> str:
    """`value` with blanks and signs escaped, where bash asks, which takes completions as they are; not in quotes."""
    line = os.environ.get("COMP_WORDS")
    if line is None or line.endswith(('"' + incomplete, "'" + incomplete)):
        return value
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", value)


def _process_value(parameter: Any, convert: Callable[[Any, Any], Any], ctx: Any, value: Any) -> Any:
    """Click's `process_value`, which skips plain text, defaults, and options that were not given.

    Raises UsageError for an empty path, which Python takes for the working directory.
    """
    if value == "" and parameter.metavar in PATH_METAVARS and not ctx.resilient_parsing:
        name = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
        raise UsageError(f"{name} is empty.", hint="name a file or a folder; . is the one that you are in")
    absent = value is None and parameter.nargs == 1 and (ctx.resilient_parsing or not parameter.required)
    kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if kind == list[str] and value:
        value = list(value)
    elif not absent and type(value) is not kind:
        return convert(ctx, value)
    return value if parameter.callback is None else parameter.callback(ctx, parameter, value)
